#include "internal/MonteCarloModeJumpImpl.h"

#include "Checks.h"
#include "DrivenPath.h"
#include "Interruption.h"
#include "Model.h"
#include "MovedParticles.h"
#include "Solvent.h"
#include "Space.h"
#include "Thermostat.h"
#include "Velocities.h"
#include "modejump.h"
#include "openmm/OpenMMException.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/reference/SimTKOpenMMRealType.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <iostream>
#include <limits>
#include <random>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

const uint64_t MAX_REPLICA = 1u << 12;
/**
 * Explicit attempts are counted in the bits of the 64-bit step number from this one up, by which the core recognises them
 * (src/moves/blocks.rs): no simulation makes 2^40 steps.
 */
const int EXPLICIT_BITS = 40;
/** Number of proposals drawn ahead at a time; generators are several times faster in batches. */
const uint64_t DRAWN_AHEAD = 64;

/** Number of this move in the System: two moves must not use the same random numbers. */
uint64_t moveNumber(ContextImpl& context, const ForceImpl* self) {
    uint64_t number = 0;
    for (const ForceImpl* impl : context.getForceImpls()) {
        if (impl == self)
            return number;
        number += dynamic_cast<const MonteCarloModeJumpImpl*>(impl) != nullptr;
    }
    return number;
}

modejump_annealing_options annealingOptions(const MonteCarloModeJump& force) {
    modejump_annealing_options options = {};
    options.struct_size = sizeof(options);
    check(modejump_annealing_options_init(&options));
    options.stages = force.getAnnealingStages();
    options.moves = force.getAnnealingMoves();
    options.step = force.getAnnealingStep();
    if (force.getLeapfrogSteps() > 0) {
        options.kernel = MODEJUMP_HAMILTONIAN;
        options.leapfrog = force.getLeapfrogSteps();
    }
    return options;
}

/** Options of the latent walk, valid as long as the Force is not changed. */
modejump_latent_walk_options walkOptions(const MonteCarloModeJump& force, uint64_t seed) {
    modejump_latent_walk_options options = {};
    options.struct_size = sizeof(options);
    check(modejump_latent_walk_options_init(&options));
    options.widths = force.getLatentWalk().data();
    options.n_widths = force.getLatentWalk().size();
    options.leapfrog = force.getLeapfrogSteps();
    options.seed = seed;
    return options;
}

} // namespace

/** Target of one attempt: reduced potentials of proposals. The Context is restored after each, so that a rejection has nothing to undo. */
struct MonteCarloModeJumpImpl::Trial {
    MonteCarloModeJumpImpl& impl;
    ContextImpl& context;
    int groups;
    double kT;
    exception_ptr failure;

    /** Energy at x and, if `forces` is given, the forces on the moved particles. */
    double energyOf(const double* x, vector<double>* forces = nullptr) {
        if (forces != nullptr)
            forces->assign(impl.x.size(), 0);
        try {
            return impl.solvent ? impl.solvent->energyAt(x) : energyOfMoved(x, forces);
        } catch (const OpenMMException& error) {
            endIfInterrupted(error);
            // OpenMM has no energy there; rejecting the proposal is as exact as any other rejection
            impl.warnings.failure(error.what());
            return numeric_limits<double>::infinity();
        }
    }

    double energyOfMoved(const double* x, vector<double>* forces) {
        try {
            impl.moved->setPositions(vector<double>(x, x + impl.x.size()));
            const double energy = context.calcForcesAndEnergy(forces != nullptr, true, groups);
            if (forces != nullptr)
                impl.moved->getForces(*forces);
            impl.moved->restore();
            return energy;
        } catch (...) {
            impl.moved->restore();
            throw;
        }
    }

    /** modejump_target.reduced_potential */
    static int32_t reducedPotential(void* user, uint64_t n, const double* x, double* u) {
        return guarded(user, [&](Trial& trial) {
            for (uint64_t row = 0; row < n; row++)
                u[row] = trial.energyOf(x + row * trial.impl.x.size()) / trial.kT;
        });
    }

    /** modejump_target.reduced_potential_gradient */
    static int32_t reducedPotentialGradient(void* user, uint64_t n, const double* x, double* u, double* gradient) {
        return guarded(user, [&](Trial& trial) {
            const size_t size = trial.impl.x.size();
            vector<double> forces;
            for (uint64_t row = 0; row < n; row++) {
                u[row] = trial.energyOf(x + row * size, &forces) / trial.kT;
                transform(forces.begin(), forces.end(), gradient + row * size, [&](double f) { return -f / trial.kT; });
            }
        });
    }

    /** modejump_target.relax */
    static int32_t relax(void* user, const double* x, uint64_t stage, double* u) {
        return guarded(user, [&](Trial& trial) {
            *u = trial.impl.solvent->relax(x, stage) / trial.kT;
            if (!trial.impl.solvent->failure.empty())
                trial.impl.warnings.failure(trial.impl.solvent->failure);
        });
    }

    template <typename Body> static int32_t guarded(void* user, Body body) {
        Trial& trial = *static_cast<Trial*>(user);
        try {
            body(trial);
            return 0;
        } catch (const exception& error) {
            trial.failure = current_exception();
            modejump_set_last_error(error.what());
        } catch (...) {
            trial.failure = current_exception();
            modejump_set_last_error("OpenMM failed to compute an energy");
        }
        return 1;
    }
};

MonteCarloModeJumpImpl::MonteCarloModeJumpImpl(const MonteCarloModeJump& owner) : owner(owner) {}

MonteCarloModeJumpImpl::~MonteCarloModeJumpImpl() = default;

void MonteCarloModeJumpImpl::FreeMove::operator()(modejump_move* move) const { modejump_move_free(move); }

map<string, double> MonteCarloModeJumpImpl::getDefaultParameters() {
    return {{MonteCarloModeJump::Replica(), static_cast<double>(owner.getDefaultReplica())}};
}

void MonteCarloModeJumpImpl::initialize(ContextImpl& context) {
    try {
        prepare(context);
    } catch (...) {
        // OpenMM does not destroy what refuses a Context, and weights on a GPU would stay there
        model.reset();
        screen.reset();
        throw;
    }
}

void MonteCarloModeJumpImpl::prepare(ContextImpl& context) {
    const System& system = context.getSystem();
    const auto models = owner.getModelsFor(context);
    model = models[0];
    screen = models[1];
    particles = checkedParticles(system, owner.getParticles(), *model);
    checkBonds(system, particles, *model);
    if (system.usesPeriodicBoundaryConditions())
        check(modejump_model_check_box(model->handle()));
    if (screen) {
        checkedParticles(system, particles, *screen);
        checkBonds(system, particles, *screen);
    }
    checkEnsemble(context.getIntegrator(), system);
    checkCalls(context.getIntegrator());
    if (removesMomentum(system) && isHeldInSpace(system))
        cerr << "MonteCarloModeJump: the System has a CMMotionRemover, and particles without mass or a Force that depends on absolute positions: the "
                "dynamics keeps the centre of mass fixed, but jumps do not, so averages depend on the frequency of jumps; remove the "
                "CMMotionRemover (createSystem with removeCMMotion=False)" << endl;
    massive.clear();
    for (int i = 0; i < system.getNumParticles(); i++)
        if (system.getParticleMass(i) > 0)
            massive.push_back(i);
    allMoved = massive.size() == particles.size();
    seedGiven = owner.getRandomNumberSeed() != 0;
    const uint64_t chosen = seedGiven ? static_cast<uint32_t>(owner.getRandomNumberSeed()) : random_device()();
    seed = chosen + (moveNumber(context, this) << 32);
    createMove(context);
}

/** Throws if mutually exclusive ways of making a proposal were requested. */
void MonteCarloModeJumpImpl::checkMethod() const {
    const bool driven = owner.getDrivenSteps() > 0, annealed = owner.getAnnealingStages() > 0, walk = !owner.getLatentWalk().empty();
    if (driven + annealed + walk + (screen != nullptr) > 1)
        throw OpenMMException("MonteCarloModeJump: a driven path, annealing, a latent walk and a screening model are mutually exclusive; "
                              "set one of them");
    if (driven && allMoved)
        throw OpenMMException("MonteCarloModeJump: the model moves all particles, so none is left to relax; remove the driven path");
    if ((driven || walk) && owner.getNumProposals() > 1)
        throw OpenMMException("MonteCarloModeJump: a driven path and a latent walk require one proposal, not " +
                              to_string(owner.getNumProposals()));
    if (owner.getRotations() > 0 && (driven || annealed || walk || screen))
        throw OpenMMException("MonteCarloModeJump: averages over orientations require the model's own proposals, not a driven path, "
                              "annealing, a latent walk or a screening model");
    if (owner.getLeapfrogSteps() > 0 && !annealed && !walk)
        throw OpenMMException("MonteCarloModeJump: leapfrog steps require annealing or a latent walk; set one of these");
    if (model->hasModes && owner.getNumProposals() > 1 && !screen && !annealed)
        throw OpenMMException("MonteCarloModeJump: " + to_string(owner.getNumProposals()) + " proposals: a jump between modes requires one");
}

/** Makes the move according to the current options; the previous move is kept if they are refused. */
void MonteCarloModeJumpImpl::createMove(ContextImpl& context) {
    checkMethod();
    if (owner.getFrequency() > 0)
        checkStepLengths(context.getIntegrator());
    const Constraints constraints = movedConstraints(context.getSystem(), particles, *model);
    unique_ptr<Solvent> newSolvent = owner.getDrivenSteps() > 0 ? solventAround(particles, owner, context) : nullptr;
    MoveHandle newMove(newMoveOf(newSolvent != nullptr));
    vector<double> masses;
    for (int particle : particles)
        masses.push_back(context.getSystem().getParticleMass(particle));
    check(modejump_move_set_constraints(newMove.get(), constraints.lengths.size(), constraints.atoms.data(), constraints.lengths.data(),
                                        masses.data()));
    move = std::move(newMove);
    solvent = std::move(newSolvent);
    // a driven path also moves the others
    movesConstrained = !constraints.lengths.empty() || (solvent && context.getSystem().getNumConstraints() > 0);
    frequency = owner.getFrequency();
    temperature = owner.getTemperature();
    lastLogAcceptance = 0;
    stepped = false;
}

modejump_move* MonteCarloModeJumpImpl::newMoveOf(bool driven) const {
    modejump_move_options options = {};
    options.struct_size = sizeof(options);
    check(modejump_move_options_init(&options));
    options.kind = owner.getNumProposals() > 1 ? MODEJUMP_ISIR : MODEJUMP_INDEPENDENCE;
    if (owner.getAcceptance() == MonteCarloModeJump::Acceptance::Surrogate)
        options.kind = MODEJUMP_SURROGATE;
    options.proposals = owner.getNumProposals();
    options.seed = seed;
    options.stride = owner.getFrequency();
    options.batch = max<uint64_t>(1, DRAWN_AHEAD / options.proposals);
    options.draw_ahead = owner.getDrawAhead() ? 1 : 0;
    options.rotations = owner.getRotations();
    options.partial = allMoved ? 0 : 1;
    const modejump_annealing_options annealing = annealingOptions(owner);
    const modejump_latent_walk_options walk = walkOptions(owner, seed);
    modejump_move* result = nullptr;
    if (driven)
        check(modejump_move_driven_new(model->handle(), &options, owner.getDrivenSteps(), &result));
    else if (owner.getAnnealingStages() > 0)
        check(modejump_move_annealed_new(model->handle(), &options, &annealing, &result));
    else if (!owner.getLatentWalk().empty())
        check(modejump_move_latent_walk_new(model->handle(), &walk, &result));
    else if (screen)
        check(modejump_move_delayed_acceptance_new(model->handle(), screen->handle(), &options, &result));
    else
        check(modejump_move_new(model->handle(), &options, &result));
    return result;
}

/** Puts the solvent in the state of the System; returns its energy as computed by the Context of the solvent, kJ/mol. */
double MonteCarloModeJumpImpl::beginDriven(ContextImpl& context, double energy, double kT, const VelocityStream& stream) {
    vector<Vec3> positions;
    context.getPositions(positions);
    solvent->begin(context, positions, kT, stream);
    const double onPath = solvent->energyAt(x.data());
    requireSameEnergy(context, energy, onPath, kT);
    return onPath;
}

void MonteCarloModeJumpImpl::updateParameters(ContextImpl& context) { createMove(context); }

uint64_t MonteCarloModeJumpImpl::findReplica(ContextImpl& context) const {
    const double value = context.getParameter(MonteCarloModeJump::Replica());
    if (!(value >= 0 && value < MAX_REPLICA && value == floor(value)))
        throw OpenMMException("MonteCarloModeJump: the Context parameter " + MonteCarloModeJump::Replica() + " is " +
                              to_string(value) + "; it must be a whole number from 0 to 4095");
    return static_cast<uint64_t>(value);
}

double MonteCarloModeJumpImpl::findThermalEnergy(ContextImpl& context) {
    const double kelvin = temperature > 0 ? temperature : findTemperature(context);
    check(modejump_move_set_temperature(move.get(), kelvin));
    warnings.modelTemperature(*model, kelvin);
    if (temperature > 0)
        warnings.temperature(temperature, findOneTemperature(context));
    return BOLTZ * kelvin;
}

/**
 * Number of the next attempt, if no seed was given: attempts are counted, so that no random number is repeated wherever the step count
 * goes, as in many short runs from one State, or with replicas that share the Context. The number advances by the frequency, as proposals
 * drawn ahead assume.
 */
uint64_t MonteCarloModeJumpImpl::nextNumber() {
    const uint64_t stride = max(1, frequency);
    return number = (number / stride + 1) * stride;
}

// Called at the start of every step. The step count is part of checkpoints and States, so with a given seed moves continue where they were;
// a separate counter would not.
void MonteCarloModeJumpImpl::updateContextState(ContextImpl& context, bool& forcesInvalid) {
    const long long step = context.getStepCount();
    if (frequency == 0)
        return;
    // not when the Context is made: a Context used only for energies makes no steps, and any integrator is good enough for it
    if (movesConstrained && !stepped)
        checkConstrainedSteps(context);
    stepped = true;
    if (step == 0 || step % frequency != 0)
        return;
    // Also after a rejection: computing only energies clears the forces on some platforms.
    forcesInvalid = true;
    const uint64_t replica = findReplica(context);
    if (!seedGiven) {
        attempt(context, nextNumber(), replica);
        return;
    }
    Latest& before = latest[replica];
    if (step <= before.step)
        warnings.repetition(step, before.step);
    attempt(context, step, replica);
    before.step = step;
}

bool MonteCarloModeJumpImpl::attempt(ContextImpl& context) {
    const long long step = context.getStepCount();
    const uint64_t replica = findReplica(context);
    if (!seedGiven)
        return attempt(context, nextNumber(), replica);
    Latest& before = latest[replica];
    if (step < before.explicitStep)
        warnings.repetition(step, before.explicitStep);
    before.explicitCount = step == before.explicitStep ? before.explicitCount + 1 : 1;
    before.explicitStep = step;
    return attempt(context, before.explicitCount << EXPLICIT_BITS | static_cast<uint64_t>(step), replica);
}

bool MonteCarloModeJumpImpl::attempt(ContextImpl& context, uint64_t step, uint64_t replica) {
    if (!moved)
        moved = MovedParticles::of(context, particles);
    Trial trial{*this, context, context.getIntegrator().getIntegrationForceGroups(), findThermalEnergy(context), nullptr};
    modejump_target target = {};
    target.struct_size = sizeof(target);
    target.user = &trial;
    target.reduced_potential = &Trial::reducedPotential;
    target.reduced_potential_gradient = solvent ? nullptr : &Trial::reducedPotentialGradient;
    target.relax = solvent ? &Trial::relax : nullptr;

    context.computeVirtualSites(); // positions may have been set since the last step
    double energy = context.calcForcesAndEnergy(false, true, trial.groups);
    // On some platforms this clears the forces, which integrators keep until they are notified of a change.
    context.systemChanged();
    if (!std::isfinite(energy))
        throw OpenMMException("MonteCarloModeJump: the reduced potential is " + to_string(energy / trial.kT) + " at step " +
                              to_string(context.getStepCount()) +
                              ": the simulation failed before the move; minimize the energy first, or use a smaller time step");
    moved->save();
    moved->getPositions(x);
    if (solvent)
        energy = beginDriven(context, energy, trial.kT, VelocityStream(seed, step, replica, VelocityStream::RELAX));
    Vec3 box[3];
    context.getPeriodicBoxVectors(box[0], box[1], box[2]);
    const double flat[9] = {box[0][0], box[0][1], box[0][2], box[1][0], box[1][1],
                            box[1][2], box[2][0], box[2][1], box[2][2]};
    modejump_state state = {};
    state.struct_size = sizeof(state);
    state.step = step;
    state.replica = replica;
    state.reduced_potential = energy / trial.kT;
    state.x = x.data();
    state.box = context.getSystem().usesPeriodicBoundaryConditions() ? flat : nullptr;
    modejump_outcome outcome = {};
    outcome.struct_size = sizeof(outcome);
    const int status = modejump_move_attempt(move.get(), &target, &state, &outcome);
    if (trial.failure)
        rethrow_exception(trial.failure);
    check(status);
    lastLogAcceptance = outcome.log_acceptance;
    warnOfAcceptance(state.box);
    if (outcome.outcome != 0)
        return false;
    const VelocityStream velocities(seed, step, replica);
    if (solvent)
        takeOverDriven(context, velocities, trial.kT);
    else
        takeOver(context, velocities, trial.kT);
    return true;
}

void MonteCarloModeJumpImpl::takeOver(ContextImpl& context, const VelocityStream& stream, double kT) {
    // Particles that stay keep their on-step velocity v = v_stored + offset F/m although their force changes.
    const double offset = allMoved ? 0 : velocityTimeOffset(context.getIntegrator());
    const int groups = context.getIntegrator().getIntegrationForceGroups();
    if (offset != 0) {
        context.calcForcesAndEnergy(true, false, groups);
        moved->saveForces();
    }
    moved->setPositions(x);
    if (offset != 0) {
        context.calcForcesAndEnergy(true, false, groups);
        moved->carryVelocities(offset);
    }
    drawVelocities(context, *moved, x, stream, kT);
}

/** Accepts a driven jump, in which all particles have moved. Errors: its end has another energy in this Context, which then stays as it was. */
void MonteCarloModeJumpImpl::takeOverDriven(ContextImpl& context, const VelocityStream& stream, double kT) {
    vector<Vec3> positions = solvent->getPositions();
    for (size_t i = 0; i < particles.size(); i++)
        positions[particles[i]] = Vec3(x[3 * i], x[3 * i + 1], x[3 * i + 2]);
    HostParticles all(context, massive);
    all.save();
    context.setPositions(positions);
    context.computeVirtualSites();
    try {
        const double energy = context.calcForcesAndEnergy(false, true, context.getIntegrator().getIntegrationForceGroups());
        requireSameEnergy(context, energy, solvent->energyAt(x.data()), kT);
    } catch (...) {
        all.restore();
        throw;
    }
    vector<double> everywhere;
    all.save();
    all.getPositions(everywhere);
    drawVelocities(context, all, everywhere, stream, kT);
}

ModeJumpStatistics MonteCarloModeJumpImpl::getStatistics() const {
    modejump_statistics counts = {};
    counts.struct_size = sizeof(counts);
    check(modejump_move_statistics(move.get(), &counts));
    ModeJumpStatistics result;
    result.attempts = counts.attempts;
    result.accepted = counts.accepted;
    result.rejected = counts.rejected;
    result.outOfSupport = counts.out_of_support;
    result.singular = counts.singular;
    result.nonFinite = counts.non_finite;
    result.constraint = counts.constraint;
    result.chirality = counts.chirality;
    result.wrongMode = counts.wrong_mode;
    result.meanLogWeight = counts.mean_log_weight;
    result.effectiveSampleSize = counts.ess;
    result.lastLogAcceptance = lastLogAcceptance;
    result.likelihood = (counts.flags & MODEJUMP_BY_SURROGATE) != 0 ? "surrogate" : "exact";
    result.screened = counts.screened;
    result.exactEvaluations = counts.exact_evaluations;
    result.correctionVariance = counts.correction_variance;
    result.expectedAcceptance = counts.expected_acceptance;
    result.expectedAcceptanceError = counts.expected_acceptance_error;
    if (solvent) {
        result.relaxations = solvent->trajectories;
        result.relaxationsAccepted = solvent->accepted;
    }
    result.advice = advice(result, owner, *model, particles.size(), massive.size(), solvent != nullptr);
    return result;
}

/** Warns once per Context, as soon as there are enough attempts to judge; x is the configuration after the last of them. */
void MonteCarloModeJumpImpl::warnOfAcceptance(const double* box) {
    if (warnings.haveJudged())
        return;
    const ModeJumpStatistics statistics = getStatistics();
    if (!warnings.judges(statistics))
        return;
    const char* labels = nullptr;
    // another error, such as one of a GPU, will end an attempt
    if (statistics.accepted == 0 && modejump_model_check_labels(model->handle(), x.size(), x.data(), box) == MODEJUMP_INVALID_INPUT)
        modejump_last_error(&labels);
    if (labels != nullptr)
        cerr << "MonteCarloModeJump: none of " << statistics.attempts << " attempts was accepted with the model " << model->name
             << ": " << labels << endl;
    else if (!statistics.advice.empty())
        cerr << statistics.advice << endl;
}

void MonteCarloModeJumpImpl::resetStatistics() {
    lastLogAcceptance = 0;
    if (solvent)
        solvent->trajectories = solvent->accepted = 0;
    check(modejump_move_reset_statistics(move.get()));
}

vector<double> MonteCarloModeJumpImpl::getLogWeights() const {
    uint64_t n = 0;
    check(modejump_move_log_weights(move.get(), 0, nullptr, &n));
    vector<double> weights(n);
    check(modejump_move_log_weights(move.get(), n, weights.data(), &n));
    return weights;
}

} // namespace ModeJumpPlugin
