"""Generator moves inside OpenMM simulations, made exact by a Metropolis test on the System's own energy.

>>> jump = modejump.MonteCarloModeJump("models/ala2/model.safetensors", frequency=100)
>>> system.addForce(jump)

Without an engine, for a potential of your own: `Model`, `Move` and `Exchange`, numpy in, numpy out.
"""

from ._core import Error
from .exchange import Exchange, ExchangeOutcome
from .force import MonteCarloModeJump, Statistics
from .learned_exchange import LearnedReplicaExchangeSampler
from .model import Bijection, Model, device, set_device
from .move import Move, MoveStatistics, Outcome
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
    "MoveStatistics",
    "Outcome",
    "MonteCarloModeJump",
    "Statistics",
    "ModeJumpReporter",
    "assign_replica_streams",
    "device",
    "set_device",
]
