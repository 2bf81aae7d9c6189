// Whether the dynamics and the energies of a System are invariant under translation of the whole.
#ifndef MODEJUMP_SPACE_H_
#define MODEJUMP_SPACE_H_

#include "openmm/System.h"

namespace ModeJumpPlugin {

/** Whether the System has a CMMotionRemover. */
bool removesMomentum(const OpenMM::System& system);

/** Whether energies depend on the absolute positions of particles: in an external field, or relative to particles that have no mass. */
bool isHeldInSpace(const OpenMM::System& system);

} // namespace ModeJumpPlugin

#endif
