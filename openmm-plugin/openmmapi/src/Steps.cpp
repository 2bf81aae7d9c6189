#include "Steps.h"

#include <algorithm>
#include <cctype>

using namespace OpenMM;
using namespace std;

namespace ModeJumpPlugin {

bool Step::assigns() const {
    return type == CustomIntegrator::ComputeGlobal || type == CustomIntegrator::ComputeSum || type == CustomIntegrator::ComputePerDof;
}

bool Step::begins() const { return type == CustomIntegrator::IfBlockStart || type == CustomIntegrator::WhileBlockStart; }

vector<Step> stepsOf(const CustomIntegrator& integrator) {
    vector<Step> steps(integrator.getNumComputations());
    int depth = 0;
    for (size_t i = 0; i < steps.size(); i++) {
        Step& step = steps[i];
        integrator.getComputationStep(static_cast<int>(i), step.type, step.variable, step.expression);
        depth -= step.type == CustomIntegrator::BlockEnd;
        step.depth = depth;
        depth += step.begins();
    }
    return steps;
}

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

int groupOf(const string& name, const string& quantity) {
    const string digits = name.compare(0, quantity.size(), quantity) == 0 ? name.substr(quantity.size()) : "";
    const bool number = !digits.empty() && digits.size() < 3 && all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
    return number ? stoi(digits) : -1;
}

bool names(const string& name, const string& quantity) { return name == quantity || groupOf(name, quantity) >= 0; }

} // namespace ModeJumpPlugin
