#ifndef MODEJUMP_VELOCITIES_H_
#define MODEJUMP_VELOCITIES_H_

#include "Philox.h"
#include "openmm/Vec3.h"

#include <vector>

namespace OpenMM {
class ContextImpl;
}

namespace ModeJumpPlugin {

/**
 * Gives the particles new velocities, in the distribution that the integrator keeps at the Context's positions,
 * projected on the constraints; without momentum of the whole if the System has a CMMotionRemover. Kept velocities
 * would lose their components along constraints that now point elsewhere, which cools the System.
 *
 * @param positions   where all particles are
 * @param velocities  of all particles; those that are not drawn keep theirs
 */
void drawVelocities(OpenMM::ContextImpl& context, const std::vector<OpenMM::Vec3>& positions, const std::vector<int>& particles,
                    const VelocityStream& stream, double kT, std::vector<OpenMM::Vec3>& velocities);

} // namespace ModeJumpPlugin

#endif
