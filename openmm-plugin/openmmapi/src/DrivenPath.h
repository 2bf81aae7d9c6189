// What a driven path needs of the Context whose particles it moves: a copy of its System, and the same energies.
#ifndef MODEJUMP_DRIVENPATH_H_
#define MODEJUMP_DRIVENPATH_H_

#include "MonteCarloModeJump.h"
#include "Solvent.h"

#include <memory>
#include <vector>

namespace ModeJumpPlugin {

/** The particles that relax while the solute is driven. Throws if the path is too long, or the System cannot be copied. */
std::unique_ptr<Solvent> solventAround(const std::vector<int>& solute, const MonteCarloModeJump& force, OpenMM::ContextImpl& context);

/** Throws if the energies of a configuration in this Context and on the path, in kJ/mol, differ by more than rounding. */
void requireSameEnergy(OpenMM::ContextImpl& context, double energy, double onPath, double kT);

} // namespace ModeJumpPlugin

#endif
