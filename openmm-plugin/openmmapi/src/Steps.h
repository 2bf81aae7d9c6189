// The steps of a CustomIntegrator, and the names in their expressions.
#ifndef MODEJUMP_STEPS_H_
#define MODEJUMP_STEPS_H_

#include "openmm/CustomIntegrator.h"

#include <set>
#include <string>
#include <vector>

namespace ModeJumpPlugin {

struct Step {
    OpenMM::CustomIntegrator::ComputationType type;
    std::string variable, expression;
    /** Number of blocks around the step; the steps that begin and end a block are outside it. */
    int depth;

    bool assigns() const;
    bool begins() const;
};

std::vector<Step> stepsOf(const OpenMM::CustomIntegrator& integrator);

/** Names of variables and functions in an expression; a number such as 1e5 contains none. */
std::set<std::string> namesIn(const std::string& expression);

/** The group in a name such as f3 or energy3, for the quantity "f" or "energy"; -1 for another name. */
int groupOf(const std::string& name, const std::string& quantity);

/** Whether the name is the quantity, such as `f`, or that of a group. */
bool names(const std::string& name, const std::string& quantity);

} // namespace ModeJumpPlugin

#endif
