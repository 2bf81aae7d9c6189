"""Learned replica exchange without an engine: numpy in, numpy out."""

from ctypes import byref, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass

import numpy as np

from ._core import FATES, _attempt, _box_of, _call, _Callback, _constraints, _ExchangeOutcome, _handle_of, _Owner
from ._core import _pointer, _State, _whole
from .model import Bijection
from .move import _statistics_of, own_seed
from .units import reduced


@dataclass(frozen=True)
class ExchangeOutcome:
    """Result of an exchange between replicas a and b."""

    accepted: bool
    #: "accepted", "rejected" (by the Metropolis test), or the reason why one side has no image.
    fate: str
    #: Configurations of the two replicas after the attempt, nm, and their reduced potentials.
    a: np.ndarray
    b: np.ndarray
    reduced_potential_a: float
    reduced_potential_b: float
    #: The sum of the two weights.
    log_acceptance: float
    #: u_a(x_a) - u_b(f(x_a)) + ln |df/dx|, which weights f(x_a) as a sample of b; and the same in the other direction.
    log_weight_a: float
    log_weight_b: float


class Exchange(_Owner):
    """Learned replica exchange: x_b becomes f(x_a), x_a becomes f⁻¹(x_b), if a Metropolis test accepts. One thread at
    a time.

    The map is arbitrary; with the map of a model to itself this is ordinary replica exchange. After an acceptance, draw new
    velocities for both replicas.

    Parameters
    ----------
    map : Bijection
        Map from the configurations of replica a to those of replica b.
    seed : int, optional
        The random number of an attempt is a function of seed, step and the two replicas, so exchanges tried at the same step,
        such as those of the pairs of a ladder, need different seeds or replicas. Default: the number of moves and exchanges that
        this process has made without a seed so far; see the attribute `seed`.
    carry_frames : bool
        For maps in internal coordinates: whether configurations take their position and orientation along to the other replica,
        instead of each replica keeping its own.
    """

    _free, _origin = "modejump_exchange_free", "create another with modejump.Exchange(map)"

    def __init__(self, map, *, seed=None, carry_frames=False):
        handle = _handle_of(map, Bijection, "the map")
        self.bijection = map
        self._handle = c_void_p()
        self.seed = _whole(own_seed(seed), "seed")
        _call("exchange_new", handle, c_uint64(self.seed), byref(self._handle))
        _call("exchange_carry_frames", self._handle, c_uint32(carry_frames))

    def set_constraints(self, atoms, lengths, masses):
        """Sets the bonds that the dynamics of both replicas constrains, as Move.set_constraints does. Raises Error unless both
        models keep exactly these bonds."""
        arguments, _arrays = _constraints(self.bijection.from_, atoms, lengths, masses)
        _call("exchange_set_constraints", self._handle, *arguments)

    def attempt(self, a, b, potentials, *, step, reduced_potentials=None, replicas=(0, 1), boxes=(None, None)):
        """Makes one attempt from the configurations a and b [*shape], which are not changed; the new ones are in the outcome.

        `potentials` are those of the two replicas, each as for Move.attempt; `reduced_potentials` those of a and b, if already
        known. `replicas` are the numbers, from 0, that select the random number together with seed and step: exchanges tried at
        the same step with the same seed need different pairs. Exceptions of a potential are raised again here.
        """
        model = self.bijection.from_
        callbacks, states, x, kept = [], [], [], []
        for i, start in enumerate((a, b)):
            rows, shape = model._rows(start)
            if shape != ():
                raise ValueError(f"expected one configuration of shape {model.shape}, found shape {np.shape(start)}")
            x.append(rows.copy())
            callbacks.append(_Callback(potentials[i], model.shape))
            u = callbacks[i].of_one(x[i]) if reduced_potentials is None else reduced(reduced_potentials[i], "a reduced potential")
            box = _box_of(boxes[i])
            kept.append(box)
            pointers = {"x": _pointer(x[i]), "box": None if box is None else _pointer(box)}
            states.append(_State(step=step, replica=replicas[i], reduced_potential=u, **pointers))
        outcome = _ExchangeOutcome()
        _attempt("exchange_attempt", self._handle, callbacks, states, outcome)
        fate = FATES[outcome.outcome]
        values = {name: getattr(outcome, name) for name, _ in _ExchangeOutcome._fields_[2:]}
        return ExchangeOutcome(fate == "accepted", fate, *(x.reshape(model.shape) for x in x), **values)

    def statistics(self):
        """Counters; the weights are those of the mapped configurations of a as samples of b."""
        return _statistics_of("exchange_statistics", self._handle)

    def reset_statistics(self):
        """Resets the counters and the weights."""
        _call("exchange_reset_statistics", self._handle)
