"""The plugin library and the types of its C front (capi/modejump_openmm.h)."""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_double, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path

import openmm

ABI = 10
NAME = "libOpenMMModeJump.so"


class CStatistics(ctypes.Structure):
    _fields_ = (
        [
            (name, c_uint64)
            for name in (
                "attempts",
                "accepted",
                "rejected",
                "out_of_support",
                "singular",
                "non_finite",
                "constraint",
                "chirality",
                "wrong_mode",
            )
        ]
        + [(name, c_double) for name in ("mean_log_weight", "effective_sample_size", "last_log_acceptance")]
        + [("screened", c_uint64), ("exact_evaluations", c_uint64), ("correction_variance", c_double)]
        + [("expected_acceptance", c_double), ("expected_acceptance_error", c_double)]
        + [("relaxations", c_uint64), ("relaxations_accepted", c_uint64)]
        + [("by_surrogate", c_uint32)]
    )


SIGNATURES = {
    "is_mode_jump": [c_void_p],
    "load_model": [c_void_p],
    "embed_model": [c_void_p],
    "get_text": [c_void_p, c_char_p, POINTER(c_char_p)],
    "get": [c_void_p, c_char_p, POINTER(c_double)],
    "set": [c_void_p, c_char_p, c_double],
    "set_particles": [c_void_p, c_int, POINTER(c_int)],
    "get_particles": [c_void_p, c_int, POINTER(c_int), POINTER(c_int)],
    "set_latent_walk": [c_void_p, c_int, POINTER(c_double)],
    "get_latent_walk": [c_void_p, c_int, POINTER(c_double), POINTER(c_int)],
    "attempt": [c_void_p, c_void_p, POINTER(c_int)],
    "check_ensemble": [c_void_p],
    "varies_steps": [c_void_p, POINTER(c_int)],
    "find_temperature": [c_void_p, POINTER(c_double)],
    "draw_velocities": [c_void_p, c_double, c_uint64, c_uint64, c_uint64],
    "get_statistics": [c_void_p, c_void_p, POINTER(CStatistics)],
    "get_advice": [c_void_p, c_void_p, POINTER(c_char_p)],
    "reset_statistics": [c_void_p, c_void_p],
    "log_weights": [c_void_p, c_void_p, c_uint64, POINTER(c_double), POINTER(c_uint64)],
    "update_parameters": [c_void_p, c_void_p],
}


def _find():
    """Path of the plugin: MODEJUMP_OPENMM_PLUGIN, or the library installed among OpenMM's own plugins."""
    named = os.environ.get("MODEJUMP_OPENMM_PLUGIN")
    if named:
        return Path(named)
    return Path(openmm.version.openmm_library_path) / "plugins" / NAME


def _load():
    path = _find()
    if not path.exists():
        raise ImportError(
            f"the OpenMM plugin of modejump was not found at {path}; install it with `pip install ./openmm-plugin`, "
            "or set MODEJUMP_OPENMM_PLUGIN to the path of the library"
        )
    # No effect if OpenMM has loaded the library already.
    try:
        openmm.Platform.loadPluginLibrary(str(path))
    except openmm.OpenMMException as error:
        raise ImportError(
            f"OpenMM {openmm.__version__} does not load the plugin of modejump, which may have been built for another version; install it "
            f"again with `pip install --force-reinstall --no-deps ./openmm-plugin` ({error})"
        ) from None
    library, holding = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
    library.modejump_openmm_abi_version.restype = c_uint32
    library.modejump_openmm_last_error.restype = c_char_p
    found = library.modejump_openmm_abi_version()
    if found != ABI:
        raise ImportError(f"{path} has interface version {found}, but this package requires {ABI}; reinstall modejump")
    # copies the System, whose PythonForces require the interpreter's lock
    library.modejump_openmm_update_parameters = holding.modejump_openmm_update_parameters
    for name, arguments in SIGNATURES.items():
        function = getattr(library, "modejump_openmm_" + name)
        function.argtypes = arguments
        function.restype = c_int
    return library


library = _load()


def address(wrapped, kind=openmm.Force):
    """Address of the C++ object behind an OpenMM Python object, which must be of this kind."""
    if not isinstance(wrapped, kind):
        raise TypeError(f"expected an OpenMM {kind.__name__}, found a {type(wrapped).__name__}")
    return int(wrapped.this)


def call(name, *arguments):
    """Calls a function of the C front; a failure is raised as an OpenMMException."""
    if getattr(library, "modejump_openmm_" + name)(*arguments) != 0:
        raise openmm.OpenMMException(library.modejump_openmm_last_error().decode())
