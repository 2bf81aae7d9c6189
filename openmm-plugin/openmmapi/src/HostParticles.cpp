#include "MovedParticles.h"

#include "openmm/MonteCarloBarostat.h"
#include "openmm/Platform.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/kernels.h"

#include <algorithm>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

bool usesSinglePrecision(ContextImpl& context) {
    const vector<string>& names = context.getPlatform().getPropertyNames();
    return find(names.begin(), names.end(), "Precision") != names.end() &&
           context.getPlatform().getPropertyValue(context.getOwner(), "Precision") == "single";
}

void pick(const vector<int>& particles, const vector<Vec3>& all, vector<double>& some) {
    some.resize(3 * particles.size());
    for (size_t i = 0; i < particles.size(); i++)
        for (int k = 0; k < 3; k++)
            some[3 * i + k] = all[particles[i]][k];
}

void place(const vector<int>& particles, const vector<double>& some, vector<Vec3>& all) {
    for (size_t i = 0; i < particles.size(); i++)
        all[particles[i]] = Vec3(some[3 * i], some[3 * i + 1], some[3 * i + 2]);
}

} // namespace

unique_ptr<MovedParticles> MovedParticles::of(ContextImpl& context, const vector<int>& particles) {
    unique_ptr<MovedParticles> onDevice = particlesOnDevice(context, particles);
    return onDevice ? move(onDevice) : make_unique<HostParticles>(context, particles);
}

// A round trip through the host preserves double precision. Single precision must be kept on the device, where positions may be
// set only once between saving and restoring, since OpenMM may reorder atoms when they are set.
HostParticles::HostParticles(ContextImpl& context, const vector<int>& particles) : MovedParticles(particles), context(context) {
    if (usesSinglePrecision(context)) {
        keeper = make_unique<Kernel>(context.getPlatform().createKernel(ApplyMonteCarloBarostatKernel::Name(), context));
        keeper->getAs<ApplyMonteCarloBarostatKernel>().initialize(context.getSystem(), MonteCarloBarostat(1, 300), 1);
    }
}

void HostParticles::save() {
    context.getPositions(positions);
    if (keeper)
        keeper->getAs<ApplyMonteCarloBarostatKernel>().saveCoordinates(context);
}

void HostParticles::restore() {
    if (keeper)
        keeper->getAs<ApplyMonteCarloBarostatKernel>().restoreCoordinates(context);
    else
        context.setPositions(positions);
}

void HostParticles::getPositions(vector<double>& x) { pick(particles, positions, x); }

void HostParticles::setPositions(const vector<double>& x) {
    trial = positions;
    place(particles, x, trial);
    context.setPositions(trial);
    context.computeVirtualSites();
}

void HostParticles::getVelocities(vector<double>& v) {
    context.getVelocities(velocities);
    pick(particles, velocities, v);
}

void HostParticles::setVelocities(const vector<double>& v) {
    context.getVelocities(velocities);
    place(particles, v, velocities);
    context.setVelocities(velocities);
}

void HostParticles::getForces(vector<double>& f) {
    context.getForces(forces);
    pick(particles, forces, f);
}

void HostParticles::saveForces() { context.getForces(savedForces); }

void HostParticles::carryVelocities(double time) {
    context.getForces(forces);
    context.getVelocities(velocities);
    const System& system = context.getSystem();
    for (int i = 0; i < system.getNumParticles(); i++)
        if (system.getParticleMass(i) > 0)
            velocities[i] += (savedForces[i] - forces[i]) * (time / system.getParticleMass(i));
    context.setVelocities(velocities);
}

} // namespace ModeJumpPlugin
