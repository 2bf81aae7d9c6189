#include "internal/MonteCarloModeJumpImpl.h"

#include "Checks.h"
#include "Model.h"
#include "Thermostat.h"
#include "Velocities.h"
#include "modejump.h"
#include "openmm/OpenMMException.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/kernels.h"
#include "openmm/reference/SimTKOpenMMRealType.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <iostream>
#include <random>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

const uint64_t MAX_REPLICA = 1u << 12;
/** Of the 64 bits of a step number explicit attempts count in those from here on: no simulation makes 2^40 steps. */
const int EXPLICIT_BITS = 40;
/** Proposals drawn ahead at a time; a generator is some times faster in batches. */
const uint64_t DRAWN_AHEAD = 64;

/** Two moves in one System must not use the same numbers. */
uint64_t moveNumber(ContextImpl& context, const ForceImpl* self) {
    uint64_t number = 0;
    for (const ForceImpl* impl : context.getForceImpls()) {
        if (impl == self)
            return number;
        number += dynamic_cast<const MonteCarloModeJumpImpl*>(impl) != nullptr;
    }
    return number;
}

bool usesSinglePrecision(ContextImpl& context) {
    const vector<string>& names = context.getPlatform().getPropertyNames();
    return find(names.begin(), names.end(), "Precision") != names.end() &&
           context.getPlatform().getPropertyValue(context.getOwner(), "Precision") == "single";
}

} // namespace

/**
 * The target of one attempt: reduced potentials of proposals. The Context is as it was after each evaluation, so that a
 * rejection has nothing to undo. A host round trip keeps double precision; single precision has to be kept on the device,
 * and there positions may be set only once between saving and restoring, since OpenMM may reorder atoms when it computes.
 */
struct MonteCarloModeJumpImpl::Trial {
    MonteCarloModeJumpImpl& impl;
    ContextImpl& context;
    int groups;
    double kT;
    exception_ptr failure;

    double energyOf(const double* x) {
        impl.trialPositions = impl.positions;
        for (size_t i = 0; i < impl.particles.size(); i++)
            impl.trialPositions[impl.particles[i]] = Vec3(x[3 * i], x[3 * i + 1], x[3 * i + 2]);
        if (impl.keeper)
            impl.keeper->getAs<ApplyMonteCarloBarostatKernel>().saveCoordinates(context);
        struct Restore {
            Trial& trial;
            ~Restore() {
                if (trial.impl.keeper)
                    trial.impl.keeper->getAs<ApplyMonteCarloBarostatKernel>().restoreCoordinates(trial.context);
                else
                    trial.context.setPositions(trial.impl.positions);
            }
        } restore{*this};
        context.setPositions(impl.trialPositions);
        context.computeVirtualSites();
        return context.calcForcesAndEnergy(false, true, groups);
    }

    /** modejump_target.reduced_potential */
    static int32_t reducedPotential(void* user, uint64_t n, const double* x, double* u) {
        Trial& trial = *static_cast<Trial*>(user);
        try {
            for (uint64_t row = 0; row < n; row++)
                u[row] = trial.energyOf(x + row * 3 * trial.impl.particles.size()) / trial.kT;
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

MonteCarloModeJumpImpl::~MonteCarloModeJumpImpl() { modejump_move_free(move); }

map<string, double> MonteCarloModeJumpImpl::getDefaultParameters() {
    return {{MonteCarloModeJump::Replica(), static_cast<double>(owner.getDefaultReplica())}};
}

void MonteCarloModeJumpImpl::initialize(ContextImpl& context) {
    const System& system = context.getSystem();
    model = owner.getModel();
    particles = checkedParticles(system, owner.getParticles(), *model);
    checkBonds(system, particles, *model);
    screen = owner.getScreeningModel();
    if (screen) {
        checkedParticles(system, particles, *screen);
        checkBonds(system, particles, *screen);
    }
    checkIntegrator(context.getIntegrator());
    int massive = 0;
    for (int i = 0; i < system.getNumParticles(); i++)
        massive += system.getParticleMass(i) > 0;
    allMoved = massive == static_cast<int>(particles.size());
    const uint64_t chosen =
        owner.getRandomNumberSeed() != 0 ? static_cast<uint32_t>(owner.getRandomNumberSeed()) : random_device()();
    seed = chosen + (moveNumber(context, this) << 32);
    createMove(context);
}

void MonteCarloModeJumpImpl::createMove(ContextImpl& context) {
    frequency = owner.getFrequency();
    temperature = owner.getTemperature();
    modejump_move_options options = {};
    options.struct_size = sizeof(options);
    check(modejump_move_options_init(&options));
    options.kind = owner.getNumProposals() > 1 ? MODEJUMP_ISIR : MODEJUMP_INDEPENDENCE;
    if (owner.getAcceptance() == MonteCarloModeJump::Acceptance::Surrogate)
        options.kind = MODEJUMP_SURROGATE;
    options.n_proposals = owner.getNumProposals();
    options.seed = seed;
    options.stride = frequency;
    options.batch = max<uint64_t>(1, DRAWN_AHEAD / options.n_proposals);
    options.draw_ahead = owner.getDrawAhead() ? 1 : 0;
    modejump_move_free(move);
    move = nullptr;
    if (screen)
        check(modejump_move_delayed_acceptance_new(model->handle(), screen->handle(), &options, &move));
    else
        check(modejump_move_new(model->handle(), &options, &move));
    const Constraints constraints = movedConstraints(context.getSystem(), particles, *model);
    if (!constraints.lengths.empty()) {
        vector<double> masses;
        for (int particle : particles)
            masses.push_back(context.getSystem().getParticleMass(particle));
        check(modejump_move_set_constraints(move, constraints.lengths.size(), constraints.atoms.data(),
                                            constraints.lengths.data(), masses.data()));
    }
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
    if (!warned && model->temperature > 0 && abs(kelvin - model->temperature) > 1e-3 * model->temperature) {
        warned = true;
        cerr << "MonteCarloModeJump: the model " << model->name << " was trained for " << model->temperature
             << " K, the simulation is at " << kelvin << " K. Fewer moves will be accepted." << endl;
    }
    return BOLTZ * kelvin;
}

// Called at the start of every step. The step count is part of checkpoints and States, so moves continue where they were;
// a counter of our own would not.
void MonteCarloModeJumpImpl::updateContextState(ContextImpl& context, bool& forcesInvalid) {
    const long long step = context.getStepCount();
    if (frequency == 0 || step == 0 || step % frequency != 0)
        return;
    // Also after a rejection: to compute energies alone clears the forces on some platforms.
    forcesInvalid = true;
    attempt(context, step, findReplica(context));
}

bool MonteCarloModeJumpImpl::attempt(ContextImpl& context) {
    const long long step = context.getStepCount();
    explicitCount = step == explicitStep ? explicitCount + 1 : 1;
    explicitStep = step;
    return attempt(context, explicitCount << EXPLICIT_BITS | static_cast<uint64_t>(step), findReplica(context));
}

bool MonteCarloModeJumpImpl::attempt(ContextImpl& context, uint64_t step, uint64_t replica) {
    if (!keeper && usesSinglePrecision(context)) {
        keeper = make_unique<Kernel>(context.getPlatform().createKernel(ApplyMonteCarloBarostatKernel::Name(), context));
        keeper->getAs<ApplyMonteCarloBarostatKernel>().initialize(context.getSystem(), owner, 1);
    }
    Trial trial{*this, context, context.getIntegrator().getIntegrationForceGroups(), findThermalEnergy(context), nullptr};
    const modejump_target target = {sizeof(modejump_target), 0, &trial, &Trial::reducedPotential, nullptr};

    // Particles that stay keep their on-step velocity, for which the force here is needed.
    const bool carry = !allMoved && velocityTimeOffset(context.getIntegrator()) != 0;
    const double energy = context.calcForcesAndEnergy(carry, true, trial.groups);
    if (carry)
        context.getForces(forces);
    context.getPositions(positions);
    x.resize(3 * particles.size());
    for (size_t i = 0; i < particles.size(); i++)
        for (int k = 0; k < 3; k++)
            x[3 * i + k] = positions[particles[i]][k];
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
    const int status = modejump_move_attempt(move, &target, &state, &outcome);
    if (trial.failure)
        rethrow_exception(trial.failure);
    check(status);
    lastLogAcceptance = outcome.log_acceptance;
    if (outcome.outcome != 0)
        return false;
    accept(context, x, carry, VelocityStream(seed, step, replica), trial.kT);
    return true;
}

void MonteCarloModeJumpImpl::accept(ContextImpl& context, const vector<double>& x, bool carry,
                                    const VelocityStream& stream, double kT) {
    for (size_t i = 0; i < particles.size(); i++)
        positions[particles[i]] = Vec3(x[3 * i], x[3 * i + 1], x[3 * i + 2]);
    context.setPositions(positions);
    context.computeVirtualSites();
    context.getVelocities(velocities);
    if (carry)
        carryVelocities(context, velocityTimeOffset(context.getIntegrator()));
    drawVelocities(context, positions, particles, stream, kT, velocities);
}

// Particles that stay keep their on-step velocity v = v_stored + offset F/m while their force changes.
void MonteCarloModeJumpImpl::carryVelocities(ContextImpl& context, double offset) {
    context.calcForcesAndEnergy(true, false, context.getIntegrator().getIntegrationForceGroups());
    context.getForces(newForces);
    const System& system = context.getSystem();
    for (int i = 0; i < system.getNumParticles(); i++)
        if (system.getParticleMass(i) > 0)
            velocities[i] += (forces[i] - newForces[i]) * (offset / system.getParticleMass(i));
}

ModeJumpStatistics MonteCarloModeJumpImpl::getStatistics() const {
    modejump_statistics counts = {};
    counts.struct_size = sizeof(counts);
    check(modejump_move_statistics(move, &counts));
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
    return result;
}

void MonteCarloModeJumpImpl::resetStatistics() {
    lastLogAcceptance = 0;
    check(modejump_move_reset_statistics(move));
}

vector<double> MonteCarloModeJumpImpl::getLogWeights() const {
    uint64_t n = 0;
    check(modejump_move_log_weights(move, 0, nullptr, &n));
    vector<double> weights(n);
    check(modejump_move_log_weights(move, n, weights.data(), &n));
    return weights;
}

} // namespace ModeJumpPlugin
