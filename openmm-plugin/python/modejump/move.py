"""Moves without an engine: numpy in, numpy out, through the C interface (include/modejump.h).

>>> model = modejump.Model("generator.safetensors")
>>> x, log_q = model.sample(1000, seed=1)
>>> move = modejump.Move(model, proposals=4, seed=7)
>>> outcome = move.attempt(x[0], potential, step=0)     # potential(x[n, ...]) -> u[n] = U/kT

Lengths are in nm, or OpenMM Quantities; potentials are reduced (divided by kT), logarithms natural. Molecules have the shape
(atoms, 3), models of abstract coordinates (dimension,).
"""

import itertools
import operator
import threading
from ctypes import byref, c_double, c_uint64, c_void_p
from dataclasses import dataclass

import numpy as np
from openmm import unit

from ._core import FATES, _Annealing, _attempt, _box_of, _call, _Callback, _constraints, _handle_of, _LatentWalk, _Mode
from ._core import _Options, _Outcome, _Owner, _pointer, _real, _State, _Statistics, _whole
from .model import Model
from .statistics import Counts
from .units import in_unit, reduced

METHODS = {"independence": 0, "isir": 1, "annealed": 0, "driven": 0, "latent_walk": None}
#: Settings specific to each method.
SETTINGS = {
    "independence": ("rotations",),
    "isir": ("rotations",),
    "annealed": ("stages", "moves", "kernel_step", "leapfrog"),
    "driven": ("steps",),
    "latent_walk": ("widths", "leapfrog"),
}
SURROGATE = 2
HAMILTONIAN = 1


@dataclass(frozen=True)
class Outcome:
    """Result of an attempt. With several proposals the numbers are those of the one that decided."""

    accepted: bool
    #: "accepted", "rejected" (by the Metropolis test), or the reason why the proposal was unusable.
    fate: str
    #: Configuration after the attempt, nm, and its reduced potential.
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


_numbers = itertools.count()


def own_seed(seed):
    """The given seed or, if there is none, one that differs for every move and exchange of this process."""
    return next(_numbers) if seed is None else seed


class _Thrown(threading.local):
    """What the mode function of a move raised in this thread's present attempt."""

    error = None


class Move(_Owner):
    """Proposals of a generator, decided by a Metropolis test on the caller's own potential. Calls from several threads wait for
    each other; a call from within an attempt raises.

    Parameters
    ----------
    model : Model
        The generator.
    method : "independence", "isir", "annealed", "latent_walk" or "driven"
        How several proposals are used: "independence" tests them one after the other (Metropolis), "isir" is iterated
        sampling-importance resampling. An annealed proposal is relaxed on its way from the generator to the target, and weighted
        by its path. A latent walk takes small steps in the latent space of the generator instead of its proposals, each tested;
        it has no weights. A driven move is for a part of a system: this is pulled to its proposal while the `relax` of an attempt
        moves the rest; the work decides.
    proposals : int
        Proposals per attempt; each costs one potential.
    seed : int, optional
        The random numbers of an attempt are a function of seed, step and replica, so moves that act at the same step need
        different seeds. Default: the number of moves and exchanges that this process has made without a seed so far.
    stride, batch : int
        Steps between attempts (0 if unknown), and number of attempts whose proposals are drawn together.
    screen : Model, optional
        A cheap density that need not be exact, such as an energy-based model: it screens the proposals, and the exact density
        decides about those that pass (delayed acceptance).
    acceptance : "exact" or "surrogate"
        "surrogate": the screen alone decides. This is biased, and the statistics say so.
    draw_ahead : bool
        Whether other threads draw the next batch of proposals between attempts, if `stride` steps lie between them, and evaluate
        the density of the current configuration while the potential is computed: the results are the same, bit for bit.
    partial : bool
        Whether the model describes a part of a system, the rest of which moves between attempts. Weights of proposals cannot be
        compared then, so none are recorded, and the statistics have no effective sample size.
    mode : function, optional
        For a model of several metastable states, between which the method "independence" jumps: returns the mode that a
        configuration x [*shape] is in, a number from 0, or -1 for none, as a function of x alone. Default: the modes are the
        regions of the model file.
    rotations : int, optional
        For "independence" and "isir": number of orientations over which the density is averaged, for a model that describes the
        orientation of a molecule, such as a TarFlow. The weights vary less if the potential depends little on orientation, at the
        cost of as many likelihoods; exact whatever the potential. A jump turns the molecule at random.
    stages, moves : int, optional
        For "annealed": number of temperatures between generator and target, and of moves at each.
    kernel_step : float, optional
        For "annealed": step of a move, x - step dE/dx + sqrt(2 step) noise, in the square of x's unit.
    widths : sequence of float, optional
        For "latent_walk": step widths, one of which is chosen at random in every attempt; the prior of a latent coordinate has
        width 1, or is uniform on [0, 1).
    leapfrog : int, optional
        For "annealed" and "latent_walk": leapfrog steps per Hamiltonian trajectory, which replaces a single step.
    steps : int, optional
        For "driven": number of perturbations, by default 50.
    """

    _free, _origin = "modejump_move_free", "create another with modejump.Move(model)"
    #: What an attempt needs in addition to the potential: None, "gradient" or "relax".
    _asks = None

    def __init__(
        self,
        model,
        method="independence",
        *,
        proposals=1,
        seed=None,
        stride=0,
        batch=32,
        screen=None,
        acceptance="exact",
        draw_ahead=False,
        partial=False,
        mode=None,
        **settings,
    ):
        if method not in METHODS or acceptance not in ("exact", "surrogate"):
            methods = ", ".join(METHODS)
            raise ValueError(f"unknown method {method!r} or acceptance {acceptance!r}; known values: {methods}; exact, surrogate")
        if acceptance == "surrogate" and screen is None:
            raise ValueError('acceptance="surrogate" requires a screen, which decides')
        if screen is not None and method != "independence":
            raise ValueError("a screen requires the method independence")
        for name in settings:
            if name not in SETTINGS.get(method, ()):
                takers = [other for other, names in SETTINGS.items() if name in names]
                where = f"requires the method {' or '.join(takers)}" if takers else "is not a setting of a Move"
                raise ValueError(f"{name} {where}; the method is {method}")
        if mode is not None and (method != "independence" or screen is not None):
            raise ValueError("mode requires the method independence, without a screen")
        handle = _handle_of(model, Model, "the model")
        screening = None if screen is None else _handle_of(screen, Model, "the screen")
        self.model = model
        self._handle = c_void_p()
        self._thrown = _Thrown()
        seed = own_seed(seed)
        if method == "latent_walk":
            self._walk(proposals, seed, **settings)
            return
        kind = SURROGATE if acceptance == "surrogate" else METHODS[method]
        options = _Options(kind=kind, proposals=proposals, seed=seed, stride=stride, batch=batch, draw_ahead=draw_ahead)
        options.partial = partial
        options.rotations = settings.get("rotations", 0)
        if mode is not None:
            self._between_modes(model, mode, options)
        elif method == "annealed":
            self._anneal(options, **settings)
        elif method == "driven":
            steps = settings.get("steps", 50)
            _call("move_driven_new", handle, byref(options), c_uint64(_whole(steps, "steps")), byref(self._handle))
            self._asks = "relax" if steps > 1 else None
        elif screen is None:
            _call("move_new", handle, byref(options), byref(self._handle))
        else:
            _call("move_delayed_acceptance_new", handle, screening, byref(options), byref(self._handle))

    def _between_modes(self, model, mode, options):
        def number(_, x, dimension):
            try:
                return operator.index(mode(np.ctypeslib.as_array(x, shape=(dimension,)).reshape(model.move_shape).copy()))
            except BaseException as error:  # passed around the library's stack frames; the attempt ends, as in no mode
                self._thrown.error = error
                return -1

        self._mode = _Mode(number)  # lives as long as the move
        _call("move_mode_jump_new", model._handle, byref(options), self._mode, None, byref(self._handle))

    def _anneal(self, options, stages=None, moves=None, kernel_step=None, leapfrog=0):
        annealing, self._asks = _Annealing(), "gradient"
        kernel_step = in_unit(kernel_step, unit.nanometer**2, "kernel_step")
        _call("annealing_options_init", byref(annealing))
        chosen = {"stages": stages, "moves": moves, "step": kernel_step}
        for name, value in chosen.items():
            if value is not None:
                setattr(annealing, name, value)
        if leapfrog != 0:
            annealing.kernel, annealing.leapfrog = HAMILTONIAN, leapfrog
        _call("move_annealed_new", self.model._handle, byref(options), byref(annealing), byref(self._handle))

    def _walk(self, proposals, seed, widths=None, leapfrog=0):
        if proposals != 1:
            raise ValueError(f"{proposals} proposals: a latent walk makes one step per attempt")
        options, self._asks = _LatentWalk(seed=seed, leapfrog=leapfrog), "gradient" if leapfrog > 0 else None
        if widths is not None:
            widths = np.ascontiguousarray(widths, dtype=np.float64).reshape(-1)
            options.widths, options.n_widths = _pointer(widths), len(widths)
        _call("move_latent_walk_new", self.model._handle, byref(options), byref(self._handle))

    def set_constraints(self, atoms, lengths, masses):
        """Sets the bonds that the dynamics constrains: pairs of atoms [n, 2], lengths [n] in nm, masses of all atoms in dalton.

        The target gets the metric term of constrained dynamics. Raises Error unless the model keeps exactly these bonds.
        """
        arguments, _arrays = _constraints(self.model, atoms, lengths, masses)
        _call("move_set_constraints", self._handle, *arguments)

    def set_temperature(self, kelvin):
        """Sets the temperature of the ensemble, K: a move of a steerable model proposes for it from now on; other models have a
        fixed one."""
        _call("move_set_temperature", self._handle, c_double(in_unit(kelvin, unit.kelvin, "the temperature")))

    def attempt(self, x, potential, *, step, reduced_potential=None, replica=0, box=None, relax=None, gradient=None):
        """Makes one attempt from the configuration x [*shape], which is not changed; the new one is in the outcome.

        `potential(x)` returns the reduced potentials U/kT [n] of configurations x [n, *shape]; NaN or infinity rejects a
        configuration. `reduced_potential` is that of x, if already known. `box`, nm, has the box vectors as rows. Exceptions of
        the potential are raised again here.

        For an annealed move, and for Hamiltonian trajectories in latent space: `gradient(x)` returns u [n] and du/dx [n, *shape]
        of configurations.

        For a driven move: `relax(x, stage)` moves the rest of the system with x [*shape] held fixed, by a kernel reversible for
        exp(-u(x, .)) with random numbers specific to this attempt and stage, and returns the resulting reduced potential.
        `potential` refers to the current positions of the rest, which the caller restores after an attempt that raises or is not
        accepted.
        """
        given = {"gradient": gradient, "relax": relax}
        if self._asks is not None and given[self._asks] is None:
            raise ValueError(f"this move requires `{self._asks}` in every attempt: move.attempt(x, potential, {self._asks}=..., step=...)")
        x = _real(in_unit(x, unit.nanometer, "the configuration"))
        state_x, shape = np.asarray(x, dtype=np.float64).copy(order="C"), self.model.move_shape
        if state_x.shape != shape:
            raise ValueError(f"expected one configuration of shape {shape}, found shape {np.shape(x)}")
        callback = _Callback(potential, shape, relax, gradient)
        if reduced_potential is None:
            reduced_potential = callback.of_one(state_x)
        box = _box_of(box)
        state = _State(
            step=step,
            replica=replica,
            reduced_potential=reduced(reduced_potential, "the reduced potential"),
            x=_pointer(state_x),
            box=None if box is None else _pointer(box),
        )
        outcome = _Outcome()
        self._thrown.error = None
        _attempt("move_attempt", self._handle, [callback], [state], outcome)
        thrown, self._thrown.error = self._thrown.error, None
        if thrown is not None:
            raise thrown
        names = [name for name, _ in _Outcome._fields_[2:]]
        fate = FATES[outcome.outcome]
        values = {name: getattr(outcome, name) for name in names}
        return Outcome(fate == "accepted", fate, state_x, **values)

    def statistics(self):
        """Counters, and a summary of the weights of the proposals."""
        return _statistics_of("move_statistics", self._handle)

    def reset_statistics(self):
        """Resets the counters and the weights of proposals."""
        _call("move_reset_statistics", self._handle)

    def log_weights(self):
        """log w = -u(x) - log q(x) of the latest proposals [n], oldest first; -inf for unusable ones."""
        n = c_uint64()
        _call("move_log_weights", self._handle, c_uint64(0), None, byref(n))
        weights = np.empty(n.value)
        _call("move_log_weights", self._handle, n, _pointer(weights), byref(n))
        return weights


def _statistics_of(name, handle):
    counts = _Statistics()
    _call(name, handle, byref(counts))
    values = {name: getattr(counts, name) for name, _ in _Statistics._fields_[2:]}
    return MoveStatistics(**values, likelihood="surrogate" if counts.flags & 1 else "exact")
