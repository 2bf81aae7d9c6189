#ifndef MODEJUMP_CLASSNAME_H_
#define MODEJUMP_CLASSNAME_H_

#include <cxxabi.h>
#include <cstdlib>
#include <string>
#include <typeinfo>

namespace ModeJumpPlugin {

/** Class name of an Integrator or a Force, without its namespace. */
template <typename Object> std::string className(const Object& object) {
    int status = 0;
    char* name = abi::__cxa_demangle(typeid(object).name(), nullptr, nullptr, &status);
    const std::string result = name == nullptr ? "unknown" : name;
    free(name);
    const size_t colon = result.rfind(':');
    return colon == std::string::npos ? result : result.substr(colon + 1);
}

} // namespace ModeJumpPlugin

#endif
