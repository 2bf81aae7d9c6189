#include "Warnings.h"

#include <cmath>
#include <iostream>
#include <sstream>
#include <utility>

using namespace std;

namespace ModeJumpPlugin {

namespace {

/** Expected acceptance below which advice is given, and the number of attempts before it. */
const double LOW_ACCEPTANCE = 0.01;
const uint64_t ADVISED_AFTER = 100;
/** Share of the relaxations on driven paths, below which they should be shorter. */
const double LOW_RELAXATION = 0.5;

bool isFirst(bool& told) { return !exchange(told, true); }

} // namespace

void Warnings::modelTemperature(const Model& model, double kelvin) {
    if (model.steerable || model.temperature <= 0 || abs(kelvin - model.temperature) <= 1e-3 * model.temperature)
        return;
    if (isFirst(toldOfModelTemperature))
        cerr << "MonteCarloModeJump: the model " << model.name << " was trained for " << model.temperature
             << " K, but the simulation is at " << kelvin << " K. Fewer moves will be accepted." << endl;
}

void Warnings::temperature(double set, double ofDynamics) {
    if (ofDynamics <= 0 || abs(ofDynamics - set) <= 1e-3)
        return;
    if (isFirst(toldOfTemperature))
        cerr << "MonteCarloModeJump: its temperature is set to " << set << " K, but that of the integrator or thermostat is " << ofDynamics
             << " K: jumps and dynamics sample different ensembles, and averages are those of neither. Do not set the temperature, so that each "
             << "attempt uses that of the integrator or thermostat" << endl;
}

void Warnings::repetition(long long step, long long last) {
    if (isFirst(toldOfRepetition))
        cerr << "MonteCarloModeJump: an attempt at step " << step << " comes after one at step " << last << ": the step count was reset, and with "
             << "the given seed jumps repeat the random numbers of these steps. This is right for a run continued from a checkpoint; for "
             << "independent runs set the Context parameter " << MonteCarloModeJump::Replica() << " to a different value in each, or set no seed; "
             << "for replica exchange call modejump.assign_replica_streams" << endl;
}

void Warnings::failure(const string& reason) {
    if (isFirst(toldOfFailure))
        cerr << "MonteCarloModeJump: OpenMM could not compute the energy of a proposal, or of a configuration on the path to it; the proposal is "
             << "rejected: " << reason << endl;
}

bool Warnings::judges(const ModeJumpStatistics& statistics) { return statistics.attempts >= ADVISED_AFTER && isFirst(judged); }

string advice(const ModeJumpStatistics& s, const MonteCarloModeJump& force, const Model& model, size_t movedParticles, size_t allParticles,
              bool driven) {
    const double likely = s.expectedAcceptance + 2 * s.expectedAcceptanceError;
    ostringstream text;
    text.precision(2);
    if (s.relaxations >= ADVISED_AFTER && s.relaxationsAccepted < LOW_RELAXATION * s.relaxations) {
        text << "MonteCarloModeJump: only " << s.relaxationsAccepted << " of " << s.relaxations << " relaxations on driven paths passed their test, "
             << "and the others were in vain: use a smaller relaxation_timestep (now " << force.getRelaxationStepSize() << " ps) or fewer relaxation_steps";
        return text.str();
    }
    if (movedParticles == allParticles || s.attempts < ADVISED_AFTER || !(likely < LOW_ACCEPTANCE))
        return "";
    text << "MonteCarloModeJump: " << s.accepted << " of " << s.attempts << " attempts were accepted; the expected acceptance is " << s.expectedAcceptance
         << " +- " << s.expectedAcceptanceError << " (mean acceptance probability). The model " << model.name
         << " moves " << movedParticles << " of " << allParticles << " particles, and the others ";
    if (driven)
        text << "cannot relax fast enough: use a longer driven path (now " << force.getDrivenSteps()
             << " steps) or longer relaxations, or an implicit solvent and learned replica exchange";
    else
        text << "overlap with its proposals: let them relax (setDrivenPath, in Python driven_steps), or use an implicit "
                "solvent and learned replica exchange";
    return text.str();
}

} // namespace ModeJumpPlugin
