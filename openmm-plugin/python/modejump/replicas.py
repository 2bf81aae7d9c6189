"""Replica exchange: every replica needs random numbers of its own."""

from .force import MonteCarloModeJump


def assign_replica_streams(sampler):
    """Gives each replica of an openmm.app.ReplicaExchangeSampler its own random numbers.

    The replicas share a Context and have equal step counts, so without this they would get the same proposals. The number is kept
    in each replica's State, which the sampler saves and restores. The temperature needs no such treatment: it is read from the
    integrator at each attempt.
    """
    context = sampler.simulation.context
    if MonteCarloModeJump.REPLICA not in context.getParameters():
        raise ValueError("assign_replica_streams: the System has no MonteCarloModeJump; add it before the Simulation is made")
    before = context.getParameter(MonteCarloModeJump.REPLICA)
    for index, state in enumerate(sampler.replicaConformation):
        context.setState(state)
        context.setParameter(MonteCarloModeJump.REPLICA, index)
        sampler.replicaConformation[index] = context.getState(
            positions=True, velocities=True, parameters=True, integratorParameters=True
        )
    context.setParameter(MonteCarloModeJump.REPLICA, before)
