"""LearnedReplicaExchangeSampler: replicas exchange through maps between their ensembles."""

import ctypes
import math
import warnings

import numpy as np
import openmm
from openmm import app, unit

from ._library import address, call
from .exchange import Exchange
from .move import own_seed

#: Bit set in the 24-bit replica number of exchange velocities, to distinguish them from those of jumps.
VELOCITIES = 1 << 23


class _NoReplicaExchangeSampler:
    """Base of the sampler before OpenMM 8.6."""

    def __new__(cls, *arguments, **options):
        raise NotImplementedError(
            "LearnedReplicaExchangeSampler extends app.ReplicaExchangeSampler, which OpenMM has from version 8.6 on, and this is "
            f"{openmm.__version__}; modejump.openmmtools has a LearnedReplicaExchangeSampler for openmmtools"
        )


class LearnedReplicaExchangeSampler(getattr(app, "ReplicaExchangeSampler", _NoReplicaExchangeSampler)):
    """Replica exchange in which neighbours exchange through maps between their ensembles.

    Invernizzi et al., J. Phys. Chem. Lett. 13, 11643 (2022).

    Let replica i be in state k and replica j in state k + 1. After the exchange i is in state k + 1 at f(x_i), and j in state k
    at f⁻¹(x_j), with f = maps[k]; a Metropolis test on the System's energies decides, so every state keeps its exact ensemble,
    whatever the maps. In every iteration each pair of neighbours is tried once. Both replicas of an accepted exchange get new
    velocities at their new temperature, in the form that the integrator stores. Everything else is as in ReplicaExchangeSampler,
    including reporters. The volume of a periodic box must not change.

    Parameters
    ----------
    states : list of dict
        Temperatures or parameters of each state, as for ReplicaExchangeSampler. Force groups ("groups"), if given, must be those
        that the dynamics follows, in every state.
    simulation : openmm.app.Simulation
    stepsPerIteration : int
    maps : sequence of Bijection
        maps[k] maps from the configurations of state k to those of state k + 1. A Bijection of a model to itself is the identity,
        i.e. ordinary replica exchange.
    seed : int, optional
        The random numbers of exchanges are a function of seed and iteration. Independent runs need different seeds. Default: the
        number of moves and exchanges that this process has made without a seed so far; see the attribute `seed`.
    particles : sequence of int, optional
        Particle particles[i] of the System is atom i of the models; the others stay where they are in an exchange. Default: all
        particles.

    Raises
    ------
    ValueError
        There is not one map for each pair of neighbours, or maps have other atoms; the System changes its volume, or the
        integrator its time step; or the dynamics of a state would have another temperature, or follow other force groups, than
        the exchanges.
    Error
        A constrained bond, which is named, is not kept by the models.
    OpenMMException
        The integrator samples a distribution other than that of the System.
    """

    def __init__(
        self, states, simulation, stepsPerIteration, maps, *, seed=None, particles=None, reinitializeVelocities=False
    ):
        super().__init__(states, simulation, stepsPerIteration, reinitializeVelocities)
        maps = list(maps)
        if len(maps) != len(states) - 1:
            pairs = len(states) - 1
            raise ValueError(f"{len(states)} states have {pairs} pairs of neighbours, but the number of maps is {len(maps)}")
        system = simulation.system
        self.particles = list(range(system.getNumParticles()) if particles is None else particles)
        check_particles(system, self.particles)
        self.seed = own_seed(seed)
        _refuse_barostats(system)
        _refuse_variable_steps(simulation)
        call("check_ensemble", address(simulation.context, openmm.Context))
        _refuse_other_groups(states, system, simulation.integrator)
        self._refuse_other_temperatures()
        constraints = constraints_among(system, self.particles)
        self.exchanges = []
        for bijection in maps:
            # replicas exchange states, and the molecule keeps its surroundings
            exchange = Exchange(bijection, seed=self.seed, carry_frames=True)
            _check_atoms(bijection.from_, simulation.topology, self.particles)
            exchange.set_constraints(*constraints)
            self.exchanges.append(exchange)

    def _refuse_other_temperatures(self):
        """Refuses states whose dynamics would not be at their temperature."""
        context, found = self.simulation.context, ctypes.c_double()
        before = context.getState(positions=True, velocities=True, parameters=True, integratorParameters=True)
        for k in range(len(self.states)):
            self._sampler.applyState(k)
            call("find_temperature", address(context, openmm.Context), found)
            asked, integrator = self._temperature(k), type(self.simulation.integrator).__name__
            if abs(found.value - asked) > 1e-3 * asked:
                here = f"is at {found.value:.6g} K" if found.value > 0 else "has no temperature, or several"
                raise ValueError(
                    f"state {k} is at {asked:.6g} K, but with {integrator} its dynamics {here}: use an integrator with setTemperature(), or a CustomIntegrator "
                    "with a global variable temperature (K)"
                )
        context.setState(before)

    def exchangeReplicas(self):
        """Tries every pair of neighbouring states once: the even ones, then the odd ones."""
        for first in (0, 1):
            for k in range(first, len(self.exchanges), 2):
                self._exchange(k)

    def statistics(self, k):
        """Counters of the exchanges between states k and k + 1; the weights are those of state k mapped to state k + 1."""
        return self.exchanges[k].statistics()

    def _exchange(self, k):
        """Tries to exchange the replicas that are in states k and k + 1."""
        pair = [self.replicaStateIndex.index(k), self.replicaStateIndex.index(k + 1)]
        x, u, boxes = [], [], []
        for replica, state in zip(pair, (k, k + 1)):
            conformation = self.replicaConformation[replica]
            x.append(conformation.getPositions(asNumpy=True)._value[self.particles])
            u.append(self.replicaStateEnergy[replica][state] / self._thermal_energy(state))
            boxes.append(_box(conformation) if self.simulation.system.usesPeriodicBoundaryConditions() else None)
        # state k receives the configuration of the replica that was in state k + 1
        potentials = [self._potential(pair[1], k), self._potential(pair[0], k + 1)]
        step, replicas = self.currentIteration, (k, k + 1)
        arguments = {"step": step, "reduced_potentials": u, "replicas": replicas, "boxes": boxes}
        outcome = self.exchanges[k].attempt(*x, potentials, **arguments)
        if outcome.accepted:
            self._arrive(pair[1], k, outcome.a)
            self._arrive(pair[0], k + 1, outcome.b)

    def _potential(self, replica, state):
        """Reduced potentials, in a state, of this replica's configuration with its molecule moved."""

        def potential(x):
            return [or_infinity(lambda: self._energy(replica, state, x) / self._thermal_energy(state)) for x in x]

        return potential

    def _energy(self, replica, state, x):
        self._place(replica, x)
        return self._sampler.computeEnergy(state)

    def _place(self, replica, x):
        context, conformation = self.simulation.context, self.replicaConformation[replica]
        context.setState(conformation)
        positions = np.array(conformation.getPositions(asNumpy=True)._value)
        positions[self.particles] = x
        context.setPositions(positions)
        context.computeVirtualSites()

    def _arrive(self, replica, state, x):
        """Moves a replica to its new state."""
        context, temperature = self.simulation.context, self._temperature(state)
        self._place(replica, x)
        self._sampler.applyState(state)
        number = VELOCITIES | replica
        call("draw_velocities", address(context, openmm.Context), temperature, self.seed, self.currentIteration, number)
        self.replicaConformation[replica] = context.getState(
            positions=True, velocities=True, parameters=True, integratorParameters=True
        )
        self.replicaStateIndex[replica] = state
        # the velocities already belong to the new state
        self._previousReplicaStateIndex[replica] = state
        self.replicaStateEnergy[replica] = self._sampler.computeAllEnergies()

    def _thermal_energy(self, state):
        if self._kT is None:
            return unit.MOLAR_GAS_CONSTANT_R * self.simulation.integrator.getTemperature()
        return self._kT[state]

    def _temperature(self, state):
        return (self._thermal_energy(state) / unit.MOLAR_GAS_CONSTANT_R).value_in_unit(unit.kelvin)


def _box(conformation):
    return np.array([vector.value_in_unit(unit.nanometer) for vector in conformation.getPeriodicBoxVectors()])


def or_infinity(energy):
    """An energy of OpenMM, or infinity if OpenMM throws, so that the configuration is rejected."""
    try:
        return energy()
    except openmm.OpenMMException as error:
        if str(error) in ("", "<NULL>"):
            raise openmm.OpenMMException(
                "a PythonForce raised an exception without a message, which may be Ctrl-C; one with a message, such as that of `assert condition, message`, "
                "rejects a proposal, and the run continues"
            ) from error
        warnings.warn(f"OpenMM could not compute the energy of a proposal, which is rejected: {error}", stacklevel=2)
        return math.inf


def _refuse_barostats(system):
    for force in system.getForces():
        if "Barostat" in type(force).__name__:
            raise ValueError(f"{type(force).__name__}: exchanges through maps require constant volume; remove it")


def _refuse_variable_steps(simulation):
    """Frames at equal numbers of steps of changing length are not those of the ensemble."""
    varies = ctypes.c_int()
    call("varies_steps", address(simulation.context, openmm.Context), varies)
    if varies.value:
        name = type(simulation.integrator).__name__
        raise ValueError(f"{name} changes its time step, so states would not be sampled in their ensembles: use an integrator with a constant step")


def _refuse_other_groups(states, system, integrator):
    """Refuses states whose energy, used to test exchanges, has other force groups than the dynamics: exchanges use the groups
    that a state names, or all; the dynamics of every state uses those of the integrator."""
    followed = {group for group in range(32) if integrator.getIntegrationForceGroups() >> group & 1}
    there = {group: type(force).__name__ for force in system.getForces() for group in _groups_of(force)}
    for k, state in enumerate(states):
        groups = state.get("groups", set(there))
        weights = groups if isinstance(groups, dict) else dict.fromkeys(groups, 1.0)
        for group, name in sorted(there.items()):
            here, tested = float(group in followed), weights.get(group, 0.0)
            if here != tested:
                remedy = "let states differ in a parameter of the Context instead" if "groups" in state else "set these groups in each state, as 'groups'"
                raise ValueError(
                    f"force group {group} ({name}) counts {tested:g} times in the energy of state {k}, which exchanges use, but {here:g} times in its "
                    f"dynamics, which uses integrator.getIntegrationForceGroups(): {remedy}"
                )


def _groups_of(force):
    """Force groups that the energy of a Force belongs to; none if it has no energy."""
    name = type(force).__name__
    if name in ("CMMotionRemover", "Force") or name.endswith(("Barostat", "Thermostat", "ModeJump")):
        return set()
    groups = {force.getForceGroup()}
    if isinstance(force, openmm.NonbondedForce) and force.getReciprocalSpaceForceGroup() >= 0:
        groups.add(force.getReciprocalSpaceForceGroup())
    return groups


def _check_atoms(model, topology, particles):
    """Refuses a model whose atoms differ from the particles, naming the first difference."""
    described = model.metadata.get("topology")
    check_number(model, particles)
    atoms = list(topology.atoms())
    for i, particle in enumerate(particles):
        element = atoms[particle].element
        theirs = described["elements"][i] if described else "X"  # X: beads, which PDB files guess an element for
        if theirs.upper() != "X" and element is not None and element.symbol.lower() != theirs.lower():
            residue, name, other = (described[key][i] for key in ("residues", "names", "elements"))
            atom = f"atom {i} of the models ({residue}:{name})"
            raise ValueError(f"particle {particle} is {element.symbol}, but {atom} is {other}")


def check_number(model, particles):
    """Refuses a model of another number of atoms than there are particles."""
    atoms = (model.dimension - model.auxiliary) // 3
    if atoms != len(particles):
        raise ValueError(f"the model has {atoms} atoms, but the number of particles is {len(particles)}")


def check_particles(system, particles):
    """Refuses particles that the System does not have, or that are listed twice."""
    n, seen = system.getNumParticles(), set()
    for particle in particles:
        if not 0 <= particle < n:
            raise ValueError(f"particle {particle} is out of range: the number of particles in the System is {n}")
        if particle in seen:
            raise ValueError(f"particle {particle} is listed twice")
        seen.add(particle)


def constraints_among(system, particles):
    """Pairs of atoms, lengths and masses of the constraints among the particles."""
    atom = {particle: i for i, particle in enumerate(particles)}
    pairs, lengths = [], []
    for k in range(system.getNumConstraints()):
        a, b, length = system.getConstraintParameters(k)
        if (a in atom) != (b in atom):
            raise ValueError(f"the constraint between particles {a} and {b} is not within the molecule that the maps move")
        if a in atom:
            pairs.append((atom[a], atom[b]))
            lengths.append(length.value_in_unit(unit.nanometer))
    masses = [system.getParticleMass(particle).value_in_unit(unit.dalton) for particle in particles]
    if 0 in masses:
        raise ValueError(f"particle {particles[masses.index(0)]} has no mass: the System holds it in place, but moves would not")
    return pairs, lengths, masses
