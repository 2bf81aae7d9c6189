#include "CustomSteps.h"

#include "ClassName.h"
#include "CustomKicks.h"
#include "MonteCarloModeJump.h"
#include "Steps.h"
#include "openmm/CMMotionRemover.h"
#include "openmm/NonbondedForce.h"
#include "openmm/OpenMMException.h"

#include <algorithm>
#include <functional>
#include <optional>
#include <set>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

/** Tracks, step by step, the variables that depend on a source or on each other; a block may be skipped in a run. */
struct Holding {
    function<bool(const string&)> source;
    set<string> variables;
    vector<set<string>> aroundBlock;

    /** Such a name in the expression of the step, if there is one. */
    optional<string> taken(const Step& step) const {
        for (const string& name : namesIn(step.expression))
            if (variables.count(name) > 0 || source(name))
                return name;
        return nullopt;
    }

    void follow(const Step& step) {
        if (step.begins()) {
            aroundBlock.push_back(variables);
        } else if (step.type == CustomIntegrator::BlockEnd) {
            if (aroundBlock.empty()) // tracking began inside the block
                return;
            variables.insert(aroundBlock.back().begin(), aroundBlock.back().end());
            aroundBlock.pop_back();
        } else if (step.assigns() && step.variable != "x" && step.variable != "v") {
            if (taken(step))
                variables.insert(step.variable);
            else
                variables.erase(step.variable);
        }
    }
};

/** Calls `see` with each step twice, in cyclic order after a place. */
void twiceFrom(const vector<Step>& steps, size_t place, const function<void(const Step&)>& see) {
    for (size_t k = 0; k < 2 * steps.size(); k++)
        see(steps[(place + k) % steps.size()]);
}

/** Whether a quantity depends on positions. v alone does not count: it is drawn anew at a jump. */
bool ofPositions(const string& name) { return name == "x" || names(name, "f") || names(name, "energy"); }

/**
 * Index of the step that calls moves. Throws unless there is exactly one, outside of blocks whose condition depends on the state or on
 * chance.
 */
size_t placeOfMoves(const vector<Step>& steps) {
    const auto calls = [](const Step& step) { return step.type == CustomIntegrator::UpdateContextState; };
    const auto updates = count_if(steps.begin(), steps.end(), calls);
    if (updates != 1)
        throw OpenMMException("MonteCarloModeJump: the CustomIntegrator calls addUpdateContextState() " + to_string(updates) +
                              " times; moves require exactly one call per step");
    Holding state{[](const string& name) { return ofPositions(name) || name == "v" || name == "uniform" || name == "gaussian"; }, {}, {}};
    vector<optional<string>> conditions;
    twiceFrom(steps, 0, [&](const Step& step) {
        if (step.begins())
            conditions.push_back(state.taken(step));
        if (step.type == CustomIntegrator::BlockEnd)
            conditions.pop_back();
        for (const optional<string>& name : conditions)
            if (name && calls(step))
                throw OpenMMException("MonteCarloModeJump: the CustomIntegrator calls addUpdateContextState() in a block that depends on " + *name + ", so "
                                      "moves would be made in some states and not in others, and populations would be wrong; call it outside the block");
        state.follow(step);
    });
    return static_cast<size_t>(find_if(steps.begin(), steps.end(), calls) - steps.begin());
}

/**
 * Throws if x, v or a decision depends on forces, energies or positions from before a jump at this place, through variables that are read
 * before they are recomputed. Variables that are only accumulated, such as work or accepted steps, may hold earlier values.
 */
void checkKept(const vector<Step>& steps, size_t place) {
    Holding now{ofPositions, {}, {}};
    twiceFrom(steps, place, [&](const Step& step) { now.follow(step); });
    Holding before{[](const string&) { return false; }, now.variables, {}};
    twiceFrom(steps, place, [&](const Step& step) {
        const optional<string> kept = before.taken(step);
        if (kept && (step.begins() || step.variable == "x" || step.variable == "v"))
            throw OpenMMException("MonteCarloModeJump: the CustomIntegrator's " + (step.begins() ? "block" : "step " + step.variable) + " '" + step.expression +
                                  "' uses " + *kept + " of the configuration before a jump; compute it again after "
                                  "addUpdateContextState(), at the beginning of the step");
        before.follow(step);
    });
}

/**
 * Throws if energies scale forces. Variables computed from either count as such, except x and v, which every integrator computes from
 * forces, and random decisions: a Metropolis test of the integrator itself keeps the ensemble.
 */
void checkPotential(const vector<Step>& steps) {
    set<string> energies, forces;
    const auto holds = [](const set<string>& all, const set<string>& known, const string& quantity) {
        return any_of(all.begin(), all.end(), [&](const string& name) { return known.count(name) > 0 || names(name, quantity); });
    };
    for (size_t pass = 0; pass <= steps.size(); pass++)
        for (const Step& step : steps) {
            if (!step.assigns())
                continue;
            const bool global = step.type != CustomIntegrator::ComputePerDof;
            const set<string> used = namesIn(step.expression);
            const bool ofEnergies = holds(used, energies, "energy"), ofForces = holds(used, forces, "f");
            if (step.variable == "x" || step.variable == "v") {
                if (ofEnergies && ofForces)
                    throw OpenMMException("MonteCarloModeJump: in the step " + step.variable + " = " + step.expression + " of the CustomIntegrator, energies "
                                          "scale forces, so it follows a different potential from that of the System, which jumps use, as accelerated "
                                          "molecular dynamics (AMDIntegrator) does; use another integrator");
                continue;
            }
            if (ofEnergies && used.count("uniform") == 0)
                energies.insert(step.variable);
            if (ofForces && !global)
                forces.insert(step.variable);
        }
}

/** Force groups that contribute to the energy of a Force; none if it has no energy. */
set<int> groupsOf(const Force& force) {
    const string name = className(force);
    if (dynamic_cast<const MonteCarloModeJump*>(&force) != nullptr || dynamic_cast<const CMMotionRemover*>(&force) != nullptr ||
        name.find("Barostat") != string::npos || name.find("Thermostat") != string::npos)
        return {};
    set<int> groups = {force.getForceGroup()};
    const auto nonbonded = dynamic_cast<const NonbondedForce*>(&force);
    if (nonbonded != nullptr && nonbonded->getReciprocalSpaceForceGroup() >= 0)
        groups.insert(nonbonded->getReciprocalSpaceForceGroup());
    return groups;
}

/** Throws if the steps name force groups, and the energies that decide about jumps include other groups. */
void checkGroups(const vector<Step>& steps, const CustomIntegrator& integrator, const System& system) {
    set<int> used;
    for (const Step& step : steps)
        for (const string& name : namesIn(step.expression)) {
            if (name == "f")
                return;
            if (groupOf(name, "f") >= 0)
                used.insert(groupOf(name, "f"));
        }
    if (used.empty())
        return;
    string list;
    for (int group : used)
        list += (list.empty() ? "" : ", ") + to_string(group);
    for (int i = 0; i < system.getNumForces(); i++)
        for (int group : groupsOf(system.getForce(i)))
            if (used.count(group) == 0 && (integrator.getIntegrationForceGroups() >> group & 1) != 0)
                throw OpenMMException("MonteCarloModeJump: force group " + to_string(group) + " (" + className(system.getForce(i)) +
                                      ") is not in the steps of the CustomIntegrator, but jumps would use it: call "
                                      "integrator.setIntegrationForceGroups({" + list + "}) before creating the Context");
}

} // namespace

void checkSteps(const CustomIntegrator& integrator, const System& system) {
    const vector<Step> steps = stepsOf(integrator);
    checkPotential(steps);
    checkScales(integrator);
    checkStrength(integrator);
    checkGroups(steps, integrator, system);
    checkKept(steps, 0); // for attempts between two steps
}

void checkMoves(const CustomIntegrator& integrator) {
    const vector<Step> steps = stepsOf(integrator);
    checkKept(steps, placeOfMoves(steps));
}

bool computes(const CustomIntegrator& integrator, const string& variable) {
    const vector<Step> steps = stepsOf(integrator);
    return any_of(steps.begin(), steps.end(), [&](const Step& step) {
        return (step.type == CustomIntegrator::ComputeGlobal || step.type == CustomIntegrator::ComputeSum) && step.variable == variable;
    });
}

bool movesBonds(const CustomIntegrator& integrator) {
    bool updated = false;
    for (const Step& step : stepsOf(integrator)) {
        if (updated && step.type == CustomIntegrator::ConstrainPositions)
            return false;
        if (updated && step.type == CustomIntegrator::ComputePerDof && step.variable == "x")
            return true;
        updated |= step.type == CustomIntegrator::UpdateContextState;
    }
    return false;
}

} // namespace ModeJumpPlugin
