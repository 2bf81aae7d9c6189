#include "Solvent.h"

#include "Interruption.h"
#include "openmm/State.h"
#include "openmm/internal/ContextImpl.h"

#include <cmath>
#include <set>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

/** Constraint tolerance, tighter than simulations need: a trajectory must be reversible. */
const double TOLERANCE = 1e-7;

unique_ptr<System> withFixed(unique_ptr<System> system, const vector<int>& solute) {
    const set<int> fixed(solute.begin(), solute.end());
    for (int i = system->getNumConstraints() - 1; i >= 0; i--) {
        int p1, p2;
        double length;
        system->getConstraintParameters(i, p1, p2, length);
        if (fixed.count(p1) > 0)
            system->removeConstraint(i);
    }
    for (int particle : solute)
        system->setParticleMass(particle, 0);
    return system;
}

/** Names that do not clash with parameters of the System. */
const char HALF[] = "modeJumpHalf";
const char UNCONSTRAINED[] = "modeJumpUnconstrained";

/**
 * Velocity Verlet with RATTLE constraints: reversible, and it preserves phase-space volume. Two steps of the integrator make one of these,
 * since some platforms place virtual sites only at the end of a step, and the second half needs the forces with the sites in place.
 */
void addVelocityVerlet(CustomIntegrator& integrator) {
    const string half = HALF, unconstrained = UNCONSTRAINED;
    integrator.addGlobalVariable(half, 0);
    integrator.addPerDofVariable(unconstrained, 0);
    integrator.beginIfBlock(half + " = 0");
    integrator.addComputePerDof("v", "v+0.5*dt*f/m");
    integrator.addComputePerDof("x", "x+dt*v");
    integrator.addComputePerDof(unconstrained, "x");
    integrator.addConstrainPositions();
    integrator.addComputePerDof("v", "v+(x-" + unconstrained + ")/dt");
    integrator.endBlock();
    integrator.beginIfBlock(half + " = 1");
    integrator.addComputePerDof("v", "v+0.5*dt*f/m");
    integrator.addConstrainVelocities();
    integrator.endBlock();
    integrator.addComputeGlobal(half, "1-" + half);
}

} // namespace

Solvent::Solvent(ContextImpl& outer, unique_ptr<System> system, const vector<int>& solute, int steps, double stepSize)
    : integrator(stepSize), inner(withFixed(move(system), solute)), solute(solute), steps(steps), stream(0, 0, 0) {
    addVelocityVerlet(integrator);
    integrator.setConstraintTolerance(TOLERANCE);
    integrator.setIntegrationForceGroups(outer.getIntegrator().getIntegrationForceGroups());
    for (int i = 0; i < inner->getNumParticles(); i++)
        masses.push_back(inner->getParticleMass(i));
    context.reset(outer.createLinkedContext(*inner, integrator));
}

Solvent::~Solvent() = default;

void Solvent::begin(ContextImpl& outer, const vector<Vec3>& now, double thermalEnergy, const VelocityStream& numbers) {
    kT = thermalEnergy;
    stream = numbers;
    positions = now;
    known = false;
    integrator.setIntegrationForceGroups(outer.getIntegrator().getIntegrationForceGroups());
    Vec3 box[3];
    outer.getPeriodicBoxVectors(box[0], box[1], box[2]);
    context->setPeriodicBoxVectors(box[0], box[1], box[2]);
    for (const auto& parameter : context->getParameters())
        context->setParameter(parameter.first, outer.getParameter(parameter.first));
    context->setPositions(positions);
    context->computeVirtualSites();
}

void Solvent::place(const double* x) {
    bool moved = false;
    for (size_t i = 0; i < solute.size(); i++) {
        const Vec3 there(x[3 * i], x[3 * i + 1], x[3 * i + 2]);
        moved = moved || there != positions[solute[i]];
        positions[solute[i]] = there;
    }
    if (moved || !known) {
        context->setPositions(positions);
        context->computeVirtualSites();
        known = false;
    }
}

double Solvent::energyAt(const double* x) {
    place(x);
    if (!known) {
        energy = context->getState(State::Energy, false, integrator.getIntegrationForceGroups()).getPotentialEnergy();
        known = true;
    }
    return energy;
}

void Solvent::drawVelocities(uint64_t stage) {
    const uint32_t n = static_cast<uint32_t>(masses.size());
    const uint32_t first = static_cast<uint32_t>(stage) * (2 * n + 1) + 1;
    velocities.assign(n, Vec3());
    for (uint32_t i = 0; i < n; i++) {
        if (masses[i] == 0)
            continue;
        const auto a = stream.normals(first + 2 * i), b = stream.normals(first + 2 * i + 1);
        velocities[i] = Vec3(a[0], a[1], b[0]) * sqrt(kT / masses[i]);
    }
    context->setVelocities(velocities);
    context->applyVelocityConstraints(TOLERANCE);
    velocities = context->getState(State::Velocities).getVelocities();
}

double Solvent::kineticEnergy() const {
    double sum = 0;
    for (size_t i = 0; i < masses.size(); i++)
        sum += 0.5 * masses[i] * velocities[i].dot(velocities[i]);
    return sum;
}

/**
 * Runs a trajectory; returns whether it was completed: OpenMM throws if coordinates or energies are not numbers, and so do user-defined
 * forces where they are undefined. The reverse trajectory fails at the same place, so rejecting it is exact.
 */
bool Solvent::runTrajectory() {
    try {
        integrator.setGlobalVariableByName(HALF, 0); // a trajectory that failed may have stopped half-way
        integrator.step(2 * steps);
        const int groups = integrator.getIntegrationForceGroups();
        const State end = context->getState(State::Energy | State::Positions | State::Velocities, false, groups);
        endEnergy = end.getPotentialEnergy();
        endPositions = end.getPositions();
        velocities = end.getVelocities();
        return isfinite(endEnergy);
    } catch (const OpenMMException& error) {
        endIfInterrupted(error);
        if (string(error.what()).find("NaN") == string::npos)
            failure = error.what();
        return false;
    }
}

double Solvent::relax(const double* x, uint64_t stage) {
    const double before = energyAt(x);
    drawVelocities(stage);
    const double start = before + kineticEnergy();
    const uint32_t index = static_cast<uint32_t>(stage) * (2 * static_cast<uint32_t>(masses.size()) + 1);
    trajectories++;
    if (runTrajectory() && log(stream.uniform(index)) < (start - endEnergy - kineticEnergy()) / kT) {
        accepted++;
        positions = endPositions;
        energy = endEnergy;
        return energy;
    }
    context->setPositions(positions);
    context->computeVirtualSites();
    return energy;
}

} // namespace ModeJumpPlugin
