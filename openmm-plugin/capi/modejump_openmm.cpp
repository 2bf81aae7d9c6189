#include "modejump_openmm.h"

#include "Model.h"
#include "MonteCarloModeJump.h"
#include "Names.h"
#include "Thermostat.h"
#include "Velocities.h"
#include "openmm/OpenMMException.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/reference/SimTKOpenMMRealType.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <sstream>

using namespace ModeJumpPlugin;
using OpenMM::Context;
using OpenMM::Force;
using OpenMM::OpenMMException;
using std::string;

namespace {

thread_local string lastError;

MonteCarloModeJump& cast(void* force) {
    auto* found = dynamic_cast<MonteCarloModeJump*>(static_cast<Force*>(force));
    if (found == nullptr)
        throw OpenMMException("this Force is not a MonteCarloModeJump");
    return *found;
}

/** Gives access to the implementation of a Context, which OpenMM otherwise passes only to Forces. */
struct Peek : Force {
    static OpenMM::ContextImpl& implOf(Context& context) { return Peek().getContextImpl(context); }
    OpenMM::ForceImpl* createImpl() const override { return nullptr; }
};

Context& contextOf(void* context) { return *static_cast<Context*>(context); }

/** Runs a body so that no exception crosses into C. */
int guarded(const std::function<void()>& body) {
    try {
        body();
        return 0;
    } catch (const std::exception& error) {
        lastError = error.what();
    } catch (...) {
        lastError = "unknown C++ exception";
    }
    return -1;
}

/** Copies as many elements as there is room for; *n is the number of all of them. */
template <typename T, typename Count> void copyOut(const std::vector<T>& all, Count capacity, T* out, Count* n) {
    *n = static_cast<Count>(all.size());
    std::copy_n(all.begin(), std::min(capacity, *n), out);
}

int wholeNumber(const char* name, double value) {
    using Limits = std::numeric_limits<int>;
    if (value != std::floor(value) || !(value >= Limits::min() && value <= Limits::max())) {
        std::ostringstream message;
        message.precision(17);
        message << "MonteCarloModeJump: " << name << " is " << value << "; it must be a whole number from " << Limits::min() << " to "
                << Limits::max();
        throw OpenMMException(message.str());
    }
    return static_cast<int>(value);
}

[[noreturn]] void unknown(const char* name) { throw OpenMMException(string("MonteCarloModeJump has no property ") + name); }

} // namespace

uint32_t modejump_openmm_abi_version(void) { return MODEJUMP_OPENMM_ABI; }

const char* modejump_openmm_last_error(void) { return lastError.c_str(); }

int modejump_openmm_is_mode_jump(void* force) {
    return dynamic_cast<MonteCarloModeJump*>(static_cast<Force*>(force)) != nullptr;
}

int modejump_openmm_load_model(void* force) {
    return guarded([&] {
        cast(force).getModel();
        cast(force).getScreeningModel();
    });
}

int modejump_openmm_embed_model(void* force) {
    return guarded([&] { cast(force).embedModel(); });
}

int modejump_openmm_get_text(void* force, const char* name, const char** value) {
    return guarded([&] {
        const MonteCarloModeJump& move = cast(force);
        const string key = name;
        if (key == "model_file")
            *value = move.getModelFile().c_str();
        else if (key == "model_hash")
            *value = move.getModelHash().c_str();
        else if (key == "acceptance")
            *value = nameOf(ACCEPTANCES, move.getAcceptance()).c_str();
        else if (key == "precision")
            *value = nameOf(PRECISIONS, move.getPrecision()).c_str();
        else if (key == "decoding")
            *value = nameOf(DECODINGS, move.getDecoding()).c_str();
        else if (key == "screening_model_file")
            *value = move.getScreeningModelFile().c_str();
        else if (key == "screening_model_hash")
            *value = move.getScreeningModelHash().c_str();
        else
            unknown(name);
    });
}

int modejump_openmm_get(void* force, const char* name, double* value) {
    return guarded([&] {
        const MonteCarloModeJump& move = cast(force);
        const string key = name;
        if (key == "frequency")
            *value = move.getFrequency();
        else if (key == "proposals")
            *value = move.getNumProposals();
        else if (key == "seed")
            *value = move.getRandomNumberSeed();
        else if (key == "default_replica")
            *value = move.getDefaultReplica();
        else if (key == "temperature")
            *value = move.getTemperature();
        else if (key == "draw_ahead")
            *value = move.getDrawAhead();
        else if (key == "driven_steps")
            *value = move.getDrivenSteps();
        else if (key == "relaxation_steps")
            *value = move.getRelaxationSteps();
        else if (key == "relaxation_timestep")
            *value = move.getRelaxationStepSize();
        else if (key == "annealing_stages")
            *value = move.getAnnealingStages();
        else if (key == "annealing_moves")
            *value = move.getAnnealingMoves();
        else if (key == "annealing_step")
            *value = move.getAnnealingStep();
        else if (key == "leapfrog")
            *value = move.getLeapfrogSteps();
        else if (key == "rotations")
            *value = move.getRotations();
        else if (key == "segment")
            *value = move.getSegment();
        else if (key == "decoding_tolerance")
            *value = move.getDecodingTolerance();
        else if (key == "decoding_passes")
            *value = move.getDecodingPasses();
        else if (key == "model_temperature")
            *value = move.getModel()->temperature;
        else
            unknown(name);
    });
}

int modejump_openmm_set(void* force, const char* name, double value) {
    return guarded([&] {
        MonteCarloModeJump& move = cast(force);
        const string key = name;
        if (key == "frequency")
            move.setFrequency(wholeNumber(name, value));
        else if (key == "proposals")
            move.setNumProposals(wholeNumber(name, value));
        else if (key == "seed")
            move.setRandomNumberSeed(wholeNumber(name, value));
        else if (key == "default_replica")
            move.setDefaultReplica(wholeNumber(name, value));
        else if (key == "temperature")
            move.setTemperature(value);
        else if (key == "draw_ahead")
            move.setDrawAhead(value != 0);
        else if (key == "driven_steps")
            move.setDrivenPath(wholeNumber(name, value), move.getRelaxationSteps(), move.getRelaxationStepSize());
        else if (key == "relaxation_steps")
            move.setDrivenPath(move.getDrivenSteps(), wholeNumber(name, value), move.getRelaxationStepSize());
        else if (key == "relaxation_timestep")
            move.setDrivenPath(move.getDrivenSteps(), move.getRelaxationSteps(), value);
        else if (key == "annealing_stages")
            move.setAnnealing(wholeNumber(name, value), move.getAnnealingMoves(), move.getAnnealingStep());
        else if (key == "annealing_moves")
            move.setAnnealing(move.getAnnealingStages(), wholeNumber(name, value), move.getAnnealingStep());
        else if (key == "annealing_step")
            move.setAnnealing(move.getAnnealingStages(), move.getAnnealingMoves(), value);
        else if (key == "leapfrog")
            move.setLeapfrogSteps(wholeNumber(name, value));
        else if (key == "rotations")
            move.setRotations(wholeNumber(name, value));
        else if (key == "segment")
            move.setSegment(wholeNumber(name, value));
        else if (key == "decoding_tolerance")
            move.setDecodingTolerance(value);
        else if (key == "decoding_passes")
            move.setDecodingPasses(wholeNumber(name, value));
        else
            unknown(name);
    });
}

int modejump_openmm_set_particles(void* force, int n, const int* particles) {
    return guarded([&] { cast(force).setParticles(std::vector<int>(particles, particles + n)); });
}

int modejump_openmm_get_particles(void* force, int capacity, int* particles, int* n) {
    return guarded([&] { copyOut(cast(force).getParticles(), capacity, particles, n); });
}

int modejump_openmm_set_latent_walk(void* force, int n, const double* widths) {
    return guarded([&] { cast(force).setLatentWalk(std::vector<double>(widths, widths + n)); });
}

int modejump_openmm_get_latent_walk(void* force, int capacity, double* widths, int* n) {
    return guarded([&] { copyOut(cast(force).getLatentWalk(), capacity, widths, n); });
}

int modejump_openmm_attempt(void* force, void* context, int* accepted) {
    return guarded([&] { *accepted = cast(force).attempt(contextOf(context)); });
}

int modejump_openmm_check_ensemble(void* context) {
    return guarded([&] {
        OpenMM::ContextImpl& impl = Peek::implOf(contextOf(context));
        checkEnsemble(impl.getIntegrator(), impl.getSystem());
    });
}

int modejump_openmm_varies_steps(void* context, int* varies) {
    return guarded([&] { *varies = variesSteps(Peek::implOf(contextOf(context)).getIntegrator()); });
}

int modejump_openmm_find_temperature(void* context, double* kelvin) {
    return guarded([&] { *kelvin = findOneTemperature(Peek::implOf(contextOf(context))); });
}

int modejump_openmm_draw_velocities(void* context, double temperature, uint64_t seed, uint64_t step, uint64_t replica) {
    return guarded([&] {
        OpenMM::ContextImpl& impl = Peek::implOf(contextOf(context));
        std::vector<int> particles;
        for (int i = 0; i < impl.getSystem().getNumParticles(); i++)
            if (impl.getSystem().getParticleMass(i) > 0)
                particles.push_back(i);
        HostParticles massive(impl, particles);
        std::vector<double> x;
        massive.save();
        massive.getPositions(x);
        massive.setVelocities(std::vector<double>(x.size(), 0)); // so that there is no momentum to keep
        drawVelocities(impl, massive, x, VelocityStream(seed, step, replica), BOLTZ * temperature);
    });
}

int modejump_openmm_get_statistics(void* force, void* context, modejump_openmm_statistics* out) {
    return guarded([&] {
        const ModeJumpStatistics s = cast(force).getStatistics(contextOf(context));
        *out = {s.attempts,      s.accepted,            s.rejected,          s.outOfSupport, s.singular,
                s.nonFinite,     s.constraint,          s.chirality,         s.wrongMode,    s.meanLogWeight,
                s.effectiveSampleSize,
                s.lastLogAcceptance, s.screened,        s.exactEvaluations,  s.correctionVariance,
                s.expectedAcceptance, s.expectedAcceptanceError, s.relaxations, s.relaxationsAccepted,
                s.likelihood == "surrogate"};
    });
}

int modejump_openmm_get_advice(void* force, void* context, const char** text) {
    static thread_local string advice;
    return guarded([&] {
        advice = cast(force).getStatistics(contextOf(context)).advice;
        *text = advice.c_str();
    });
}

int modejump_openmm_reset_statistics(void* force, void* context) {
    return guarded([&] { cast(force).resetStatistics(contextOf(context)); });
}

int modejump_openmm_log_weights(void* force, void* context, uint64_t capacity, double* log_weights, uint64_t* n) {
    return guarded([&] {
        copyOut(cast(force).getLogWeights(contextOf(context)), capacity, log_weights, n);
    });
}

int modejump_openmm_update_parameters(void* force, void* context) {
    return guarded([&] { cast(force).updateParametersInContext(contextOf(context)); });
}
