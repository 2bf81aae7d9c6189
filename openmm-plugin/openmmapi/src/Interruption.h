// Tells Ctrl-C inside a PythonForce from an error of OpenMM.
#ifndef MODEJUMP_INTERRUPTION_H_
#define MODEJUMP_INTERRUPTION_H_

#include "openmm/OpenMMException.h"

#include <string>

namespace ModeJumpPlugin {

/** Throws if the exception may be Ctrl-C in a PythonForce: OpenMM passes on the text of a Python exception, and Ctrl-C has none. */
inline void endIfInterrupted(const OpenMM::OpenMMException& error) {
    const std::string text = error.what();
    if (text.empty() || text == "<NULL>")
        throw OpenMM::OpenMMException("MonteCarloModeJump: a PythonForce raised an exception without a message, which may be Ctrl-C; one with a message, such "
                                      "as that of `assert condition, message`, rejects a proposal, and the run continues");
}

} // namespace ModeJumpPlugin

#endif
