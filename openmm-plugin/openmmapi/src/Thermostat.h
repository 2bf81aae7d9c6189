// Properties of an integrator that its base class does not expose: its temperature, and the time of its velocities.
#ifndef MODEJUMP_THERMOSTAT_H_
#define MODEJUMP_THERMOSTAT_H_

#include "openmm/internal/ContextImpl.h"

namespace ModeJumpPlugin {

/** Temperature in kelvin. Throws, naming the integrator, if none is found. */
double findTemperature(OpenMM::ContextImpl& context);

/** Temperature in kelvin; 0 if there is none, or several. */
double findOneTemperature(OpenMM::ContextImpl& context);

/**
 * Throws if the integrator, by its name or its steps, samples a distribution other than the classical Boltzmann distribution of the System.
 */
void checkEnsemble(const OpenMM::Integrator& integrator, const OpenMM::System& system);

/**
 * Throws if a CustomIntegrator does not call Monte Carlo moves once per step, or if quantities that it computed before the call are used
 * after it.
 */
void checkCalls(const OpenMM::Integrator& integrator);

/** Whether steps vary in length, so that configurations after equal numbers of steps are not distributed as those at equal times. */
bool variesSteps(const OpenMM::Integrator& integrator);

/** Throws if steps vary in length: attempts, which are counted in steps, would be more frequent where steps are short. */
void checkStepLengths(const OpenMM::Integrator& integrator);

/**
 * Throws if jumps of constrained particles would break the constraints: on the platforms Reference and CPU, addConstrainPositions() of a
 * CustomIntegrator takes the directions of bonds from the positions at the start of the step, or at the last call, so it must be called
 * after a jump and before x changes.
 */
void checkConstrainedSteps(OpenMM::ContextImpl& context);

/** Time offset, ps: stored velocities are v(t) - offset F(x)/m, v(t) being the on-step velocities. */
double velocityTimeOffset(const OpenMM::Integrator& integrator);

} // namespace ModeJumpPlugin

#endif
