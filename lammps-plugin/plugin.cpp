// Entry point of the plugin, which the LAMMPS command `plugin load` looks up.

#include "fix_modejump.h"

#include "error.h"
#include "lammps.h"

using namespace LAMMPS_NS;

// Interface of lammpsplugin.h, which binary packages of LAMMPS omit.
extern "C" {
typedef void*(lammpsplugin_factory)(LAMMPS*, int, char**);
typedef struct {
    const char* version;
    const char* style;
    const char* name;
    const char* info;
    const char* author;
    lammpsplugin_factory* creator;
    void* handle;
} lammpsplugin_t;
typedef void (*lammpsplugin_regfunc)(lammpsplugin_t*, void*);

__attribute__((visibility("default"))) void lammpsplugin_init(void* lmp, void* handle, void* regfunc) {
    LAMMPS* lammps = static_cast<LAMMPS*>(lmp);
    // Classes of other versions have other memory layouts.
    if (lammps->num_ver != MODEJUMP_LAMMPS_VERSION)
        lammps->error->all(FLERR, "modejumpplugin.so was built for LAMMPS {}, but this is {}: rebuild it for this version",
                           MODEJUMP_LAMMPS_VERSION, lammps->num_ver);
    lammpsplugin_t plugin;
    plugin.version = lammps->version;
    plugin.style = "fix";
    plugin.name = "modejump";
    plugin.info = "generator moves, exact by a Metropolis test (modejump " MODEJUMP_VERSION ")";
    plugin.author = "the modejump authors";
    plugin.creator = [](LAMMPS* lmp, int narg, char** arg) -> void* { return new FixModeJump(lmp, narg, arg); };
    plugin.handle = handle;
    reinterpret_cast<lammpsplugin_regfunc>(regfunc)(&plugin, lmp);
}
}
