"""Moves and exchanges for openmmtools (an optional dependency: `pip install openmmtools`).

>>> from modejump.openmmtools import LearnedReplicaExchangeSampler, NeuralJumpMove
>>> move = mcmc.SequenceMove([mcmc.LangevinDynamicsMove(...), NeuralJumpMove("generator.safetensors", seed=1)])
"""

import copy
import json
import os
import zlib

import mpiplus
import numpy as np
import openmm
from openmm import unit
from openmmtools import mcmc, multistate

from ._library import address, call
from .exchange import Exchange
from .model import Model
from .move import Move, own_seed
from .learned_exchange import VELOCITIES, check_number, check_particles, constraints_among, or_infinity

__all__ = ["LearnedReplicaExchangeSampler", "NeuralJumpMove"]


def _listed(particles):
    """Particles as a list, which numpy takes as indices; it would take a tuple as one index per dimension."""
    return None if particles is None else list(particles)


def _molecule(sampler_state, particles):
    """Positions of the particles [atoms, 3] in nm."""
    return sampler_state.positions[particles].value_in_unit(unit.nanometer)


def _box(sampler_state):
    box = sampler_state.box_vectors
    return None if box is None else np.array([vector.value_in_unit(unit.nanometer) for vector in box])


class _Placed:
    """Reduced potential of a sampler state with its molecule moved, in the Context of a thermodynamic state."""

    def __init__(self, thermodynamic_state, sampler_state, particles, cache):
        self.state, self.particles = thermodynamic_state, particles
        self.context, _ = cache.get_context(thermodynamic_state)
        sampler_state.apply_to_context(self.context, ignore_velocities=sampler_state.velocities is None)
        self.positions = sampler_state.positions.value_in_unit(unit.nanometer).copy()

    def place(self, x):
        self.positions[self.particles] = x
        self.context.setPositions(self.positions)
        self.context.computeVirtualSites()

    def __call__(self, x):
        values = []
        for configuration in x:
            values.append(or_infinity(lambda: self._energy(configuration)))
        return values

    def _energy(self, configuration):
        self.place(configuration)
        return self.state.reduced_potential(self.context)

    def arrive(self, x, sampler_state, seed, step, replica):
        """Puts x into the sampler state, with new velocities."""
        self.place(x)
        temperature = self.state.temperature.value_in_unit(unit.kelvin)
        call("check_ensemble", address(self.context, openmm.Context))
        call("draw_velocities", address(self.context, openmm.Context), temperature, seed, step, replica)
        sampler_state.update_from_context(self.context)


class NeuralJumpMove(mcmc.MCMCMove):
    """A generator proposes whole configurations of the molecule; a Metropolis test on the reduced potential decides.

    After an acceptance all particles get new velocities, in the form stored by the integrator of the Context: that of the
    dynamics move that shares the cache of Contexts, if there is one. Random numbers are a function of the seed, of how often the
    move has been applied, of the thermodynamic state, and of which copy (copy.deepcopy) of the move this is: samplers give each
    of their states a copy of a move that has not been applied yet. Moves that are made separately for each state need different
    seeds.

    Parameters
    ----------
    model : path
        Model file of the generator.
    seed : int, optional
        Moves that are applied one after the other need different seeds. Default: the number of moves and exchanges that this
        process has made without a seed so far.
    proposals : int
        Proposals per application; each costs one energy. With more than one: iterated sampling-importance resampling.
    particles : sequence of int, optional
        Particle particles[i] of the System is atom i of the model. Default: all particles.
    precision, decoding, segment, decoding_tolerance, decoding_passes
        Options of loading the model, as in `modejump.Model`.
    """

    def __init__(
        self,
        model,
        *,
        seed=None,
        proposals=1,
        particles=None,
        precision="f32",
        decoding="sequential",
        segment=None,
        decoding_tolerance=None,
        decoding_passes=None,
    ):
        super().__init__()
        loading = {"precision": precision, "decoding": decoding, "segment": segment}
        loading |= {"decoding_tolerance": decoding_tolerance, "decoding_passes": decoding_passes}
        state = {"model": os.fspath(model), "seed": own_seed(seed), "proposals": proposals, "particles": _listed(particles), "loading": loading}
        self.__setstate__(state | {"applied": 0, "accepted": 0})

    def __getstate__(self):
        """State of the move; if it was never applied, that of a copy, since moves that contain others, such as SequenceMove, copy
        them by their states."""
        state = self._state()
        return state if self.applied > 0 else state | {"copy": self._next_copy()}

    def _state(self):
        names = ("model", "loading", "seed", "proposals", "particles", "applied", "accepted", "copy")
        return {name: getattr(self, name) for name in names}

    def _next_copy(self):
        self._copies += 1
        return [*self.copy, self._copies]

    def __setstate__(self, state):
        self.loading, self.accepted, self.copy = {}, 0, []  # defaults for moves that were stored before these attributes existed
        self.__dict__.update(state)
        self._move, self._made_for, self._counted, self._copies = None, None, None, 0

    def __deepcopy__(self, memo):
        """A copy with its own random numbers: samplers of several states give a copy to each."""
        other = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self._state(), memo) | {"copy": self._next_copy()})
        other._counted = self.jump_statistics()
        return other

    @property
    def statistics(self):
        """How often the move was applied and accepted, in the terms of openmmtools, which shares this among its processes: a
        thermodynamic state that moves to another process takes along which random numbers it has used."""
        return {"n_accepted": self.accepted, "n_proposed": self.applied}

    @statistics.setter
    def statistics(self, value):
        self.accepted, self.applied = value["n_accepted"], value["n_proposed"]

    def _make(self, system):
        """Makes the move, unless it was made for another System before, and has it keep the constraints of this one."""
        if self.particles is None:
            self.particles = list(range(system.getNumParticles()))
        check_particles(system, self.particles)
        constraints = constraints_among(system, self.particles)
        if self._move is None:
            method, model = "independence" if self.proposals == 1 else "isir", Model(self.model, **self.loading)
            check_number(model, self.particles)
            self._move = Move(model, method, proposals=self.proposals, seed=self.seed)
        self._move.set_constraints(*constraints)

    def apply(self, thermodynamic_state, sampler_state, context_cache=None):
        if self._move is None or not thermodynamic_state.is_state_compatible(self._made_for):
            # compatible states have the same System, and so the same constraints
            self._make(thermodynamic_state.get_system(remove_thermostat=True))
            self._made_for = thermodynamic_state
        self._move.set_temperature(thermodynamic_state.temperature.value_in_unit(unit.kelvin))
        placed = _Placed(thermodynamic_state, sampler_state, self.particles, self._get_context_cache(context_cache))
        x, step, replica = _molecule(sampler_state, self.particles), self.applied, self._number(placed)
        box = _box(sampler_state) if thermodynamic_state.is_periodic else None
        outcome = self._move.attempt(x, placed, step=step, replica=replica, box=box)
        self.applied += 1
        self.accepted += outcome.accepted
        if outcome.accepted:
            placed.arrive(outcome.x, sampler_state, self.seed, step, replica)

    def _number(self, placed):
        """Replica number below 2^23 that differs between thermodynamic states and between copies of the move."""
        temperature = placed.state.temperature.value_in_unit(unit.kelvin)
        text = json.dumps([temperature, sorted(dict(placed.context.getParameters()).items()), self.copy])
        return zlib.crc32(text.encode()) % VELOCITIES

    def jump_statistics(self):
        """Attempts and weights in this process since the move was made or read from a file; None before the first. A copy, such
        as those that a sampler hands out, has those of the original until it is applied."""
        return self._counted if self._move is None else self._move.statistics()


class LearnedReplicaExchangeSampler(multistate.ReplicaExchangeSampler):
    """Replica exchange in which neighbours exchange through maps, as described in modejump.LearnedReplicaExchangeSampler.

    `set_maps` sets the maps, before the first iteration and again after a restart, since the storage does not keep them. Each
    pair of neighbours is tried once per iteration, whatever the mixing scheme. Random numbers are a function of seed and
    iteration. Everything else is as in openmmtools. States must have constant volume.
    """

    def __init__(self, **options):
        super().__init__(**options)
        self.set_maps([], seed=0)

    def set_maps(self, maps, *, seed=None, particles=None):
        """Sets the maps: `maps[k]`, a Bijection, maps from the configurations of thermodynamic state k to those of k + 1.
        Independent runs need different seeds. Default: the number of moves and exchanges that this process has made without a
        seed so far; see the attribute `exchange_seed`."""
        self.exchange_seed, self._particles = own_seed(seed), _listed(particles)
        self._maps, self._exchanges = list(maps), None
        self._iteration_of_numbers, self._repeats = None, 0

    def _make(self):
        """Makes the exchanges, once the states are known. Raises ValueError or Error for maps that do not match them."""
        if len(self._maps) != self.n_states - 1:
            pairs, given = self.n_states - 1, len(self._maps)
            raise ValueError(f"{self.n_states} states have {pairs} pairs of neighbours, but the number of maps is {given}: use set_maps")
        for state in self._thermodynamic_states:
            if state.pressure is not None:
                raise ValueError("exchanges through maps require constant volume; use states without pressure")
        systems = [state.get_system(remove_thermostat=True) for state in self._thermodynamic_states]
        self._particles = list(range(systems[0].getNumParticles())) if self._particles is None else list(self._particles)
        check_particles(systems[0], self._particles)
        for bijection in self._maps:
            check_number(bijection.from_, self._particles)
        constraints = constraints_among(systems[0], self._particles)
        for k, system in enumerate(systems):
            if constraints_among(system, self._particles) != constraints:
                raise ValueError(f"state {k} has other constraints or masses than state 0: exchanges through maps require the same in all states")
        self._exchanges = [Exchange(bijection, seed=self.exchange_seed, carry_frames=True) for bijection in self._maps]
        for exchange in self._exchanges:
            exchange.set_constraints(*constraints)

    def exchange_statistics(self, k):
        """Counters of the exchanges between states k and k + 1; the weights are those of state k mapped to state k + 1."""
        if self._exchanges is None:
            raise ValueError("there are no exchanges before the first iteration")
        return self._exchanges[k].statistics()

    def _mix_replicas(self):
        indices, arrived = self._exchange_all()
        for replica, sampler_state in arrived.items():
            self._sampler_states[replica] = sampler_state
        return indices

    @mpiplus.on_single_node(0, broadcast_result=True)
    def _exchange_all(self):
        if self._exchanges is None:
            self._make()
        # equilibrate() exchanges many times in the same iteration
        self._repeats = self._repeats + 1 if self._iteration == self._iteration_of_numbers else 0
        self._iteration_of_numbers = self._iteration
        self._n_accepted_matrix[:, :] = 0
        self._n_proposed_matrix[:, :] = 0
        arrived = {}
        for first in (0, 1):
            for k in range(first, len(self._exchanges), 2):
                arrived.update(self._exchange(k))
        return self._replica_thermodynamic_states, arrived

    def _step(self):
        """Number of this round of exchanges, from which its random numbers follow."""
        return self._repeats << 40 | self._iteration

    def _exchange(self, k):
        """Tries to exchange the replicas in states k and k + 1; returns the new sampler states if they are exchanged."""
        where = list(self._replica_thermodynamic_states)
        a, b = where.index(k), where.index(k + 1)
        states = [self._sampler_states[replica] for replica in (a, b)]
        # state k receives the configuration of the replica that was in state k + 1
        arrivals = [(k, b), (k + 1, a)]
        cache = self.sampler_context_cache
        there = [
            _Later(self._thermodynamic_states[s], self._sampler_states[r], self._particles, cache) for s, r in arrivals
        ]
        periodic = self._thermodynamic_states[0].is_periodic
        outcome = self._exchanges[k].attempt(
            *(_molecule(state, self._particles) for state in states),
            there,
            step=self._step(),
            reduced_potentials=[self._energy_thermodynamic_states[a, k], self._energy_thermodynamic_states[b, k + 1]],
            replicas=(k, k + 1),
            boxes=[_box(state) if periodic else None for state in states],
        )
        for i, j in ((k, k + 1), (k + 1, k)):
            self._n_proposed_matrix[i, j] += 1
            self._n_accepted_matrix[i, j] += outcome.accepted
        if not outcome.accepted:
            return {}
        for (state, replica), placed, x in zip(arrivals, there, (outcome.a, outcome.b)):
            placed.now().arrive(x, self._sampler_states[replica], self.exchange_seed, self._step(), VELOCITIES | replica)
            self._replica_thermodynamic_states[replica] = state
        for replica in (a, b):
            near = self._neighborhood(self._replica_thermodynamic_states[replica])
            self._energy_thermodynamic_states[replica, near], _ = self._compute_replica_energies(replica)
        return {replica: self._sampler_states[replica] for replica in (a, b)}


class _Later:
    """A _Placed that is made anew at each use, since compatible states share one Context in a cache."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def now(self):
        return _Placed(*self.arguments)

    def __call__(self, x):
        return self.now()(x)
