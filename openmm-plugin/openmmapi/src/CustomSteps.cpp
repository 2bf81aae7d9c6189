#include "CustomSteps.h"

#include "ClassName.h"
#include "MonteCarloModeJump.h"
#include "openmm/CMMotionRemover.h"
#include "openmm/NonbondedForce.h"
#include "lepton/Exception.h"
#include "lepton/ParsedExpression.h"
#include "lepton/Parser.h"
#include "openmm/OpenMMException.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <map>
#include <optional>
#include <set>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

struct Step {
    CustomIntegrator::ComputationType type;
    string variable, expression;
};

vector<Step> stepsOf(const CustomIntegrator& integrator) {
    vector<Step> steps(integrator.getNumComputations());
    for (int i = 0; i < integrator.getNumComputations(); i++)
        integrator.getComputationStep(i, steps[i].type, steps[i].variable, steps[i].expression);
    return steps;
}

/** Variables and functions; a number such as 1e5 has none. */
set<string> namesIn(const string& expression) {
    const auto inName = [](char c) { return isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '.'; };
    set<string> names;
    for (auto i = expression.begin(); i != expression.end();) {
        const auto end = find_if_not(i, expression.end(), inName);
        if (i != end && (isalpha(static_cast<unsigned char>(*i)) || *i == '_'))
            names.emplace(i, end);
        i = end == i ? i + 1 : end;
    }
    return names;
}

/** The group of f3 or energy3 by "f" or "energy"; -1 for another name. */
int groupOf(const string& name, const string& quantity) {
    const string digits = name.compare(0, quantity.size(), quantity) == 0 ? name.substr(quantity.size()) : "";
    const bool number = !digits.empty() && digits.size() < 3 && all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    return number ? stoi(digits) : -1;
}

bool names(const string& name, const string& quantity) { return name == quantity || groupOf(name, quantity) >= 0; }

void checkUpdates(const vector<Step>& steps) {
    const auto updates = count_if(steps.begin(), steps.end(), [](const Step& s) { return s.type == CustomIntegrator::UpdateContextState; });
    if (updates != 1)
        throw OpenMMException("MonteCarloModeJump: the CustomIntegrator calls addUpdateContextState() " + to_string(updates) +
                              " times; moves need exactly one call in each step");
}

/**
 * Throws if energies scale forces. Variables that are computed from either count as these, but not x and v, which every integrator computes from
 * forces, and not decisions that are drawn at random: a Metropolis test of the integrator's own keeps the ensemble.
 */
void checkPotential(const vector<Step>& steps) {
    set<string> energies, forces;
    const auto holds = [](const set<string>& all, const set<string>& known, const string& quantity) {
        return any_of(all.begin(), all.end(), [&](const string& name) { return known.count(name) > 0 || names(name, quantity); });
    };
    for (size_t pass = 0; pass <= steps.size(); pass++)
        for (const Step& step : steps) {
            const bool global = step.type == CustomIntegrator::ComputeGlobal || step.type == CustomIntegrator::ComputeSum;
            if (!global && step.type != CustomIntegrator::ComputePerDof)
                continue;
            const set<string> used = namesIn(step.expression);
            const bool ofEnergies = holds(used, energies, "energy"), ofForces = holds(used, forces, "f");
            if (step.variable == "x" || step.variable == "v") {
                if (ofEnergies && ofForces)
                    throw OpenMMException("MonteCarloModeJump: in the step " + step.variable + " = " + step.expression + " of the CustomIntegrator energies "
                                          "scale forces, so it follows another potential than the System's, by which jumps are tested, as accelerated "
                                          "molecular dynamics (AMDIntegrator) does; choose another integrator");
                continue;
            }
            if (ofEnergies && used.count("uniform") == 0)
                energies.insert(step.variable);
            if (ofForces && !global)
                forces.insert(step.variable);
        }
}

/** What a variable gets of forces of each group, -1 for those of all groups. */
using Kicks = map<int, double>;

/** Some value below 1 for every name. */
map<string, double> valuesOf(const vector<Step>& steps) {
    map<string, double> values;
    for (const Step& step : steps)
        for (const string& name : namesIn(step.expression)) {
            const double turn = 0.618 * static_cast<double>(values.size());
            values.emplace(name, 0.1 + 0.8 * (turn - floor(turn)));
        }
    return values;
}

/** Kicks of an expression: derivatives at these values, through the variables that forces are kept in. */
Kicks kicksOf(const string& text, const map<string, double>& values, const map<string, Kicks>& kept) {
    const Lepton::ParsedExpression expression = Lepton::Parser::parse(text);
    Kicks kicks;
    for (const string& name : namesIn(text)) {
        const auto of = kept.find(name);
        if (!names(name, "f") && of == kept.end())
            continue;
        const double derivative = expression.differentiate(name).evaluate(values);
        if (names(name, "f"))
            kicks[groupOf(name, "f")] += derivative;
        else
            for (const auto& [group, kick] : of->second)
                kicks[group] += derivative * kick;
    }
    return kicks;
}

/** What variables keep of forces from one step to the next. */
map<string, Kicks> keptForces(const vector<Step>& steps, const map<string, double>& values) {
    map<string, Kicks> kept;
    for (const Step& step : steps)
        if (step.type == CustomIntegrator::ComputePerDof && step.variable != "x" && step.variable != "v")
            try {
                kept[step.variable] = kicksOf(step.expression, values, kept);
            } catch (const Lepton::Exception&) {
                kept.erase(step.variable);
            }
    return kept;
}

/** A group whose kicks are not those of the others, if there is one. */
optional<int> unlike(const Kicks& kicks) {
    double largest = 0;
    for (const auto& [group, kick] : kicks)
        largest = max(largest, abs(kick));
    const bool ofAll = kicks.count(-1) > 0;
    for (const auto& [group, kick] : kicks) {
        const double expected = ofAll && group >= 0 ? 0 : kicks.begin()->second;
        if (abs(kick - expected) > 1e-4 * largest) // fractions of a step may be decimals
            return group;
    }
    return nullopt;
}

/**
 * Throws if the steps scale forces of one group as those of another are not: neither kicks by themselves add up to the same, nor what is left of them
 * behind friction. Groups whose kicks lie in blocks, which are run an unknown number of times, are left out, and so are expressions of functions that only
 * the Context knows.
 */
void checkScales(const vector<Step>& steps) {
    const map<string, double> values = valuesOf(steps);
    map<string, Kicks> kept = keptForces(steps, values), sums;
    Kicks left;
    set<int> inBlocks;
    int depth = 0;
    for (const Step& step : steps) {
        depth += step.type == CustomIntegrator::IfBlockStart || step.type == CustomIntegrator::WhileBlockStart;
        depth -= step.type == CustomIntegrator::BlockEnd;
        if (step.type != CustomIntegrator::ComputePerDof)
            continue;
        Kicks kicks, leftNow;
        try {
            kicks = kicksOf(step.expression, values, kept);
            map<string, Kicks> withVelocities = kept;
            withVelocities["v"] = left;
            leftNow = kicksOf(step.expression, values, withVelocities);
        } catch (const Lepton::Exception&) {
            const set<string> used = namesIn(step.expression);
            const bool ofForces = any_of(used.begin(), used.end(), [&](const string& name) { return names(name, "f") || kept.count(name) > 0; });
            if (ofForces)
                return;
            continue;
        }
        if (step.variable == "v")
            left = leftNow;
        if (step.variable != "x" && step.variable != "v") {
            kept[step.variable] = kicks;
            continue;
        }
        for (const auto& [group, kick] : kicks) {
            sums[step.variable][group] += kick;
            if (depth > 0)
                inBlocks.insert(group);
        }
    }
    for (int group : inBlocks) {
        left.erase(group);
        for (auto& [variable, kicks] : sums)
            kicks.erase(group);
    }
    for (const auto& [variable, kicks] : sums) {
        const optional<int> group = unlike(kicks);
        if (group && (variable == "x" || unlike(left)))
            throw OpenMMException("MonteCarloModeJump: the steps of the CustomIntegrator scale forces of one group and not of another (" + variable + ", f" +
                                  to_string(*group) + "), so they follow another potential than the System's, by which jumps are tested: scale the energy, by "
                                  "a parameter of the Context");
    }
}

/** Those that the Force's energy is in; none if it has no energy. */
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

/** Throws if the steps name the groups of their forces, and the energies of jumps have others besides. */
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
                                      ") is not in the steps of the CustomIntegrator, but would decide about jumps: call "
                                      "integrator.setIntegrationForceGroups({" + list + "}) before the Context is made");
}

} // namespace

void checkSteps(const CustomIntegrator& integrator, const System& system) {
    const vector<Step> steps = stepsOf(integrator);
    checkUpdates(steps);
    checkPotential(steps);
    checkScales(steps);
    checkGroups(steps, integrator, system);
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
