// How the steps of a CustomIntegrator use forces, from the derivatives of their expressions.
#ifndef MODEJUMP_CUSTOMKICKS_H_
#define MODEJUMP_CUSTOMKICKS_H_

#include "openmm/CustomIntegrator.h"

namespace ModeJumpPlugin {

/**
 * Throws if the steps scale the forces of one group differently from those of another: neither the sums of their kicks agree, nor what
 * remains of them after friction. Groups with kicks inside blocks, which run an unknown number of times, are ignored, and so are
 * expressions with functions that only the Context knows.
 */
void checkScales(const OpenMM::CustomIntegrator& integrator);

/**
 * Throws if the steps scale all forces, as scaled molecular dynamics does: the kicks then add up to a different time from the drifts, by
 * more than friction explains. Considers steps with kicks, drifts and friction whose factors follow from the global variables; not those
 * with their own Metropolis test, for which any forces may make proposals.
 */
void checkStrength(const OpenMM::CustomIntegrator& integrator);

} // namespace ModeJumpPlugin

#endif
