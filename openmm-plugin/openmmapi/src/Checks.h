// Checks that a model fits a System; every refusal names the first particle or bond at fault.
#ifndef MODEJUMP_CHECKS_H_
#define MODEJUMP_CHECKS_H_

#include "Model.h"
#include "openmm/System.h"

#include <cstdint>
#include <vector>

namespace ModeJumpPlugin {

/** Returns the given particles, or all for an empty list. Throws if they differ from the atoms of the model in number, order or kind. */
std::vector<int> checkedParticles(const OpenMM::System& system, const std::vector<int>& given, const Model& model);

/** Throws if the bonds of the System among the particles differ from those of the model. */
void checkBonds(const OpenMM::System& system, const std::vector<int>& particles, const Model& model);

struct Constraints {
    /** Pairs of model atoms, flattened. */
    std::vector<uint64_t> atoms;
    std::vector<double> lengths;
};

/** Constraints among the particles. Throws if one ties a moved particle to one that stays. */
Constraints movedConstraints(const OpenMM::System& system, const std::vector<int>& particles, const Model& model);

} // namespace ModeJumpPlugin

#endif
