"""One figure for every move on alanine dipeptide: where φ went, and the free energy that comes of it.

    make gallery          (after make moves; or: .venv/bin/python examples/moves/gallery.py target/moves/series.json -o target/gallery)
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BINS = 60
PICOSECONDS = 0.01  # between recorded frames of make moves
BASIN = (0.0, 2.2)  # rad: of φ


def free_energy(phi):
    """Centres (rad) and F/kT, infinite in bins that were never visited."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", type=Path, nargs="?", default=Path("target/moves/series.json"))
    parser.add_argument("-o", "--output", type=Path, default=Path("target/gallery"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs = {run["name"]: np.array(run["phi"]) for run in json.loads(arguments.series.read_text())["series"]}
    jumping = np.concatenate([phi for name, phi in runs.items() if name != "none"])
    for name, phi in runs.items():
        path = arguments.output / f"{name.split(',')[0].replace(' ', '-').lower()}.png"
        draw(path, "no jumps" if name == "none" else name, phi, jumping)
        print(path)


if __name__ == "__main__":
    main()
