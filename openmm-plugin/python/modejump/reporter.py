"""ModeJumpReporter: statistics of the moves of a simulation, in the style of StateDataReporter."""

import math
import os

import numpy as np
from openmm import unit

from .force import MonteCarloModeJump


def torsion(x, atoms):
    """Dihedral angle in radians of the four atoms, x[particles][3]."""
    a, b, c, d = (x[i] for i in atoms)
    axis = c - b
    normal1, normal2 = np.cross(b - a, axis), np.cross(axis, d - c)
    return math.atan2(np.dot(np.cross(normal1, normal2), axis / np.linalg.norm(axis)), np.dot(normal1, normal2))


#: Largest bound of a torsion, radian: pi, with a margin for rounding.
_LARGEST_ANGLE = 3.15


def _counted(name, given):
    """(atoms, low, high) of a torsion whose transitions are counted. Raises ValueError if it is not valid."""
    try:
        atoms, low, high = given
        atoms, low, high = [int(i) for i in atoms], float(low), float(high)
    except (TypeError, ValueError):
        raise ValueError(f"torsion {name!r}: expected (atoms, low, high), found {given!r}") from None
    if len(set(atoms)) != 4 or min(atoms) < 0:
        raise ValueError(f"torsion {name!r} has the atoms {atoms}: expected four different ones, counted from 0")
    if not (abs(low) <= _LARGEST_ANGLE and abs(high) <= _LARGEST_ANGLE):
        raise ValueError(f"torsion {name!r}: {low:g} to {high:g} is not an interval within -pi and pi; use radians")
    return atoms, low, high


class ModeJumpReporter:
    """Writes attempts, acceptance, rejections by reason and log-weights every `reportInterval` steps.

    With a screening model there are further columns: the likelihood that decides ("surrogate" if the moves are biased), how many
    attempts passed the screen, and how many exact log-densities that cost. The log-weights are then those of the screen.

    Parameters
    ----------
    file : path or file object
    reportInterval : int
        Steps between reports.
    force : MonteCarloModeJump, optional
        Force to report on. Default: the first one of the System.
    torsions : dict of name to (atoms, low, high), optional
        Torsions whose transitions are counted: how often the torsion of the four atoms has entered or left the interval low <
        angle < high (radian; low > high for an interval across pi), as seen at the reports. Use a small reportInterval for an
        exact count.
    separator : str
    append : bool
    """

    SCREEN = ("Likelihood", "Screened", "Exact Evaluations", "Stage 2 Acceptance", "Correction Variance")
    COLUMNS = (
        *("Attempts", "Accepted", "Rejected", "Out Of Support", "Singular", "Non-finite", "Constraint", "Chirality"),
        "Wrong Mode",
    )

    def __init__(self, file, reportInterval, *, force=None, torsions=None, separator=",", append=False):
        if reportInterval < 1:
            raise ValueError(f"reportInterval is {reportInterval}: it must be at least 1 step")
        self._interval = reportInterval
        self._separator = separator
        self._torsions = {name: _counted(name, given) for name, given in (torsions or {}).items()}
        self._inside = {}
        self._transitions = {name: 0 for name in self._torsions}
        self._force = None if force is None else MonteCarloModeJump.cast(force)
        self._header = not append
        # opened last, so that invalid arguments leave the file untouched
        is_path = isinstance(file, (str, os.PathLike))
        self._out = open(file, "a" if append else "w") if is_path else file
        self._owned = is_path

    @property
    def transitions(self):
        """Transitions counted so far, by torsion."""
        return dict(self._transitions)

    def describeNextReport(self, simulation):
        steps = self._interval - simulation.currentStep % self._interval
        include = ["positions"] if self._torsions else []
        return {"steps": steps, "periodic": False, "include": include}

    def report(self, simulation, state):
        if self._force is None:
            self._force = self._find(simulation.system)
        if self._header:
            self._write_header()
            self._header = False
        for name, (atoms, low, high) in self._torsions.items():
            self._count(name, torsion(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer), atoms), low, high)
        s = self._force.statistics(simulation.context)
        reasons = (s.out_of_support, s.singular, s.non_finite, s.constraint, s.chirality, s.wrong_mode)
        counts = (s.attempts, s.accepted, s.rejected, *reasons)
        numbers = (s.acceptance, s.last_log_acceptance, s.mean_log_weight, s.effective_sample_size)
        row = [simulation.currentStep, *counts, *(f"{number:.6g}" for number in numbers)]
        if self._force.screening_model_hash:
            stages = (s.second_stage_acceptance, s.correction_variance)
            row += [s.likelihood, s.screened, s.exact_evaluations, *(f"{number:.6g}" for number in stages)]
        row += self._transitions.values()
        print(self._separator.join(str(value) for value in row), file=self._out, flush=True)

    @staticmethod
    def _find(system):
        for force in system.getForces():
            if MonteCarloModeJump.isinstance(force):
                return MonteCarloModeJump.cast(force)
        raise ValueError("the System has no MonteCarloModeJump to report on")

    def _write_header(self):
        names = ["Step", *self.COLUMNS, "Acceptance", "Log Acceptance", "Mean Log Weight", "ESS"]
        if self._force.screening_model_hash:
            names += self.SCREEN
        names += [f"Transitions {name}" for name in self._torsions]
        print("#" + self._separator.join(f'"{name}"' for name in names), file=self._out, flush=True)

    def _count(self, name, angle, low, high):
        inside = low < angle < high if low <= high else angle > low or angle < high
        self._transitions[name] += self._inside.get(name, inside) != inside
        self._inside[name] = inside

    def __del__(self):
        if getattr(self, "_owned", False):
            self._out.close()
