#include "Thermostat.h"

#include "ClassName.h"
#include "CustomSteps.h"
#include "openmm/AndersenThermostat.h"
#include "openmm/BrownianIntegrator.h"
#include "openmm/CompoundIntegrator.h"
#include "openmm/CustomIntegrator.h"
#include "openmm/LangevinMiddleIntegrator.h"
#include "openmm/NoseHooverIntegrator.h"
#include "openmm/OpenMMException.h"
#include "openmm/VariableLangevinIntegrator.h"
#include "openmm/VariableVerletIntegrator.h"
#include "openmm/reference/SimTKOpenMMRealType.h"
#if __has_include("openmm/DPDIntegrator.h") // from OpenMM 8.3 on
#include "openmm/DPDIntegrator.h"
#define HAS_DPD
#endif

#include <functional>
#include <sstream>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

/** kT or temperature among the global variables, by the names used in openmmtools and in OpenMM's examples. */
double customTemperature(const CustomIntegrator& integrator) {
    const auto valueOf = [&](const string& name) {
        for (int i = 0; i < integrator.getNumGlobalVariables(); i++)
            if (integrator.getGlobalVariableName(i) == name)
                return integrator.getGlobalVariable(i);
        return 0.0;
    };
    const double kT = valueOf("kT"), temperature = valueOf("temperature");
    // a value that the steps compute is that of the previous step
    return kT > 0 && !(temperature > 0 && computes(integrator, "kT")) ? kT / BOLTZ : temperature;
}

/** Common temperature of all chains; 0 if there are none. */
double chainTemperature(const NoseHooverIntegrator& integrator) {
    double temperature = 0;
    for (int i = 0; i < integrator.getNumThermostats(); i++) {
        const NoseHooverChain& chain = integrator.getThermostat(i);
        vector<double> all = {chain.getTemperature()};
        if (!chain.getThermostatedPairs().empty())
            all.push_back(chain.getRelativeTemperature());
        for (double other : all) {
            if (temperature > 0 && other != temperature) {
                ostringstream message;
                message << "MonteCarloModeJump: the NoseHooverIntegrator has chains at " << temperature << " K and at " << other
                        << " K, but a move has a single temperature: set that of the MonteCarloModeJump, for the particles that it moves";
                throw OpenMMException(message.str());
            }
            temperature = other;
        }
    }
    return temperature;
}

double integratorTemperature(const Integrator& integrator) {
    if (auto compound = dynamic_cast<const CompoundIntegrator*>(&integrator))
        return integratorTemperature(compound->getIntegrator(compound->getCurrentIntegrator()));
    if (auto langevin = dynamic_cast<const LangevinMiddleIntegrator*>(&integrator)) // LangevinIntegrator derives from it
        return langevin->getTemperature();
    if (auto langevin = dynamic_cast<const VariableLangevinIntegrator*>(&integrator))
        return langevin->getTemperature();
    if (auto noseHoover = dynamic_cast<const NoseHooverIntegrator*>(&integrator))
        return chainTemperature(*noseHoover);
    if (auto brownian = dynamic_cast<const BrownianIntegrator*>(&integrator))
        return brownian->getTemperature();
#ifdef HAS_DPD
    if (auto dpd = dynamic_cast<const DPDIntegrator*>(&integrator))
        return dpd->getTemperature();
#endif
    if (auto custom = dynamic_cast<const CustomIntegrator*>(&integrator))
        return customTemperature(*custom);
    return 0;
}

/** Calls `check` with the integrator, or with each part of a CompoundIntegrator. */
void forEach(const Integrator& integrator, const function<void(const Integrator&)>& check) {
    if (auto compound = dynamic_cast<const CompoundIntegrator*>(&integrator))
        for (int i = 0; i < compound->getNumIntegrators(); i++)
            forEach(compound->getIntegrator(i), check);
    else
        check(integrator);
}

/** Access to a protected virtual function, through a derived class. */
struct Peek : public Integrator {
    static double offset(const Integrator& integrator) { return (integrator.*&Peek::getVelocityTimeOffset)(); }
};

/** Temperature of the integrator or the AndersenThermostat; 0 if there is none. Fails if they have different ones. */
double temperatureOf(ContextImpl& context) {
    const double temperature = integratorTemperature(context.getIntegrator());
    const auto& parameters = context.getParameters();
    const auto andersen = parameters.find(AndersenThermostat::Temperature());
    if (andersen == parameters.end())
        return temperature;
    const double other = andersen->second;
    if (temperature > 0 && other != temperature) {
        ostringstream message;
        message << "MonteCarloModeJump: the " << className(context.getIntegrator()) << " is at " << temperature << " K and the AndersenThermostat at "
                << other << " K, so the dynamics samples the ensemble of neither: use the same temperature for both, or remove one of them";
        throw OpenMMException(message.str());
    }
    return temperature > 0 ? temperature : other;
}

} // namespace

double findTemperature(ContextImpl& context) {
    const double temperature = temperatureOf(context);
    if (temperature <= 0)
        throw OpenMMException(
            "MonteCarloModeJump: no temperature above 0 K found with " + className(context.getIntegrator()) +
            ". Start jumping when the system is warm, use a thermostatted integrator, add an AndersenThermostat, add a global variable kT (kJ/mol) or "
            "temperature (K) to a CustomIntegrator, or set the temperature of the MonteCarloModeJump");
    return temperature;
}

double findOneTemperature(ContextImpl& context) {
    try {
        return temperatureOf(context);
    } catch (const OpenMMException&) {
        return 0;
    }
}

void checkEnsemble(const Integrator& all, const System& system) {
    forEach(all, [&](const Integrator& integrator) {
        if (auto custom = dynamic_cast<const CustomIntegrator*>(&integrator))
            checkSteps(*custom, system);
        const string name = className(integrator);
        if (name.find("RPMD") != string::npos || name.find("Drude") != string::npos || name.find("QTB") != string::npos)
            throw OpenMMException("MonteCarloModeJump: " + name + " does not sample the classical Boltzmann distribution of " +
                                  "the System; use another integrator");
        const auto noseHoover = dynamic_cast<const NoseHooverIntegrator*>(&integrator);
        if (noseHoover != nullptr && noseHoover->getMaximumPairDistance() > 0)
            throw OpenMMException("MonteCarloModeJump: the NoseHooverIntegrator keeps pairs within a maximum distance, a wall that is missing in the energy "
                                  "of jumps; remove setMaximumPairDistance");
    });
}

void checkCalls(const Integrator& all) {
    forEach(all, [](const Integrator& integrator) {
        if (auto custom = dynamic_cast<const CustomIntegrator*>(&integrator))
            checkMoves(*custom);
    });
}

bool variesSteps(const Integrator& all) {
    bool varies = false;
    forEach(all, [&](const Integrator& integrator) {
        const auto custom = dynamic_cast<const CustomIntegrator*>(&integrator);
        varies |= dynamic_cast<const VariableLangevinIntegrator*>(&integrator) != nullptr ||
                  dynamic_cast<const VariableVerletIntegrator*>(&integrator) != nullptr || (custom != nullptr && computes(*custom, "dt"));
    });
    return varies;
}

void checkStepLengths(const Integrator& all) {
    forEach(all, [](const Integrator& integrator) {
        if (variesSteps(integrator))
            throw OpenMMException("MonteCarloModeJump: the steps of " + className(integrator) + " are short where forces are large, so attempts "
                                  "counted in steps would be too frequent there, and populations would be wrong; use a fixed step size, or set the "
                                  "frequency to 0 and call attempt() at equal times (after integrator.stepTo)");
    });
}

void checkConstrainedSteps(ContextImpl& context) {
    const string& platform = context.getPlatform().getName();
    if (platform != "Reference" && platform != "CPU")
        return;
    forEach(context.getIntegrator(), [&](const Integrator& integrator) {
        const auto custom = dynamic_cast<const CustomIntegrator*>(&integrator);
        if (custom != nullptr && movesBonds(*custom))
            throw OpenMMException("MonteCarloModeJump: on the platform " + platform + " this CustomIntegrator would constrain bonds in their directions "
                                  "before a jump: call addConstrainPositions() directly after addUpdateContextState(), or use "
                                  "LangevinMiddleIntegrator (also instead of MTSLangevinIntegrator)");
    });
}

double velocityTimeOffset(const Integrator& integrator) {
    // These are leap-frog schemes as well, but OpenMM leaves their offset at 0. NoseHoover is the middle scheme of LangevinMiddle (a kick
    // over the whole step, half a drift, the thermostat, half a drift) with chains as the thermostat, which do not depend on x.
    if (dynamic_cast<const NoseHooverIntegrator*>(&integrator) != nullptr || dynamic_cast<const VariableVerletIntegrator*>(&integrator) != nullptr ||
        dynamic_cast<const VariableLangevinIntegrator*>(&integrator) != nullptr)
        return 0.5 * integrator.getStepSize();
    if (auto compound = dynamic_cast<const CompoundIntegrator*>(&integrator))
        return velocityTimeOffset(compound->getIntegrator(compound->getCurrentIntegrator()));
    return Peek::offset(integrator);
}

} // namespace ModeJumpPlugin
