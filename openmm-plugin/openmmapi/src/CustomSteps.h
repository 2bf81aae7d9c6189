// What the steps of a CustomIntegrator tell of the ensemble that it samples.
#ifndef MODEJUMP_CUSTOMSTEPS_H_
#define MODEJUMP_CUSTOMSTEPS_H_

#include "openmm/CustomIntegrator.h"
#include "openmm/System.h"

#include <string>

namespace ModeJumpPlugin {

/**
 * Throws if the steps follow another potential than the System's, as accelerated and scaled molecular dynamics do, leave out a force group that counts in
 * getIntegrationForceGroups(), or keep forces or energies for the next step, before which positions may be changed.
 */
void checkSteps(const OpenMM::CustomIntegrator& integrator, const OpenMM::System& system);

/** Throws if the steps do not call moves exactly once, or keep forces or energies beyond the call. */
void checkMoves(const OpenMM::CustomIntegrator& integrator);

/** Whether the steps compute this global variable, or their own length, `dt`. */
bool computes(const OpenMM::CustomIntegrator& integrator, const std::string& variable);

/** Whether x changes after the update of the Context's state, by which moves are called, and before bonds are constrained. */
bool movesBonds(const OpenMM::CustomIntegrator& integrator);

} // namespace ModeJumpPlugin

#endif
