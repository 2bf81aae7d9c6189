"""Models and moves without an engine: numpy in, numpy out, through the C interface (include/modejump.h).

>>> model = modejump.Model("generator.safetensors")
>>> x, log_q = model.sample(1000, seed=1)
>>> move = modejump.Move(model, proposals=4, seed=7)
>>> outcome = move.attempt(x[0], potential, step=0)     # potential(x[n, ...]) -> u[n] = U/kT

Lengths are in nm, potentials reduced (divided by kT), logarithms natural. Molecules have the shape (atoms, 3), models of
abstract coordinates (dimension,).
"""

import ctypes
import json
import os
import sysconfig
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .statistics import Counts

ABI = 1
NAME = "libmodejump.so"
CALLBACK_FAILED = 254
METHODS = {"independence": 0, "isir": 1, "annealed": 0, "driven": 0, "latent_walk": None}
#: What each method has of its own, beside what all of them take.
SETTINGS = {
    "annealed": ("stages", "moves", "kernel_step", "leapfrog"),
    "driven": ("steps",),
    "latent_walk": ("widths", "leapfrog"),
}
SURROGATE = 2
HAMILTONIAN = 1
#: Of Outcome.reason, by the number in the C interface.
REASONS = ("accepted", "rejected", "out_of_support", "singular", "non_finite", "constraint", "chirality", "wrong_mode")

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


class _Struct(ctypes.Structure):
    """A struct of the C interface, which begins with its size."""

    def __init__(self, **values):
        super().__init__(struct_size=ctypes.sizeof(self), **values)


class _Options(_Struct):
    _fields_ = [("struct_size", c_uint32), ("kind", c_uint32)] + [
        (name, c_uint64) for name in ("n_proposals", "seed", "stride", "batch", "draw_ahead")
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
        + [(name, c_uint64) for name in ("attempts", *REASONS[:-1])]  # the last one came later, and is at the end
        + [("mean_log_weight", c_double), ("effective_sample_size", c_double)]
        + [(name, c_uint64) for name in ("proposals", "screened", "exact_evaluations")]
        + [("correction_variance", c_double), ("wrong_mode", c_uint64)]
        + [("expected_acceptance", c_double), ("expected_acceptance_error", c_double)]
    )


def _load():
    """MODEJUMP_LIBRARY, or the library installed with this package."""
    installed = [folder / NAME for folder in (Path(__file__).parent, Path(sysconfig.get_path("platlib")) / "modejump")]
    named = os.environ.get("MODEJUMP_LIBRARY")
    path = Path(named) if named else next((path for path in installed if path.exists()), installed[-1])
    if not path.exists():
        raise ImportError(
            f"{NAME} is not at {path}; install the package with `pip install ./openmm-plugin`, or set MODEJUMP_LIBRARY to it"
        )
    library = ctypes.CDLL(str(path))
    library.modejump_abi_version.restype = c_uint32
    found = library.modejump_abi_version()
    if found != ABI:
        raise ImportError(f"{path} has interface {found}, this package needs {ABI}; reinstall modejump")
    return library


_library = _load()


def _call(name, *arguments):
    """Calls a function; its failure becomes an Error with the library's message."""
    status = getattr(_library, "modejump_" + name)(*arguments)
    if status != 0:
        message = c_char_p()
        _library.modejump_last_error(byref(message))
        raise Error(message.value.decode(), status)


def _pointer(array):
    return array.ctypes.data_as(_doubles)


class _Callback:
    """A potential as the library calls it, for configurations of this shape. What it raises waits in `raised`."""

    def __init__(self, potential, shape, relax=None, gradient=None):
        self.potential, self.shape, self.raised, self.relax, self.gradient = potential, shape, [], relax, gradient
        self.target = _Target(reduced_potential=_Potential(self._evaluate))
        if gradient is not None:
            self.target.reduced_potential_gradient = _PotentialGradient(self._evaluate_gradient)
        if relax is not None:
            self.target.relax = _Relaxation(self._relax)

    def of_one(self, x):
        """The reduced potential of one configuration."""
        return float(np.asarray(self.potential(x.reshape(1, *self.shape)), dtype=float)[0])

    def _evaluate(self, _, n, pointer, u):
        try:
            values = np.asarray(self.potential(np.ctypeslib.as_array(pointer, (n, *self.shape)).copy()), dtype=float)
            if values.shape != (n,):
                raise ValueError(f"the potential of {n} configurations has the shape {values.shape}, not ({n},)")
            np.ctypeslib.as_array(u, (n,))[:] = values
            return 0
        except BaseException as error:  # no exception may cross the C interface
            return self._failed("the potential", error)

    def _evaluate_gradient(self, _, n, pointer, u, gradient):
        try:
            shape = (n, *self.shape)
            values, slopes = self.gradient(np.ctypeslib.as_array(pointer, shape).copy())
            values, slopes = np.asarray(values, dtype=float), np.asarray(slopes, dtype=float)
            if values.shape != (n,) or slopes.shape != shape:
                raise ValueError(f"u and du/dx have the shapes {values.shape} and {slopes.shape}, not ({n},) and {shape}")
            np.ctypeslib.as_array(u, (n,))[:] = values
            np.ctypeslib.as_array(gradient, shape)[:] = slopes
            return 0
        except BaseException as error:  # as above
            return self._failed("the gradient", error)

    def _relax(self, _, pointer, stage, u):
        try:
            u[0] = float(self.relax(np.ctypeslib.as_array(pointer, self.shape).copy(), stage))
            return 0
        except BaseException as error:  # as above
            return self._failed("the relaxation", error)

    def _failed(self, who, error):
        self.raised.append(error)
        _library.modejump_set_last_error(f"{who} raised {type(error).__name__}: {error}".encode())
        return 1


def _attempt(name, handle, callbacks, states, outcome):
    """Calls an attempt; raises again what a potential has raised."""
    try:
        _call(name, handle, *(byref(c.target) for c in callbacks), *(byref(s) for s in states), byref(outcome))
    except Error as error:
        raised = [e for c in callbacks for e in c.raised]
        raise (raised[0] if raised and error.status == CALLBACK_FAILED else error) from None


def _constraints(model, atoms, lengths, masses):
    """The arguments of a set_constraints function, and the arrays behind them."""
    atoms = np.ascontiguousarray(atoms, dtype=np.uint64).reshape(-1, 2)
    lengths, masses = (np.ascontiguousarray(v, dtype=np.float64) for v in (lengths, masses))
    if len(lengths) != len(atoms) or 3 * len(masses) != model.dimension - model.auxiliary:
        raise ValueError(f"{len(atoms)} bonds, {len(lengths)} lengths, {len(masses)} masses of {model.shape[0]} atoms")
    pairs = atoms.ctypes.data_as(POINTER(c_uint64))
    return (c_uint64(len(atoms)), pairs, _pointer(lengths), _pointer(masses)), (atoms, lengths, masses)


def _statistics_of(name, handle):
    counts = _Statistics()
    _call(name, handle, byref(counts))
    values = {name: getattr(counts, name) for name, _ in _Statistics._fields_[2:]}
    return MoveStatistics(**values, likelihood="surrogate" if counts.flags & 1 else "exact")


def set_device(name):
    """Where models run that are loaded from now on: "cpu", "auto" (a GPU, if there is one and the model has kernels for it),
    "cuda" or "cuda:N". Raises Error if there is no such device. Those of MonteCarloModeJump are loaded when a Context is made.
    """
    _call("set_device", name.encode())
    os.environ["MODEJUMP_DEVICE"] = name  # for the plugin, which is a library of its own


class Model:
    """A model file: a generator with its density, or an energy-based model.

    Raises Error if there is no such file, or it is malformed.
    """

    def __init__(self, path):
        handle = c_void_p()
        _call("model_load", os.fsencode(path), byref(handle))
        self._own(handle)

    def _own(self, handle):
        self._handle = handle
        dimension, text = c_uint64(), c_char_p()
        _call("model_dimension", self._handle, byref(dimension))
        _call("model_metadata", self._handle, byref(text))
        #: Coordinates of a configuration.
        self.dimension = dimension.value
        #: What the file says of the model: its kind, coordinates, topology, temperature, provenance.
        self.metadata = json.loads(text.value)
        _call("model_hash", self._handle, byref(text))
        #: Of the file's bytes, hexadecimal.
        self.hash = text.value.decode()
        _call("model_device", self._handle, byref(text))
        #: Where it runs: "cpu", or the name of a GPU.
        self.device = text.value.decode()
        variance, auxiliary = c_double(), c_uint64()
        _call("model_steering", self._handle, byref(variance), byref(auxiliary))
        #: Of a steerable model: its temperature over that of its training; 0 for a model that has one temperature only.
        self.latent_temperature = variance.value
        #: How many of the coordinates, the last ones, are auxiliary; a Move has configurations without them.
        self.auxiliary = auxiliary.value
        molecule = self.metadata.get("topology") is not None or self.metadata["coordinates"]["kind"] != "cartesian"
        #: Shape of a configuration for a Move: (atoms, 3), or (dimension,) for abstract coordinates.
        self.move_shape = self._shape_of(self.dimension - self.auxiliary, molecule)
        #: Shape of a configuration, auxiliary coordinates included.
        self.shape = self._shape_of(self.dimension, molecule and self.auxiliary == 0)

    @staticmethod
    def _shape_of(dimension, molecule):
        return (dimension // 3, 3) if molecule else (dimension,)

    def at_temperature(self, kelvin):
        """A steerable model at a temperature, K: its samples and densities are of that temperature. Raises Error for other models."""
        handle = c_void_p()
        _call("model_at_temperature", self._handle, c_double(kelvin), byref(handle))
        model = Model.__new__(Model)
        model._own(handle)
        return model

    @classmethod
    def load(cls, path):
        """The model of a file; the same as Model(path)."""
        return cls(path)

    def __del__(self):
        if getattr(self, "_handle", None):
            _library.modejump_model_free(self._handle)

    def _rows(self, x):
        """x as float64 [n][dimension], and the shape of one value a configuration."""
        x = np.ascontiguousarray(x, dtype=np.float64)
        k = len(self.shape)
        if x.ndim < k or x.shape[x.ndim - k :] != self.shape:
            raise ValueError(f"configurations of shape {self.shape} are needed, got an array of shape {x.shape}")
        return x.reshape(-1, self.dimension), x.shape[: x.ndim - k]

    def sample(self, n, seed=1, first=0):
        """x [n, *shape] in nm and log q [n] of samples number first to first + n - 1 of the sequence that belongs to the seed.

        log q = -inf marks a sample that must not be used. Raises Error for an energy-based model, which has no samples.
        """
        x, log_density = np.empty((n, *self.shape)), np.empty(n)
        arguments = (c_uint64(seed), c_uint64(first), c_uint64(n), _pointer(x), _pointer(log_density))
        _call("model_sample", self._handle, *arguments)
        return x, log_density

    def log_density(self, x):
        """log q of each configuration in x [..., *shape]; -inf where the density is zero or undefined."""
        rows, shape = self._rows(x)
        log_density = np.empty(len(rows))
        _call("model_log_density", self._handle, c_uint64(len(rows)), _pointer(rows), _pointer(log_density))
        return log_density.reshape(shape)[()]

    def log_density_gradient(self, x):
        """log q [...] and its gradient by x [..., *shape], 1/nm; the gradient is zero where log q is -inf."""
        rows, shape = self._rows(x)
        log_density, gradient = np.empty(len(rows)), np.empty_like(rows)
        pointers = (_pointer(rows), _pointer(log_density), _pointer(gradient))
        _call("model_log_density_gradient", self._handle, c_uint64(len(rows)), *pointers)
        return log_density.reshape(shape)[()], gradient.reshape(*shape, *self.shape)


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt. With several proposals the numbers are those of the one that decided."""

    accepted: bool
    #: "accepted", "rejected" by the Metropolis test, or what made the proposal unusable.
    reason: str
    #: The configuration after the attempt, nm, and its reduced potential.
    x: np.ndarray
    reduced_potential: float
    log_acceptance: float
    #: -u(x) - log q(x)
    log_weight_current: float
    log_weight_proposed: float
    log_density_current: float
    log_density_proposed: float


@dataclass(frozen=True, kw_only=True)
class MoveStatistics(Counts):
    """Attempts of a Move."""

    proposals: int


class Move:
    """Proposals of a generator, decided by a Metropolis test on the caller's own potential. One thread at a time.

    Parameters
    ----------
    model : Model
        The generator.
    method : "independence", "isir", "annealed", "latent_walk" or "driven"
        With several proposals: Metropolis tests one after the other, or iterated sampling-importance resampling. An annealed
        proposal is relaxed on its way from the generator to the target, and weighed by its path. A latent walk takes no proposals of
        the generator, but small steps in its latent space, each tested; it has no weights. A driven move is for a part of a system:
        it is pulled to its proposal, while the `relax` of an attempt moves the rest; the work decides.
    proposals : int
        Of one attempt; each costs one potential.
    seed : int
        The random numbers of an attempt are a function of seed, step and replica.
    stride, batch : int
        Steps between attempts, and how many attempts' proposals are drawn together; stride 0 if it is not known.
    screen : Model, optional
        A density that is cheap and may be wrong, such as an energy-based model: it screens the proposals, and the exact one
        decides about what passes (delayed acceptance).
    acceptance : "exact" or "surrogate"
        "surrogate": the screen alone decides. This is biased, and the statistics say so.
    draw_ahead : bool
        Whether a thread of its own draws the next batch of proposals meanwhile, once `stride` steps lie between attempts: the
        same results, bit for bit.
    mode : function, optional
        For a model of several metastable states, between which the method "independence" jumps: says in which mode a configuration is,
        a number from 0, or -1 for none, as a function of x alone. Without it the regions of the model file are the modes.
    stages, moves : int, optional
        Of "annealed": temperatures between generator and target, and moves at each.
    kernel_step : float, optional
        Of "annealed": the step of a move in the square of x's unit, x - step dE/dx + sqrt(2 step) noise.
    widths : sequence of float, optional
        Of "latent_walk": widths of the steps, one of which is chosen in every attempt; the prior of a latent coordinate has width 1, or
        is uniform on [0, 1).
    leapfrog : int, optional
        Of "annealed" and "latent_walk": steps of a Hamiltonian trajectory instead of a single step.
    steps : int, optional
        Of "driven": perturbations; 50 if not said.
    """

    #: What a function of the mode raised in the present attempt.
    _thrown = None

    def __init__(
        self,
        model,
        method="independence",
        *,
        proposals=1,
        seed=0,
        stride=0,
        batch=32,
        screen=None,
        acceptance="exact",
        draw_ahead=False,
        mode=None,
        **settings,
    ):
        if method not in METHODS or acceptance not in ("exact", "surrogate"):
            methods = ", ".join(METHODS)
            raise ValueError(f"method {method!r} and acceptance {acceptance!r}: use {methods}; exact, surrogate")
        if acceptance == "surrogate" and screen is None:
            raise ValueError('acceptance="surrogate" needs a screen, which is to decide')
        if screen is not None and method != "independence":
            raise ValueError("a screen goes with the method independence")
        for name in settings:
            if name not in SETTINGS.get(method, ()):
                takers = [other for other, names in SETTINGS.items() if name in names]
                where = f"goes with the method {' or '.join(takers)}" if takers else "is no setting of a Move"
                raise ValueError(f"{name} {where}, not with {method}")
        if mode is not None and (method != "independence" or screen is not None):
            raise ValueError("mode goes with the method independence, without a screen")
        self.model = model
        self._handle = c_void_p()
        if method == "latent_walk":
            self._walk(proposals, seed, **settings)
            return
        kind = SURROGATE if acceptance == "surrogate" else METHODS[method]
        options = _Options(kind=kind, n_proposals=proposals, seed=seed, stride=stride, batch=batch, draw_ahead=draw_ahead)
        if mode is not None:
            self._between_modes(model, mode, options)
        elif method == "annealed":
            self._anneal(options, **settings)
        elif method == "driven":
            steps = c_uint64(settings.get("steps", 50))
            _call("move_driven_new", model._handle, byref(options), steps, byref(self._handle))
        elif screen is None:
            _call("move_new", model._handle, byref(options), byref(self._handle))
        else:
            handles = (model._handle, screen._handle)
            _call("move_delayed_acceptance_new", *handles, byref(options), byref(self._handle))

    def _between_modes(self, model, mode, options):
        def number(_, x, dimension):
            try:
                return int(mode(np.ctypeslib.as_array(x, shape=(dimension,)).copy()))
            except BaseException as error:  # carried over the library's frames; in no mode, the attempt ends
                self._thrown = error
                return -1

        self._mode = _Mode(number)  # lives as long as the move
        _call("move_mode_jump_new", model._handle, byref(options), self._mode, None, byref(self._handle))

    def _anneal(self, options, stages=None, moves=None, kernel_step=None, leapfrog=0):
        annealing = _Annealing()
        _call("annealing_options_init", byref(annealing))
        chosen = {"stages": stages, "moves": moves, "step": kernel_step}
        for name, value in chosen.items():
            if value is not None:
                setattr(annealing, name, value)
        if leapfrog > 0:
            annealing.kernel, annealing.leapfrog = HAMILTONIAN, leapfrog
        _call("move_annealed_new", self.model._handle, byref(options), byref(annealing), byref(self._handle))

    def _walk(self, proposals, seed, widths=None, leapfrog=0):
        if proposals != 1:
            raise ValueError(f"{proposals} proposals: a latent walk makes one step in an attempt")
        options = _LatentWalk(seed=seed, leapfrog=leapfrog)
        if widths is not None:
            widths = np.ascontiguousarray(widths, dtype=np.float64).reshape(-1)
            options.widths, options.n_widths = _pointer(widths), len(widths)
        _call("move_latent_walk_new", self.model._handle, byref(options), byref(self._handle))

    def __del__(self):
        if getattr(self, "_handle", None):
            _library.modejump_move_free(self._handle)

    def set_constraints(self, atoms, lengths, masses):
        """Bonds that the dynamics keeps: pairs of atoms [n, 2], lengths [n] in nm, masses of all atoms in dalton.

        The target gets the metric term that constrained dynamics has. Raises Error unless the model keeps each bond too.
        """
        arguments, _arrays = _constraints(self.model, atoms, lengths, masses)
        _call("move_set_constraints", self._handle, *arguments)

    def set_temperature(self, kelvin):
        """The temperature of the ensemble, K: proposals of a steerable model are for it from now on; other models have one only."""
        _call("move_set_temperature", self._handle, c_double(kelvin))

    def attempt(self, x, potential, *, step, reduced_potential=None, replica=0, box=None, relax=None, gradient=None):
        """One attempt from the configuration x [*shape], which is not changed; the new one is in the outcome.

        `potential(x)` gives the reduced potentials U/kT [n] of configurations x [n, *shape]; NaN or infinity rejects one.
        `reduced_potential` is that of x, if it is known already. `box`, nm, has the box vectors as rows. What the potential
        raises is raised again here.

        Of an annealed move, and of trajectories in latent space: `gradient(x)` gives u [n] and du/dx [n, *shape] of configurations.

        Of a driven move: `relax(x, stage)` moves the rest of the system with x [*shape] held fast, by a kernel reversible for
        exp(-u(x, .)) with random numbers of this attempt and stage, and returns the reduced potential there. `potential` is asked for
        where the rest is. The caller puts the rest back after an attempt that raises or is not accepted.
        """
        state_x, shape = np.array(x, dtype=np.float64, order="C"), self.model.move_shape
        if state_x.shape != shape:
            raise ValueError(f"one configuration of shape {shape} is needed, got {np.shape(x)}")
        callback = _Callback(potential, shape, relax, gradient)
        if reduced_potential is None:
            reduced_potential = callback.of_one(state_x)
        box = None if box is None else np.ascontiguousarray(box, dtype=np.float64).reshape(9)
        state = _State(
            step=step,
            replica=replica,
            reduced_potential=reduced_potential,
            x=_pointer(state_x),
            box=None if box is None else _pointer(box),
        )
        outcome = _Outcome()
        _attempt("move_attempt", self._handle, [callback], [state], outcome)
        if self._thrown is not None:
            thrown, self._thrown = self._thrown, None
            raise thrown
        names = [name for name, _ in _Outcome._fields_[2:]]
        reason = REASONS[outcome.outcome]
        values = {name: getattr(outcome, name) for name in names}
        return Outcome(reason == "accepted", reason, state_x, **values)

    def statistics(self):
        """Counters, and what the weights of the proposals say of the generator."""
        return _statistics_of("move_statistics", self._handle)

    def reset_statistics(self):
        _call("move_reset_statistics", self._handle)

    def log_weights(self):
        """log w = -u(x) - log q(x) of the latest proposals [n], oldest first; -inf for unusable ones."""
        n = c_uint64()
        _call("move_log_weights", self._handle, c_uint64(0), None, byref(n))
        weights = np.empty(n.value)
        _call("move_log_weights", self._handle, n, _pointer(weights), byref(n))
        return weights


class Bijection:
    """The invertible map f = T_to ∘ T_from⁻¹ of two flows with one latent space, from the configurations of one to
    those of the other.

    A map in internal coordinates changes the shape of a molecule; every image has the frame of its original. Raises
    Error for models without a latent space, and of different atoms, latent spaces or frames.
    """

    def __init__(self, from_, to):
        self._handle = c_void_p()
        _call("bijection_new", from_._handle, to._handle, byref(self._handle))
        self.from_, self.to = from_, to

    def __del__(self):
        if getattr(self, "_handle", None):
            _library.modejump_bijection_free(self._handle)

    def map(self, x):
        """f(x) [..., *shape] of whole molecules x, nm, and ln |df/dx| [...]; where x has no image, x itself and
        -inf."""
        return self._images(x, 0)

    def inverse(self, y):
        """The same for f⁻¹."""
        return self._images(y, 1)

    def _images(self, x, inverse):
        rows, shape = self.from_._rows(x)
        y, log_det, status = np.empty_like(rows), np.empty(len(rows)), np.empty(len(rows), dtype=np.uint32)
        pointers = (_pointer(rows), _pointer(y), _pointer(log_det), status.ctypes.data_as(POINTER(c_uint32)))
        _call("bijection_map", self._handle, c_uint32(inverse), c_uint64(len(rows)), *pointers)
        return y.reshape(*shape, *self.from_.shape), log_det.reshape(shape)[()]


@dataclass(frozen=True)
class ExchangeOutcome:
    """What became of an exchange between replicas a and b."""

    accepted: bool
    #: "accepted", "rejected" by the Metropolis test, or why one side has no image.
    reason: str
    #: Configurations of the two replicas after the attempt, nm, and their reduced potentials.
    a: np.ndarray
    b: np.ndarray
    reduced_potential_a: float
    reduced_potential_b: float
    #: The sum of the two weights.
    log_acceptance: float
    #: u_a(x_a) - u_b(f(x_a)) + ln |df/dx|, which weighs f(x_a) as a sample of b; and the same the other way.
    log_weight_a: float
    log_weight_b: float


class Exchange:
    """Learned replica exchange: x_b becomes f(x_a), x_a becomes f⁻¹(x_b), if a Metropolis test accepts. One thread at
    a time.

    The map may be any; with that of one model to itself this is ordinary replica exchange. After an acceptance draw
    the velocities of both replicas anew.

    Parameters
    ----------
    map : Bijection
        From the configurations of replica a to those of replica b.
    seed : int
        The random number of an attempt is a function of seed, step and the two replicas.
    carry_frames : bool
        Of maps in internal coordinates: whether configurations take their position and orientation along to the other
        replica, instead of each replica keeping its own.
    """

    def __init__(self, map, *, seed=0, carry_frames=False):
        self.bijection = map
        self._handle = c_void_p()
        _call("exchange_new", map._handle, c_uint64(seed), byref(self._handle))
        _call("exchange_carry_frames", self._handle, c_uint32(carry_frames))

    def __del__(self):
        if getattr(self, "_handle", None):
            _library.modejump_exchange_free(self._handle)

    def set_constraints(self, atoms, lengths, masses):
        """Bonds that the dynamics of both replicas keeps, as Move.set_constraints. Raises Error unless both models
        keep them too."""
        arguments, _arrays = _constraints(self.bijection.from_, atoms, lengths, masses)
        _call("exchange_set_constraints", self._handle, *arguments)

    def attempt(self, a, b, potentials, *, step, reduced_potentials=None, replicas=(0, 1), boxes=(None, None)):
        """One attempt from the configurations a and b [*shape], which are not changed; the new ones are in the outcome.

        `potentials` are those of the two replicas, each as for Move.attempt; `reduced_potentials` those of a and b,
        if they are known already. What a potential raises is raised again here.
        """
        model = self.bijection.from_
        callbacks, states, x, kept = [], [], [], []
        for i, start in enumerate((a, b)):
            rows, shape = model._rows(start)
            if shape != ():
                raise ValueError(f"one configuration of shape {model.shape} is needed, got {np.shape(start)}")
            x.append(rows.copy())
            callbacks.append(_Callback(potentials[i], model.shape))
            u = callbacks[i].of_one(x[i]) if reduced_potentials is None else reduced_potentials[i]
            box = None if boxes[i] is None else np.ascontiguousarray(boxes[i], dtype=np.float64).reshape(9)
            kept.append(box)
            pointers = {"x": _pointer(x[i]), "box": None if box is None else _pointer(box)}
            states.append(_State(step=step, replica=replicas[i], reduced_potential=u, **pointers))
        outcome = _ExchangeOutcome()
        _attempt("exchange_attempt", self._handle, callbacks, states, outcome)
        reason = REASONS[outcome.outcome]
        values = {name: getattr(outcome, name) for name, _ in _ExchangeOutcome._fields_[2:]}
        return ExchangeOutcome(reason == "accepted", reason, *(x.reshape(model.shape) for x in x), **values)

    def statistics(self):
        """Counters; the weights are those of the configurations of a, mapped, as samples of b."""
        return _statistics_of("exchange_statistics", self._handle)

    def reset_statistics(self):
        _call("exchange_reset_statistics", self._handle)
