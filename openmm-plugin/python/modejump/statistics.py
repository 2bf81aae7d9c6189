"""What attempts have come to, whoever makes them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Attempts since the move was made, or its statistics were reset."""

    attempts: int
    accepted: int
    #: By the Metropolis test.
    rejected: int
    #: Before the Metropolis test, by reason.
    out_of_support: int
    singular: int
    non_finite: int
    constraint: int
    chirality: int
    #: Jumps between modes that started or ended in a wrong one.
    wrong_mode: int
    #: Mean of log w = -u(x) - log q(x) over all usable proposals.
    mean_log_weight: float
    #: Kish's effective sample size of the weights of all proposals, as a fraction of their number.
    effective_sample_size: float
    #: Of the log-density that decides acceptances: "exact", or "surrogate" where that was asked for and sampling is biased.
    likelihood: str
    #: With a screening model that does not decide alone: attempts that it let through to the exact test, and exact log-densities
    #: computed there.
    screened: int
    exact_evaluations: int
    #: Variance of ln c(x')/c(x), c = q_screen/q as far as the screen is believed, over the screened attempts: how far the screen is
    #: from the generator.
    correction_variance: float
    #: Mean over the attempts of the probability with which each was accepted, and its standard error: what the acceptance will come
    #: to, known before the first acceptance where that is rare.
    expected_acceptance: float
    expected_acceptance_error: float

    @property
    def acceptance(self):
        """Accepted attempts over all attempts; nan before the first."""
        return self.accepted / self.attempts if self.attempts else math.nan

    @property
    def second_stage_acceptance(self):
        """Accepted attempts over those that the screen let through; nan before the first."""
        return self.accepted / self.screened if self.screened else math.nan
