#include "CustomKicks.h"

#include "Steps.h"
#include "lepton/Exception.h"
#include "lepton/ParsedExpression.h"
#include "lepton/Parser.h"
#include "openmm/OpenMMException.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <sstream>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

namespace {

/** Coefficients of the forces of each group in a variable; group -1 stands for all groups together. */
using Kicks = map<int, double>;

/** A value below 1 for every name. */
map<string, double> valuesOf(const vector<Step>& steps) {
    map<string, double> values;
    for (const Step& step : steps)
        for (const string& name : namesIn(step.expression)) {
            const double turn = 0.618 * static_cast<double>(values.size());
            values.emplace(name, 0.1 + 0.8 * (turn - floor(turn)));
        }
    return values;
}

/** Derivative at these values. Throws a Lepton::Exception if one is not known; terms without the variable need none. */
double derivative(const string& expression, const string& variable, const map<string, double>& values) {
    return Lepton::Parser::parse(expression).differentiate(variable).optimize().evaluate(values);
}

/** Kicks of an expression: derivatives at these values, also through variables that hold forces. */
Kicks kicksOf(const string& text, const map<string, double>& values, const map<string, Kicks>& kept) {
    Kicks kicks;
    for (const string& name : namesIn(text)) {
        const auto of = kept.find(name);
        if (!names(name, "f") && (of == kept.end() || of->second.empty()))
            continue;
        const double factor = derivative(text, name, values);
        if (names(name, "f"))
            kicks[groupOf(name, "f")] += factor;
        else
            for (const auto& [group, kick] : of->second)
                kicks[group] += factor * kick;
    }
    return kicks;
}

/** Forces that variables hold from one step to the next. */
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

/** Sums of the kicks of x and v in one step of the integrator. */
struct Sums {
    map<string, Kicks> of;
    /** What remains of them in v at the end, after friction. */
    Kicks left;
    set<int> inBlocks;
};

bool usesForces(const Step& step, const map<string, Kicks>& kept) {
    const set<string> used = namesIn(step.expression);
    return any_of(used.begin(), used.end(), [&](const string& name) { return names(name, "f") || kept.count(name) > 0; });
}

/** Sums of all steps; none if an expression of forces has functions that only the Context knows. */
optional<Sums> sumsOf(const vector<Step>& steps) {
    const map<string, double> values = valuesOf(steps);
    map<string, Kicks> kept = keptForces(steps, values);
    Sums sums;
    for (const Step& step : steps) {
        if (step.type != CustomIntegrator::ComputePerDof)
            continue;
        Kicks kicks, left;
        try {
            kicks = kicksOf(step.expression, values, kept);
            map<string, Kicks> withVelocities = kept;
            withVelocities["v"] = sums.left;
            left = kicksOf(step.expression, values, withVelocities);
        } catch (const Lepton::Exception&) {
            if (usesForces(step, kept))
                return nullopt;
            continue;
        }
        if (step.variable == "v")
            sums.left = left;
        if (step.variable != "x" && step.variable != "v") {
            kept[step.variable] = kicks;
            continue;
        }
        for (const auto& [group, kick] : kicks) {
            sums.of[step.variable][group] += kick;
            if (step.depth > 0)
                sums.inBlocks.insert(group);
        }
    }
    return sums;
}

/** A group whose kicks differ from those of the others, if there is one. */
optional<int> unlike(const Kicks& kicks) {
    double largest = 0;
    for (const auto& [group, kick] : kicks)
        largest = max(largest, abs(kick));
    const bool ofAll = kicks.count(-1) > 0;
    for (const auto& [group, kick] : kicks) {
        const double expected = ofAll && group >= 0 ? 0 : kicks.begin()->second;
        if (abs(kick - expected) > 1e-4 * largest) // fractions of a step may be rounded decimals
            return group;
    }
    return nullopt;
}

/**
 * Effect of one step of the integrator with the current global variables: kicks times the mass, and drifts, ps, and the factor by which
 * friction reduces v.
 */
struct Times {
    map<string, double> values;
    map<string, Kicks> kept;
    set<string> ofVelocities;
    Kicks kicks;
    double drift = 0, friction = 1;
};

void followGlobal(const Step& step, Times& times) {
    times.values.erase(step.variable);
    try {
        if (step.type == CustomIntegrator::ComputeGlobal)
            times.values[step.variable] = Lepton::Parser::parse(step.expression).evaluate(times.values);
    } catch (const Lepton::Exception&) { // depends on energies or random numbers: not known
    }
}

/** Follows a step; false if it is of a kind that cannot be followed. Throws a Lepton::Exception if a value is not known. */
bool follow(const Step& step, Times& times) {
    const set<string> used = namesIn(step.expression);
    const bool moves = step.variable == "x" || step.variable == "v";
    if (used.count("uniform") > 0 || step.variable == "dt" || (step.depth > 0 && moves))
        return false;
    if (step.type == CustomIntegrator::ComputeGlobal || step.type == CustomIntegrator::ComputeSum)
        followGlobal(step, times);
    if (step.type != CustomIntegrator::ComputePerDof)
        return true;
    const Kicks kicks = kicksOf(step.expression, times.values, times.kept);
    const bool keepsVelocities = any_of(used.begin(), used.end(), [&](const string& name) { return times.ofVelocities.count(name) > 0; });
    if (!moves) {
        times.kept[step.variable] = kicks;
        if (keepsVelocities || used.count("v") > 0)
            times.ofVelocities.insert(step.variable);
        return true;
    }
    const double ofVelocity = derivative(step.expression, "v", times.values);
    if (step.variable == "x") {
        times.drift += ofVelocity;
        return kicks.empty() && !keepsVelocities;
    }
    times.friction *= ofVelocity;
    for (const auto& [group, kick] : kicks)
        times.kicks[group] += kick;
    return !keepsVelocities;
}

/** Effect of one step; none for steps of another kind. Throws a Lepton::Exception if a value is not known. */
optional<Times> timesOf(const CustomIntegrator& integrator) {
    Times times;
    for (int i = 0; i < integrator.getNumGlobalVariables(); i++)
        times.values[integrator.getGlobalVariableName(i)] = integrator.getGlobalVariable(i);
    times.values["dt"] = integrator.getStepSize();
    times.values["m"] = 1;
    for (int pass = 0; pass < 2; pass++) { // the first pass finds what variables hold
        times.kicks.clear();
        times.drift = 0;
        times.friction = 1;
        for (const Step& step : stepsOf(integrator))
            if (!follow(step, times))
                return nullopt;
    }
    return times;
}

} // namespace

void checkScales(const CustomIntegrator& integrator) {
    optional<Sums> sums = sumsOf(stepsOf(integrator));
    if (!sums)
        return;
    for (int group : sums->inBlocks) {
        sums->left.erase(group);
        for (auto& [variable, kicks] : sums->of)
            kicks.erase(group);
    }
    for (const auto& [variable, kicks] : sums->of) {
        const optional<int> group = unlike(kicks);
        if (group && (variable == "x" || unlike(sums->left)))
            throw OpenMMException("MonteCarloModeJump: the steps of the CustomIntegrator scale the forces of one group but not those of another (" +
                                  variable + ", f" +
                                  to_string(*group) + "), so they follow a different potential from that of the System, which jumps use: scale the energy with "
                                  "a parameter of the Context");
    }
}

void checkStrength(const CustomIntegrator& integrator) {
    optional<Times> times;
    try {
        times = timesOf(integrator);
    } catch (const Lepton::Exception&) { // unknown factors
    }
    if (!times || times->kicks.empty() || times->drift <= 0 || times->friction <= 0)
        return;
    const double strength = times->kicks.begin()->second / times->drift; // of the first group, or of all forces if they are not used by group
    if (strength > 1.001 || strength < 0.999 * min(1.0, times->friction)) {
        ostringstream message;
        message << "MonteCarloModeJump: the steps of the CustomIntegrator scale forces by " << strength << ", so they follow a different potential "
                << "from that of the System, which jumps use: scale the energy with a parameter of the Context";
        throw OpenMMException(message.str());
    }
}

} // namespace ModeJumpPlugin
