// Names of options in XML and in Python.
#ifndef MODEJUMP_NAMES_H_
#define MODEJUMP_NAMES_H_

#include "MonteCarloModeJump.h"
#include "openmm/OpenMMException.h"

#include <string>
#include <vector>

namespace ModeJumpPlugin {

/** Names, in the order of MonteCarloModeJump::Acceptance, Precision and Decoding. */
inline const std::vector<std::string> ACCEPTANCES = {"exact", "surrogate"};
inline const std::vector<std::string> PRECISIONS = {"f32", "f64", "bf16"};
inline const std::vector<std::string> DECODINGS = {"sequential", "jacobi", "gauss_seidel"};

template <typename Option> const std::string& nameOf(const std::vector<std::string>& names, Option option) {
    return names.at(static_cast<size_t>(option));
}

/** Index of a name; `what` is the name of the option. Throws an OpenMMException for an unknown name. */
template <typename Option> Option named(const std::vector<std::string>& names, const std::string& name, const std::string& what) {
    std::string list;
    for (size_t i = 0; i < names.size(); i++) {
        if (names[i] == name)
            return static_cast<Option>(i);
        list += (i == 0 ? "" : i + 1 == names.size() ? " or " : ", ") + names[i];
    }
    throw OpenMM::OpenMMException("MonteCarloModeJump: unknown " + what + " \"" + name + "\"; it must be " + list);
}

} // namespace ModeJumpPlugin

#endif
