"""Counters and averages over attempts, for all moves."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Attempts since the move was made, or its statistics were reset."""

    attempts: int
    accepted: int
    #: Rejected by the Metropolis test.
    rejected: int
    #: Rejected before the Metropolis test, by reason.
    out_of_support: int
    singular: int
    non_finite: int
    constraint: int
    chirality: int
    #: Jumps between modes that started or ended in a wrong mode.
    wrong_mode: int
    #: Mean of log w = -u(x) - log q(x) over all usable proposals.
    mean_log_weight: float
    #: Kish's effective sample size of the weights of all proposals, as a fraction of their number.
    effective_sample_size: float
    #: Kind of the log-density that decides acceptances: "exact", or "surrogate" if that was asked for and sampling is biased.
    likelihood: str
    #: With a screening model that does not decide alone: attempts that passed it to the exact test, and exact log-densities
    #: computed there.
    screened: int
    exact_evaluations: int
    #: Variance of ln c(x')/c(x), c = q_screen/q as far as the screen is trusted, over the screened attempts: the distance of the
    #: screen from the generator.
    correction_variance: float
    #: Mean acceptance probability over the attempts and its standard error: an estimate of the long-run acceptance, available
    #: before the first acceptance if that is rare.
    expected_acceptance: float
    expected_acceptance_error: float

    @property
    def acceptance(self):
        """Accepted attempts divided by all attempts; nan before the first."""
        return self.accepted / self.attempts if self.attempts else math.nan

    @property
    def second_stage_acceptance(self):
        """Accepted attempts divided by those that passed the screen; nan before the first."""
        return self.accepted / self.screened if self.screened else math.nan
