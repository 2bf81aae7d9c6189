"""Draws the figures of docs/gallery.md: φ over time and the resulting free energy for every move on alanine dipeptide, a temperature
ladder, and driven paths.

    make gallery          (after make moves, make ladder and make solvent; or: .venv/bin/python examples/moves/gallery.py target)
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BINS = 60
PICOSECONDS = 0.01  # between the recorded frames of `make moves`
BASIN = (0.0, 2.2)  # range of φ, rad


def free_energy(phi):
    """Returns the bin centres (rad) and F/kT, infinite in bins that were never visited."""
    counts, edges = np.histogram(phi, BINS, (-np.pi, np.pi))
    with np.errstate(divide="ignore"):
        return (edges[1:] + edges[:-1]) / 2, -np.log(counts / counts.max())


def draw(path, name, phi, everything):
    figure, (trace, profile) = plt.subplots(1, 2, figsize=(8, 2.4), width_ratios=[3, 1.3], layout="constrained")
    trace.axhspan(*BASIN, color="0.93", zorder=0)
    trace.plot(PICOSECONDS * np.arange(len(phi)), phi, ",", color="tab:blue")
    trace.set(xlabel="time / ps", ylabel="φ / rad", ylim=(-np.pi, np.pi), title=name)
    trace.margins(x=0)
    for values, style in ((everything, {"color": "0.75", "lw": 3}), (phi, {"color": "tab:blue", "lw": 1.2})):
        profile.plot(*free_energy(values), **style)
    profile.set(xlabel="φ / rad", ylabel="F / kT", xlim=(-np.pi, np.pi), ylim=(-0.5, 9))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def moves(document, output):
    runs = {run["name"]: np.array(run["phi"]) for run in document["series"]}
    jumping = np.concatenate([phi for name, phi in runs.items() if name != "none"])
    for name, phi in runs.items():
        path = output / f"{name.split(',')[0].replace(' ', '-').lower()}.png"
        draw(path, "no jumps" if name == "none" else name, phi, jumping)


def ladder(document, output):
    """Plots energies and crossings at every temperature, with and without jumps."""
    figure, (energy, crossing) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    for rows, label, color in ((document["plain"], "without jumps", "0.6"), (document["jumps"], "with jumps", "tab:blue")):
        t, u, error, n = (np.array([row[key] for row in rows]) for key in ("temperature", "u_mean", "u_stderr", "crossings"))
        energy.errorbar(t, u, error, fmt="o", capsize=3, ms=4, color=color, label=label)
        crossing.plot(t, n, "o-", ms=4, color=color)
    energy.set(xlabel="T / K", ylabel="⟨U⟩ / kJ/mol")
    energy.legend(frameon=False)
    crossing.set(xlabel="T / K", ylabel="crossings of φ", ylim=(0, None))
    figure.savefig(output / "ladder.png", dpi=110)
    plt.close(figure)


def solvent(document, output):
    """Plots how the work falls and the acceptance rises with the length of the path; a frozen solvent is a path of zero length."""
    figure, (work, acceptance) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    for name, color in (("chain", "tab:blue"), ("ala2", "tab:orange")):
        rows = [row for row in document if row["system"] == name]
        ps = [row["ps"] for row in rows]
        label = {"chain": "four atoms in a bath", "ala2": "alanine dipeptide in water"}[name]
        work.plot(ps, [-row["median_log_alpha"] for row in rows], "o-", ms=4, color=color, label=label)
        values = [[100 * row[key] for row in rows] for key in ("expected", "expected_error")]
        acceptance.errorbar(ps, *values, fmt="o-", ms=4, capsize=3, color=color)
    for axes in (work, acceptance):
        axes.set_xscale("symlog", linthresh=0.3)
        axes.set(xlabel="length of the path / ps")
    work.set(yscale="log", ylabel="median −ln α")
    work.legend(frameon=False)
    acceptance.set(ylabel="expected acceptance / %", ylim=(0, None))
    figure.savefig(output / "solvent.png", dpi=110)
    plt.close(figure)


FIGURES = {"moves/series.json": moves, "ladder/summary.json": ladder, "solvent/summary.json": solvent}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("target"), help="folder with the results of those make commands")
    parser.add_argument("-o", "--output", type=Path, default=Path("target/gallery"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        path = arguments.results / name
        if path.exists():
            figure(json.loads(path.read_text()), arguments.output)
            print(f"{path}: drawn in {arguments.output}")
        else:
            print(f"{path}: not found, skipped (create it with make {path.parent.name})")


if __name__ == "__main__":
    main()
