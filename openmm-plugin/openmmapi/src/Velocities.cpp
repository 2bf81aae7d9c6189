#include "Velocities.h"

#include "Interruption.h"
#include "Space.h"
#include "Thermostat.h"
#include "openmm/Integrator.h"
#include "openmm/internal/ContextImpl.h"

#include <cmath>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

Vec3 momentumOf(const System& system, const vector<int>& particles, const vector<double>& v) {
    Vec3 momentum;
    for (size_t i = 0; i < particles.size(); i++)
        momentum += Vec3(v[3 * i], v[3 * i + 1], v[3 * i + 2]) * system.getParticleMass(particles[i]);
    return momentum;
}

/** Adds a common velocity that gives them this momentum: Maxwell-Boltzmann velocities become those conditioned on it. */
void giveMomentum(const System& system, const vector<int>& particles, const Vec3& momentum, vector<double>& v) {
    double mass = 0;
    for (int particle : particles)
        mass += system.getParticleMass(particle);
    const Vec3 shift = (momentum - momentumOf(system, particles, v)) * (1 / mass);
    for (size_t j = 0; j < v.size(); j++)
        v[j] += shift[j % 3];
}

// Converts drawn velocities xi to those that a leap-frog integrator stores, offset = h/2 behind the positions. For a harmonic
// mode the middle scheme (Zhang et al., J. Phys. Chem. A 2019, 123, 6056) keeps x canonical and stores velocities v = xi (1 - h^2
// w^2/4)^1/2 - h/2 F(x)/m, of variance kT/m exactly. Drawing v - h/2 F(x)/m with v Maxwell-Boltzmann, as
// Context::setVelocitiesToTemperature does, is too hot by a factor 1 + h^2 w^2/4: 8 % for C-H bonds at 1 fs. With the force taken
// at x - h/4 xi the factor is 1 + h^4 w^4/64.
void shiftVelocities(ContextImpl& context, MovedParticles& moved, const vector<double>& x, double offset, vector<double>& v) {
    vector<double> displaced = x, f;
    for (size_t j = 0; j < x.size(); j++)
        displaced[j] -= 0.5 * offset * v[j];
    const auto forcesHere = [&] {
        context.calcForcesAndEnergy(true, false, context.getIntegrator().getIntegrationForceGroups());
        moved.getForces(f);
    };
    moved.save();
    try {
        moved.setPositions(displaced);
        forcesHere();
    } catch (const OpenMMException& error) {
        moved.restore();
        endIfInterrupted(error);
        // no forces a quarter of a step away: those at x, which has an energy, differ little, and this is rare
        forcesHere();
    }
    moved.restore();
    for (size_t j = 0; j < v.size(); j++)
        v[j] -= f[j] * (offset / context.getSystem().getParticleMass(moved.particles[j / 3]));
}

} // namespace

void drawVelocities(ContextImpl& context, MovedParticles& moved, const vector<double>& x, const VelocityStream& stream, double kT) {
    const System& system = context.getSystem();
    const double offset = velocityTimeOffset(context.getIntegrator());
    const double tolerance = context.getIntegrator().getConstraintTolerance();
    const bool constrained = system.getNumConstraints() > 0, removed = removesMomentum(system);
    // With a remover, velocities follow the distribution conditioned on the total momentum. Particles that stay keep their
    // velocities, so those that move keep the momentum that they have together. Drawing this momentum too and removing it from
    // all particles would cool the relative motion of the two parts, to 1/(1 + M_moved/M); leaving none at all would heat it by
    // what the thermostat has added since the remover acted.
    Vec3 momentum;
    if (removed) {
        vector<double> before;
        moved.getVelocities(before);
        momentum = momentumOf(system, moved.particles, before);
    }
    vector<double> v;
    for (size_t i = 0; i < moved.particles.size(); i++) {
        const auto first = stream.normals(static_cast<uint32_t>(2 * i));
        const auto second = stream.normals(static_cast<uint32_t>(2 * i + 1));
        const double width = sqrt(kT / system.getParticleMass(moved.particles[i]));
        v.insert(v.end(), {first[0] * width, first[1] * width, second[0] * width});
    }
    if (constrained && offset != 0) {
        moved.setVelocities(v);
        context.applyVelocityConstraints(tolerance);
        moved.getVelocities(v);
    }
    if (removed)
        giveMomentum(system, moved.particles, momentum, v);
    if (offset != 0) {
        shiftVelocities(context, moved, x, offset, v);
        if (removed)
            giveMomentum(system, moved.particles, momentum, v);
    }
    moved.setVelocities(v);
    if (constrained)
        context.applyVelocityConstraints(tolerance);
}

} // namespace ModeJumpPlugin
