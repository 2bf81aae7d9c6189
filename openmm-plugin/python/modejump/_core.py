"""The C interface (include/modejump.h) as called from Python: its structs, the library, callbacks and errors."""

import contextlib
import ctypes
import operator
import os
import sys
import sysconfig
import threading
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np
from openmm import unit

from .units import in_unit, reduced

ABI = 1
NAME = "libmodejump.so"
CALLBACK_FAILED = 254
#: Values of Outcome.fate, by their number in the C interface.
FATES = ("accepted", "rejected", "out_of_support", "singular", "non_finite", "constraint", "chirality", "wrong_mode")

_doubles = POINTER(c_double)
_Mode = CFUNCTYPE(c_int64, c_void_p, _doubles, c_uint64)
_Potential = CFUNCTYPE(c_int32, c_void_p, c_uint64, _doubles, _doubles)
_PotentialGradient = CFUNCTYPE(c_int32, c_void_p, c_uint64, _doubles, _doubles, _doubles)
_Relaxation = CFUNCTYPE(c_int32, c_void_p, _doubles, c_uint64, _doubles)


class Error(RuntimeError):
    """A call of the library failed; `status` is its number in modejump.h."""

    def __init__(self, message, status):
        super().__init__(message)
        self.status = status


def _whole(value, name, kind=c_uint64):
    """A whole number that fits this unsigned type; ctypes would silently take the lowest bits."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; it must be a whole number") from None
    most = 256 ** ctypes.sizeof(kind) - 1
    if not 0 <= number <= most:
        raise ValueError(f"{name} is {number}; it must be a whole number from 0 to {most}")
    return number


class _Struct(ctypes.Structure):
    """A struct of the C interface, which begins with its size."""

    def __init__(self, **values):
        super().__init__(struct_size=ctypes.sizeof(self), **values)

    def __setattr__(self, name, value):
        kind = dict(self._fields_).get(name)
        if kind in (c_uint32, c_uint64):
            value = _whole(value, name.removeprefix("n_"), kind)
        super().__setattr__(name, value)


class _Options(_Struct):
    _fields_ = [("struct_size", c_uint32), ("kind", c_uint32)] + [
        (name, c_uint64) for name in ("proposals", "seed", "stride", "batch", "draw_ahead", "rotations", "partial")
    ]


class _ModelOptions(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("precision", c_uint32),
        ("decoding", c_uint32),
        ("flags", c_uint32),
        ("segment", c_uint64),
        ("decoding_passes", c_uint64),
        ("decoding_tolerance", c_double),
    ]


class _Annealing(_Struct):
    _fields_ = (
        [("struct_size", c_uint32), ("kernel", c_uint32)]
        + [(name, c_uint64) for name in ("stages", "moves", "leapfrog")]
        + [("step", c_double)]
    )


class _LatentWalk(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("widths", _doubles),
        ("n_widths", c_uint64),
        ("leapfrog", c_uint64),
        ("seed", c_uint64),
    ]


class _Target(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("user", c_void_p),
        ("reduced_potential", _Potential),
        ("destroy", c_void_p),
        ("reduced_potential_gradient", _PotentialGradient),
        ("relax", _Relaxation),
    ]


class _State(_Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("step", c_uint64),
        ("replica", c_uint64),
        ("reduced_potential", c_double),
        ("x", _doubles),
        ("box", _doubles),
    ]


class _Outcome(_Struct):
    _fields_ = [("struct_size", c_uint32), ("outcome", c_uint32)] + [
        (name, c_double)
        for name in (
            "log_acceptance",
            "log_weight_current",
            "log_weight_proposed",
            "log_density_current",
            "log_density_proposed",
            "reduced_potential",
        )
    ]


class _ExchangeOutcome(_Struct):
    _fields_ = [("struct_size", c_uint32), ("outcome", c_uint32)] + [
        (name, c_double)
        for name in ("log_acceptance", "log_weight_a", "log_weight_b", "reduced_potential_a", "reduced_potential_b")
    ]


class _Statistics(_Struct):
    _fields_ = (
        [("struct_size", c_uint32), ("flags", c_uint32)]
        + [(name, c_uint64) for name in ("attempts", *FATES[:-1])]  # the last one was added later, at the end
        + [("mean_log_weight", c_double), ("effective_sample_size", c_double)]
        + [(name, c_uint64) for name in ("proposals", "screened", "exact_evaluations")]
        + [("correction_variance", c_double), ("wrong_mode", c_uint64)]
        + [("expected_acceptance", c_double), ("expected_acceptance_error", c_double)]
    )


def _load():
    """Loads the library at MODEJUMP_LIBRARY, or the library installed with this package."""
    installed = [folder / NAME for folder in (Path(__file__).parent, Path(sysconfig.get_path("platlib")) / "modejump")]
    named = os.environ.get("MODEJUMP_LIBRARY")
    path = Path(named) if named else next((path for path in installed if path.exists()), installed[-1])
    if not path.exists():
        raise ImportError(
            f"{NAME} was not found at {path}; install the package with `pip install ./openmm-plugin`, or set MODEJUMP_LIBRARY to its path"
        )
    library = ctypes.CDLL(str(path))
    library.modejump_abi_version.restype = c_uint32
    found = library.modejump_abi_version()
    if found != ABI:
        raise ImportError(f"{path} has interface version {found}, but this package requires {ABI}; reinstall modejump")
    return library


_library = _load()


def _call(name, *arguments):
    """Calls a function of the library; a failure is raised as an Error with its message."""
    status = getattr(_library, "modejump_" + name)(*arguments)
    if status != 0:
        message = c_char_p()
        _library.modejump_last_error(byref(message))
        raise Error(message.value.decode(), status)


def _pointer(array):
    return array.ctypes.data_as(_doubles)


class _Owner:
    """Owner of a handle of the library. There are no copies, since a second owner would free it twice."""

    _handle = None
    #: Name of the function that frees the handle, and advice on how to get a new object.
    _free, _origin = None, None

    def __del__(self):
        if self._handle:
            getattr(_library, self._free)(self._handle)

    def __reduce_ex__(self, protocol):
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled: {self._origin}")


class _SharedOwner(_Owner):
    """An owner that never changes, so that it can serve as its own copy."""

    def __copy__(self):
        return self

    def __deepcopy__(self, _):
        return self


def _handle_of(value, kind, what):
    """Handle of an argument, which must be of this kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{what} has type {type(value).__name__}, not {kind.__name__}: {kind._origin}")
    return value._handle


def _real(numbers):
    """The same; raises TypeError if they are complex."""
    if np.iscomplexobj(numbers):
        raise TypeError("expected real numbers, found complex ones")
    return numbers


def _box_of(box):
    """Box vectors as float64 [9] in nm, or None."""
    return None if box is None else np.ascontiguousarray(in_unit(box, unit.nanometer, "the box"), dtype=np.float64).reshape(9)


class _Callback:
    """A potential that the library can call, for configurations of this shape. Exceptions are kept in `raised`."""

    def __init__(self, potential, shape, relax=None, gradient=None):
        self.potential, self.shape, self.raised, self.relax, self.gradient = potential, shape, [], relax, gradient
        self.target = _Target(reduced_potential=_Potential(self._evaluate))
        if gradient is not None:
            self.target.reduced_potential_gradient = _PotentialGradient(self._evaluate_gradient)
        if relax is not None:
            self.target.relax = _Relaxation(self._relax)

    def of_one(self, x):
        """The reduced potential of one configuration."""
        return float(self._potentials(x.reshape(1, *self.shape).copy())[0])

    def _potentials(self, x):
        n, values = len(x), np.asarray(_real(reduced(self.potential(x), "the potential")), dtype=float)
        if values.shape != (n,):
            raise ValueError(
                f"the potential of {n} configurations has shape {values.shape}, not ({n},): "
                "it gets all of them in one array and must return an array with one number for each"
            )
        return values

    def _evaluate(self, _, n, pointer, u):
        try:
            x = np.ctypeslib.as_array(pointer, (n, *self.shape)).copy()
            np.ctypeslib.as_array(u, (n,))[:] = self._potentials(x)
            return 0
        except BaseException as error:  # no exception may cross the C interface
            return self._failed("the potential", error)

    def _evaluate_gradient(self, _, n, pointer, u, gradient):
        try:
            shape = (n, *self.shape)
            values, slopes = self.gradient(np.ctypeslib.as_array(pointer, shape).copy())
            slopes = in_unit(slopes, unit.nanometer**-1, "du/dx", "u is U/kT, so divide by kT")
            values, slopes = np.asarray(reduced(values, "the potential"), dtype=float), np.asarray(slopes, dtype=float)
            if values.shape != (n,) or slopes.shape != shape:
                raise ValueError(f"u and du/dx have shapes {values.shape} and {slopes.shape}, not ({n},) and {shape}")
            np.ctypeslib.as_array(u, (n,))[:] = values
            np.ctypeslib.as_array(gradient, shape)[:] = slopes
            return 0
        except BaseException as error:  # as above
            return self._failed("the gradient", error)

    def _relax(self, _, pointer, stage, u):
        try:
            value = self.relax(np.ctypeslib.as_array(pointer, self.shape).copy(), stage)
            u[0] = float(reduced(value, "the potential of the relaxation"))
            return 0
        except BaseException as error:  # as above
            return self._failed("the relaxation", error)

    def _failed(self, who, error):
        self.raised.append(error)
        try:
            text = str(error)
        except Exception:
            text = "no message"
        _library.modejump_set_last_error(f"{who} raised {type(error).__name__}: {text}".encode(errors="replace"))
        return 1


@contextlib.contextmanager
def _nothing_lost():
    """Raises an exception of a signal handler, usually that of Ctrl-C, that occurred in a callback before its first line: ctypes
    would print it and carry on. Signals are handled only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    lost, usual = [], sys.unraisablehook

    def keep(unraisable):
        if "ctypes callback" in (unraisable.err_msg or "") and unraisable.exc_value is not None:
            lost.append(unraisable.exc_value)
        else:
            usual(unraisable)

    sys.unraisablehook = keep
    try:
        yield
    finally:
        sys.unraisablehook = usual
        if lost:
            raise lost[0]


def _attempt(name, handle, callbacks, states, outcome):
    """Calls an attempt; raises exceptions of a potential again."""
    try:
        with _nothing_lost():
            _call(name, handle, *(byref(c.target) for c in callbacks), *(byref(s) for s in states), byref(outcome))
    except Error as error:
        raised = [e for c in callbacks for e in c.raised]
        for callback in callbacks:
            callback.raised.clear()  # else the exception, its frames and this callback would keep each other alive for ever, since ctypes hides the cycle
        raise (raised[0] if raised and error.status == CALLBACK_FAILED else error) from None


def _constraints(model, atoms, lengths, masses):
    """Arguments of a set_constraints function, and the arrays that they point to."""
    bonds = np.asarray(atoms, dtype=object).reshape(-1, 2)
    atoms = np.array([[_whole(atom, "an atom of a constraint") for atom in bond] for bond in bonds], dtype=np.uint64).reshape(-1, 2)
    lengths, masses = in_unit(lengths, unit.nanometer, "a length"), in_unit(masses, unit.dalton, "a mass")
    lengths, masses = (np.ascontiguousarray(v, dtype=np.float64) for v in (lengths, masses))
    if len(lengths) != len(atoms) or 3 * len(masses) != model.dimension - model.auxiliary:
        raise ValueError(f"found {len(atoms)} bonds, {len(lengths)} lengths and {len(masses)} masses of {model.shape[0]} atoms")
    pairs = atoms.ctypes.data_as(POINTER(c_uint64))
    return (c_uint64(len(atoms)), pairs, _pointer(lengths), _pointer(masses)), (atoms, lengths, masses)
