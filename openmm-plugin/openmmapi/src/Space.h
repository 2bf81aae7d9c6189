// Whether a System's dynamics and its energies leave the place of the whole alone.
#ifndef MODEJUMP_SPACE_H_
#define MODEJUMP_SPACE_H_

#include "openmm/System.h"

namespace ModeJumpPlugin {

/** Whether the System has a CMMotionRemover. */
bool removesMomentum(const OpenMM::System& system);

/** Whether energies depend on where particles are in space: in a field, or beside particles that have no mass. */
bool isHeldInSpace(const OpenMM::System& system);

} // namespace ModeJumpPlugin

#endif
