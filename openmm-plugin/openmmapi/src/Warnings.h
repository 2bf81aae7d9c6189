// What is said on standard error, each at most once per Context.
#ifndef MODEJUMP_WARNINGS_H_
#define MODEJUMP_WARNINGS_H_

#include "Model.h"
#include "MonteCarloModeJump.h"

#include <string>

namespace ModeJumpPlugin {

class Warnings {
public:
    /** The model was trained for another temperature, and does not follow that of the simulation. */
    void modelTemperature(const Model& model, double kelvin);

    /** The temperature that was set differs from the one of the dynamics. */
    void temperature(double set, double ofDynamics);

    /** Steps are repeated. The repetition of random numbers is right if a checkpoint is continued, and only then. */
    void repetition(long long step, long long last);

    /** OpenMM has no energy of a proposal. */
    void failure(const std::string& reason);

    /** Whether there are enough attempts to judge their acceptance; true once. */
    bool judges(const ModeJumpStatistics& statistics);
    bool haveJudged() const { return judged; }

private:
    bool toldOfModelTemperature = false, toldOfTemperature = false, toldOfRepetition = false, toldOfFailure = false, judged = false;
};

/** What could be done about jumps, or relaxations on driven paths, that are hardly ever accepted; empty if too few were made to tell. */
std::string advice(const ModeJumpStatistics& statistics, const MonteCarloModeJump& force, const Model& model, size_t movedParticles,
                   size_t allParticles, bool driven);

} // namespace ModeJumpPlugin

#endif
