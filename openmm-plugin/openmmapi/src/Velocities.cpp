#include "Velocities.h"

#include "Thermostat.h"
#include "openmm/CMMotionRemover.h"
#include "openmm/internal/ContextImpl.h"

#include <cmath>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

bool removesMomentum(const System& system) {
    for (int i = 0; i < system.getNumForces(); i++)
        if (dynamic_cast<const CMMotionRemover*>(&system.getForce(i)) != nullptr)
            return true;
    return false;
}

/** Subtracts the velocity of the centre of mass, as a CMMotionRemover would only do at the start of the next step. */
void removeMomentum(const System& system, vector<Vec3>& velocities) {
    Vec3 momentum;
    double total = 0;
    for (int i = 0; i < system.getNumParticles(); i++) {
        momentum += velocities[i] * system.getParticleMass(i);
        total += system.getParticleMass(i);
    }
    for (int i = 0; i < system.getNumParticles(); i++)
        if (system.getParticleMass(i) > 0)
            velocities[i] -= momentum * (1 / total);
}

void place(ContextImpl& context, const vector<Vec3>& positions) {
    context.setPositions(positions);
    context.computeVirtualSites();
}

// From drawn velocities xi to those that a leap-frog integrator stores, offset = h/2 behind the positions. For a
// harmonic mode the middle scheme (Zhang et al., J. Phys. Chem. A 2019, 123, 6056) keeps x canonical and stored
// velocities v = xi (1 - h^2 w^2/4)^1/2 - h/2 F(x)/m of variance kT/m exactly. To draw v - h/2 F(x)/m with v
// Maxwell-Boltzmann, as Context::setVelocitiesToTemperature does, is too hot by a factor 1 + h^2 w^2/4: 8 % for C-H
// bonds at 1 fs. With the force taken at x - h/4 xi the factor is 1 + h^4 w^4/64.
void shiftVelocities(ContextImpl& context, const vector<Vec3>& positions, const vector<int>& particles, double offset,
                     vector<Vec3>& velocities) {
    context.getVelocities(velocities);
    vector<Vec3> displaced = positions, forces;
    for (int particle : particles)
        displaced[particle] -= velocities[particle] * (0.5 * offset);
    place(context, displaced);
    context.calcForcesAndEnergy(true, false, context.getIntegrator().getIntegrationForceGroups());
    context.getForces(forces);
    for (int particle : particles)
        velocities[particle] -= forces[particle] * (offset / context.getSystem().getParticleMass(particle));
}

} // namespace

void drawVelocities(ContextImpl& context, const vector<Vec3>& positions, const vector<int>& particles,
                    const VelocityStream& stream, double kT, vector<Vec3>& velocities) {
    const System& system = context.getSystem();
    const double offset = velocityTimeOffset(context.getIntegrator());
    const double tolerance = context.getIntegrator().getConstraintTolerance();
    for (size_t i = 0; i < particles.size(); i++) {
        const auto first = stream.normals(static_cast<uint32_t>(2 * i));
        const auto second = stream.normals(static_cast<uint32_t>(2 * i + 1));
        velocities[particles[i]] =
            Vec3(first[0], first[1], second[0]) * sqrt(kT / system.getParticleMass(particles[i]));
    }
    context.setVelocities(velocities);
    context.applyVelocityConstraints(tolerance);
    if (offset != 0) {
        shiftVelocities(context, positions, particles, offset, velocities);
        place(context, positions);
    }
    const bool still = removesMomentum(system);
    if (still)
        removeMomentum(system, velocities);
    if (offset != 0 || still) {
        context.setVelocities(velocities);
        context.applyVelocityConstraints(tolerance);
    }
}

} // namespace ModeJumpPlugin
