// What the steps of a CustomIntegrator tell of the ensemble that it samples.
#ifndef MODEJUMP_CUSTOMSTEPS_H_
#define MODEJUMP_CUSTOMSTEPS_H_

#include "openmm/CustomIntegrator.h"
#include "openmm/System.h"

namespace ModeJumpPlugin {

/**
 * Throws if the steps do not call moves once, if they follow another potential than the System's, as accelerated molecular dynamics does, or leave out
 * a force group that counts in getIntegrationForceGroups().
 */
void checkSteps(const OpenMM::CustomIntegrator& integrator, const OpenMM::System& system);

/** Whether a step computes its own length, `dt`. */
bool changesStepLength(const OpenMM::CustomIntegrator& integrator);

/** Whether x changes after the update of the Context's state, by which moves are called, and before bonds are constrained. */
bool movesBonds(const OpenMM::CustomIntegrator& integrator);

} // namespace ModeJumpPlugin

#endif
