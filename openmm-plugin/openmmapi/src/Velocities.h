#ifndef MODEJUMP_VELOCITIES_H_
#define MODEJUMP_VELOCITIES_H_

#include "MovedParticles.h"
#include "Philox.h"

namespace OpenMM {
class ContextImpl;
}

namespace ModeJumpPlugin {

/**
 * Gives the particles new velocities, in the distribution that the integrator keeps at the Context's positions,
 * projected on the constraints; with the momentum that they have now if the System has a CMMotionRemover. Kept velocities
 * would lose their components along constraints that now point elsewhere, which cools the System.
 *
 * @param x  where the particles are
 */
void drawVelocities(OpenMM::ContextImpl& context, MovedParticles& moved, const std::vector<double>& x, const VelocityStream& stream, double kT);

} // namespace ModeJumpPlugin

#endif
