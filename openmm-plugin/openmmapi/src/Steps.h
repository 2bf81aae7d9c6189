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
    /** How many blocks it is in; those that begin and end one are outside of it. */
    int depth;

    bool assigns() const;
    bool begins() const;
};

std::vector<Step> stepsOf(const OpenMM::CustomIntegrator& integrator);

/** Variables and functions; a number such as 1e5 has none. */
std::set<std::string> namesIn(const std::string& expression);

/** The group of f3 or energy3 by "f" or "energy"; -1 for another name. */
int groupOf(const std::string& name, const std::string& quantity);

/** Whether the name is `f`, or f of a group. */
bool names(const std::string& name, const std::string& quantity);

} // namespace ModeJumpPlugin

#endif
