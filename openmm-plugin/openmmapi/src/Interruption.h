// What ends a program and is no answer of OpenMM.
#ifndef MODEJUMP_INTERRUPTION_H_
#define MODEJUMP_INTERRUPTION_H_

#include "openmm/OpenMMException.h"

#include <string>

namespace ModeJumpPlugin {

/**
 * Whether it is what Python raises to end a program, as by Ctrl-C in a PythonForce: OpenMM has the text of what was raised, and only these have none.
 */
inline bool isInterruption(const OpenMM::OpenMMException& error) {
    const std::string text = error.what();
    return text.empty() || text == "<NULL>";
}

} // namespace ModeJumpPlugin

#endif
