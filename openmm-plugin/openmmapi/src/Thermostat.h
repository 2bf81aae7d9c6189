// What the integrator knows and does not tell through its base class: its temperature, and when its velocities are.
#ifndef MODEJUMP_THERMOSTAT_H_
#define MODEJUMP_THERMOSTAT_H_

#include "openmm/internal/ContextImpl.h"

namespace ModeJumpPlugin {

/** Kelvin. Throws, naming the integrator, if no temperature is found. */
double findTemperature(OpenMM::ContextImpl& context);

/** The same, but 0 without a temperature and with several. */
double findOneTemperature(OpenMM::ContextImpl& context);

/** Throws if the integrator samples another distribution than the classical Boltzmann distribution of the System, as its name or its steps tell. */
void checkEnsemble(const OpenMM::Integrator& integrator, const OpenMM::System& system);

/** Throws if a CustomIntegrator does not call Monte Carlo moves once in each step, or what it computed before lasts beyond one. */
void checkCalls(const OpenMM::Integrator& integrator);

/** Throws if steps have different lengths: attempts that are counted in steps would come more often where steps are short. */
void checkStepLengths(const OpenMM::Integrator& integrator);

/**
 * Throws if jumps of constrained particles would ruin the constraints: on the platforms Reference and CPU, addConstrainPositions() of a CustomIntegrator
 * takes the directions of bonds from the positions at the start of the step, or at the last call, so one call has to come after a jump and before x
 * changes.
 */
void checkConstrainedSteps(OpenMM::ContextImpl& context);

/** Stored velocities are v(t) - offset F(x)/m of the on-step velocities v(t); ps. */
double velocityTimeOffset(const OpenMM::Integrator& integrator);

} // namespace ModeJumpPlugin

#endif
