// What the steps of a CustomIntegrator make of forces, by the derivatives of their expressions.
#ifndef MODEJUMP_CUSTOMKICKS_H_
#define MODEJUMP_CUSTOMKICKS_H_

#include "openmm/CustomIntegrator.h"

namespace ModeJumpPlugin {

/**
 * Throws if the steps scale forces of one group as those of another are not: neither kicks by themselves add up to the same, nor what is left of them
 * behind friction. Groups whose kicks lie in blocks, which are run an unknown number of times, are left out, and so are expressions of functions that only
 * the Context knows.
 */
void checkScales(const OpenMM::CustomIntegrator& integrator);

/**
 * Throws if the steps scale all forces, as scaled molecular dynamics does: kicks then add up to another time than drifts do, by more than friction
 * explains. Looked at are steps of kicks, drifts and friction whose factors are known from the global variables; not those with a Metropolis test of their
 * own, which any forces may propose for.
 */
void checkStrength(const OpenMM::CustomIntegrator& integrator);

} // namespace ModeJumpPlugin

#endif
