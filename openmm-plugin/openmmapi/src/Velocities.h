#ifndef MODEJUMP_VELOCITIES_H_
#define MODEJUMP_VELOCITIES_H_

#include "MovedParticles.h"
#include "Philox.h"

namespace OpenMM {
class ContextImpl;
}

namespace ModeJumpPlugin {

/**
 * Draws new velocities for the particles, from the distribution that the integrator keeps at the Context's positions, projected onto the
 * constraints; with their current momentum if the System has a CMMotionRemover. Kept velocities would lose their components along
 * constraints that now point elsewhere, which cools the System.
 *
 * @param x  positions of the particles
 */
void drawVelocities(OpenMM::ContextImpl& context, MovedParticles& moved, const std::vector<double>& x, const VelocityStream& stream, double kT);

} // namespace ModeJumpPlugin

#endif
