"""Generator moves inside OpenMM simulations, exact by a Metropolis test on the System's own energy.

>>> jump = modejump.MonteCarloModeJump("models/ala2/model.safetensors", frequency=100)
>>> system.addForce(jump)

Without an engine, for a potential of your own: `Model` and `Move` (modejump.core), numpy in, numpy out.
"""

from .core import Bijection, Error, Exchange, ExchangeOutcome, Model, Move, Outcome, set_device
from .force import MonteCarloModeJump, Statistics
from .learned_exchange import LearnedReplicaExchangeSampler
from .replicas import assign_replica_streams
from .reporter import ModeJumpReporter

__version__ = "0.1.0"
__all__ = [
    "Bijection",
    "Error",
    "Exchange",
    "ExchangeOutcome",
    "LearnedReplicaExchangeSampler",
    "Model",
    "Move",
    "Outcome",
    "MonteCarloModeJump",
    "Statistics",
    "ModeJumpReporter",
    "assign_replica_streams",
    "set_device",
]
