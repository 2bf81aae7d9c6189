/* The functions of libmodejump.
 *
 * Compiled into GROMACS, and so under its licence, LGPL 2.1 or later.
 */
#ifndef MODEJUMP_LIBRARY_H
#define MODEJUMP_LIBRARY_H

#include "modejump.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace modejump
{

/// Functions of libmodejump that are needed here, loaded at run time.
class Library
{
public:
    Library()
    {
        const char* named = std::getenv("MODEJUMP_LIB");
        const char* path  = named != nullptr ? named : "libmodejump.so";
        // never closed: threads of the library may live until the process ends
        void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr)
        {
            throw std::runtime_error(std::string(dlerror())
                                     + "; set MODEJUMP_LIB to the path of libmodejump.so");
        }
        find(library, "modejump_abi_version", &abiVersion);
        if (abiVersion() != MODEJUMP_ABI_VERSION)
        {
            throw std::runtime_error(std::string(path) + " has interface version "
                                     + std::to_string(abiVersion()) + ", but this GROMACS was patched for version "
                                     + std::to_string(MODEJUMP_ABI_VERSION));
        }
        find(library, "modejump_version", &version);
        find(library, "modejump_last_error", &lastError);
        find(library, "modejump_set_last_error", &setLastError);
        find(library, "modejump_model_load", &modelLoad);
        find(library, "modejump_model_free", &modelFree);
        find(library, "modejump_model_dimension", &modelDimension);
        find(library, "modejump_model_steering", &modelSteering);
        find(library, "modejump_model_match_atoms", &modelMatchAtoms);
        find(library, "modejump_model_check_box", &modelCheckBox);
        find(library, "modejump_model_check_labels", &modelCheckLabels);
        find(library, "modejump_move_options_init", &moveOptionsInit);
        find(library, "modejump_move_new", &moveNew);
        find(library, "modejump_move_free", &moveFree);
        find(library, "modejump_move_set_constraints", &moveSetConstraints);
        find(library, "modejump_move_set_temperature", &moveSetTemperature);
        find(library, "modejump_move_attempt", &moveAttempt);
        find(library, "modejump_move_statistics", &moveStatistics);
    }

    /// Throws the message of the library unless the status is success.
    void check(int32_t status) const
    {
        if (status != MODEJUMP_OK)
        {
            const char* message = "";
            lastError(&message);
            throw std::runtime_error(message);
        }
    }

    decltype(&modejump_abi_version)          abiVersion         = nullptr;
    decltype(&modejump_version)              version            = nullptr;
    decltype(&modejump_last_error)           lastError          = nullptr;
    decltype(&modejump_set_last_error)       setLastError       = nullptr;
    decltype(&modejump_model_load)           modelLoad          = nullptr;
    decltype(&modejump_model_free)           modelFree          = nullptr;
    decltype(&modejump_model_dimension)      modelDimension     = nullptr;
    decltype(&modejump_model_steering)       modelSteering      = nullptr;
    decltype(&modejump_model_match_atoms)    modelMatchAtoms    = nullptr;
    decltype(&modejump_model_check_box)      modelCheckBox      = nullptr;
    decltype(&modejump_model_check_labels)   modelCheckLabels   = nullptr;
    decltype(&modejump_move_options_init)    moveOptionsInit    = nullptr;
    decltype(&modejump_move_new)             moveNew            = nullptr;
    decltype(&modejump_move_free)            moveFree           = nullptr;
    decltype(&modejump_move_set_constraints) moveSetConstraints = nullptr;
    decltype(&modejump_move_set_temperature) moveSetTemperature = nullptr;
    decltype(&modejump_move_attempt)         moveAttempt        = nullptr;
    decltype(&modejump_move_statistics)      moveStatistics     = nullptr;

private:
    template<typename Function>
    static void find(void* library, const char* name, Function* function)
    {
        *function = reinterpret_cast<Function>(dlsym(library, name));
        if (*function == nullptr)
        {
            throw std::runtime_error(std::string("libmodejump has no function ") + name);
        }
    }
};

} // namespace modejump

#endif
