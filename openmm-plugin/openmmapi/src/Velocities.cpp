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

// From drawn velocities xi to those that a leap-frog integrator stores, offset = h/2 behind the positions. For a
// harmonic mode the middle scheme (Zhang et al., J. Phys. Chem. A 2019, 123, 6056) keeps x canonical and stored
// velocities v = xi (1 - h^2 w^2/4)^1/2 - h/2 F(x)/m of variance kT/m exactly. To draw v - h/2 F(x)/m with v
// Maxwell-Boltzmann, as Context::setVelocitiesToTemperature does, is too hot by a factor 1 + h^2 w^2/4: 8 % for C-H
// bonds at 1 fs. With the force taken at x - h/4 xi the factor is 1 + h^4 w^4/64.
void shiftVelocities(ContextImpl& context, MovedParticles& moved, const vector<double>& x, double offset, vector<double>& v) {
    vector<double> displaced = x, f;
    for (size_t j = 0; j < x.size(); j++)
        displaced[j] -= 0.5 * offset * v[j];
    moved.save();
    moved.setPositions(displaced);
    context.calcForcesAndEnergy(true, false, context.getIntegrator().getIntegrationForceGroups());
    moved.getForces(f);
    moved.restore();
    for (size_t j = 0; j < v.size(); j++)
        v[j] -= f[j] * (offset / context.getSystem().getParticleMass(moved.particles[j / 3]));
}

} // namespace

void drawVelocities(ContextImpl& context, MovedParticles& moved, const vector<double>& x, const VelocityStream& stream, double kT) {
    const System& system = context.getSystem();
    const double offset = velocityTimeOffset(context.getIntegrator());
    const double tolerance = context.getIntegrator().getConstraintTolerance();
    const bool constrained = system.getNumConstraints() > 0, still = removesMomentum(system);
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
    if (offset != 0)
        shiftVelocities(context, moved, x, offset, v);
    moved.setVelocities(v);
    if (still)
        moved.removeMomentum();
    if (constrained)
        context.applyVelocityConstraints(tolerance);
}

} // namespace ModeJumpPlugin
