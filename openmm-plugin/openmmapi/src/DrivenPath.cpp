#include "DrivenPath.h"

#include "ClassName.h"
#include "openmm/OpenMMException.h"
#include "openmm/Platform.h"
#include "openmm/internal/ContextImpl.h"
#include "openmm/reference/SimTKOpenMMUtilities.h"
#include "openmm/serialization/XmlSerializer.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <sstream>
#include <string>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

unique_ptr<System> withoutJumps(const System& outer) {
    unique_ptr<System> system;
    try {
        system.reset(XmlSerializer::clone<System>(outer));
    } catch (const exception& error) {
        throw OpenMMException(string("MonteCarloModeJump: a driven path computes energies in a copy of the System, and one of its Forces cannot be copied (a "
                                     "PythonForce requires a function of a module): ") +
                              error.what());
    }
    for (int i = system->getNumForces() - 1; i >= 0; i--)
        if (dynamic_cast<const MonteCarloModeJump*>(&system->getForce(i)) != nullptr)
            system->removeForce(i);
    return system;
}

bool hasPythonForce(const System& system) {
    for (int i = 0; i < system.getNumForces(); i++)
        if (className(system.getForce(i)) == "PythonForce")
            return true;
    return false;
}

/** Restores the random numbers of the Reference platform at the end of its scope. */
class CommonRandomNumbers {
public:
    CommonRandomNumbers() { SimTKOpenMMUtilities::createCheckpoint(state); }
    ~CommonRandomNumbers() { SimTKOpenMMUtilities::loadCheckpoint(state); }
    CommonRandomNumbers(const CommonRandomNumbers&) = delete;
    CommonRandomNumbers& operator=(const CommonRandomNumbers&) = delete;

private:
    stringstream state{ios::in | ios::out | ios::binary};
};

/**
 * Relative difference with which two Contexts may compute the same energy. On the CPU platform, in single precision, the energies of 4527
 * atoms with PME differ by 6e-8 at most. The difference on devices in single or mixed precision, that of their sums, was never measured.
 */
double roundingOf(ContextImpl& context) {
    const Platform& platform = context.getPlatform();
    const vector<string>& names = platform.getPropertyNames();
    if (platform.getName() == "Reference" || (find(names.begin(), names.end(), "Precision") != names.end() &&
                                              platform.getPropertyValue(context.getOwner(), "Precision") == "double"))
        return 1e-9;
    return platform.getName() == "CPU" ? 5e-7 : 1e-5;
}

} // namespace

unique_ptr<Solvent> solventAround(const vector<int>& solute, const MonteCarloModeJump& force, ContextImpl& context) {
    const int steps = force.getDrivenSteps();
    const uint64_t numbers = (2 * static_cast<uint64_t>(context.getSystem().getNumParticles()) + 1) * steps;
    if (numbers >> 32 != 0)
        throw OpenMMException("MonteCarloModeJump: a driven path of " + to_string(steps) +
                              " steps requires more random numbers than an attempt has; use fewer steps");
    // OpenMM does not guard what all Contexts of a process share: a new Context restarts the random numbers of the Reference platform, and
    // two Systems that are copied at once can have wrong parameters. In Python the interpreter's lock is held here; copying a PythonForce may
    // give it up for a while, so no other lock is held then.
    static mutex guard;
    unique_lock<mutex> lock(guard, defer_lock);
    if (!hasPythonForce(context.getSystem()))
        lock.lock();
    const CommonRandomNumbers kept;
    return make_unique<Solvent>(context, withoutJumps(context.getSystem()), solute, force.getRelaxationSteps(), force.getRelaxationStepSize());
}

void requireSameEnergy(ContextImpl& context, double energy, double onPath, double kT) {
    if (!(abs(onPath - energy) <= max(0.01 * kT, roundingOf(context) * abs(energy))))
        throw OpenMMException("MonteCarloModeJump: the energy is " + to_string(energy) + " kJ/mol, but on the driven path " +
                              to_string(onPath) + " kJ/mol: a Force may have been changed after the Context was created; call " +
                              "context.reinitialize(preserveState=True) after such a change");
}

} // namespace ModeJumpPlugin
