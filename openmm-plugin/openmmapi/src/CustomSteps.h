// What the steps of a CustomIntegrator reveal about the ensemble that it samples.
#ifndef MODEJUMP_CUSTOMSTEPS_H_
#define MODEJUMP_CUSTOMSTEPS_H_

#include "openmm/CustomIntegrator.h"
#include "openmm/System.h"

#include <string>

namespace ModeJumpPlugin {

/**
 * Throws if the steps follow a potential other than that of the System, as in accelerated and scaled molecular dynamics, leave out a force
 * group included in getIntegrationForceGroups(), or keep forces or energies for the next step, before which positions may change.
 */
void checkSteps(const OpenMM::CustomIntegrator& integrator, const OpenMM::System& system);

/** Throws if the steps do not call moves exactly once, or keep forces or energies beyond that call. */
void checkMoves(const OpenMM::CustomIntegrator& integrator);

/** Whether the steps compute this global variable, or, for `dt`, their own length. */
bool computes(const OpenMM::CustomIntegrator& integrator, const std::string& variable);

/** Whether x changes between the update of the Context's state, which calls moves, and the constraining of bonds. */
bool movesBonds(const OpenMM::CustomIntegrator& integrator);

} // namespace ModeJumpPlugin

#endif
