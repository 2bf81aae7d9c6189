"""Runs every move in one potential, a double well with a barrier of 10 kT, with local steps between attempts.

    python examples/every_move.py [attempts]

Prints the population of the left well that each move finds, beside the exact value.
"""

import argparse
from pathlib import Path

import numpy as np

import modejump

MODELS = Path(__file__).resolve().parents[1] / "models" / "double-well"
BLOCKS, LOCAL_STEPS, WIDTHS = 20, 5, np.array([0.15, 0.3])


def u(x):
    return 10 * (x[:, 0] ** 2 - 1) ** 2 + 0.5 * x[:, 0] + 5 * (x[:, 1] - 0.5 * x[:, 0]) ** 2


def u_and_gradient(x):
    slope = 10 * (x[:, 1] - 0.5 * x[:, 0])
    return u(x), np.stack([40 * x[:, 0] * (x[:, 0] ** 2 - 1) + 0.5 - 0.5 * slope, slope], axis=1)


def exact():
    x = np.linspace(-2.5, 2.5, 20001)
    weight = np.exp(-10 * (x**2 - 1) ** 2 - 0.5 * x)
    return weight[x < 0].sum() / weight.sum()


def local_steps(x, random):
    """Random-walk Metropolis steps, in place of dynamics."""
    here = u(x[None])[0]
    for _ in range(LOCAL_STEPS):
        trial = x + WIDTHS * random.normal(size=2)
        there = u(trial[None])[0]
        if np.log(random.random()) < here - there:
            x, here = trial, there
    return x, here


def run(move, attempts):
    """Returns P(x_0 < 0), its standard error from block means, and how often a jump crossed between the wells."""
    random = np.random.default_rng(7)
    x, left, crossings = np.array([1.0, 0.5]), [], 0
    for step in range(attempts):
        x, here = local_steps(x, random)
        outcome = move.attempt(x, u, step=step, reduced_potential=here, gradient=u_and_gradient)
        crossings += (outcome.x[0] < 0) != (x[0] < 0)
        x = outcome.x
        left.append(x[0] < 0)
    means = [block.mean() for block in np.array_split(left, BLOCKS)]
    return np.mean(left), np.std(means, ddof=1) / BLOCKS**0.5, crossings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attempts", type=int, nargs="?", default=5000, help="attempts with each move (default: 5000)")
    attempts = parser.parse_args().attempts
    generator, modes = (modejump.Model(MODELS / f"{name}.safetensors") for name in ("generator", "modes"))
    moves = {
        "independence": modejump.Move(generator, seed=1),
        "i-SIR": modejump.Move(generator, "isir", proposals=4, seed=1),
        "annealed": modejump.Move(generator, "annealed", stages=5, kernel_step=0.01, seed=1),
        "latent walk": modejump.Move(generator, "latent_walk", widths=[0.1, 1.0], seed=1),
        "trajectories": modejump.Move(generator, "latent_walk", widths=[0.2], leapfrog=5, seed=1),
        "mode jumps": modejump.Move(modes, seed=1),
        "by a function": modejump.Move(modes, mode=lambda x: int(x[0] > 0), seed=1),
    }
    print(f"{'exact':14} {exact():.3f}")
    for name, move in moves.items():
        value, error, crossings = run(move, attempts)
        print(f"{name:14} {value:.3f} ± {error:.3f}, {crossings:5} crossings, {100 * move.statistics().acceptance:4.1f} % accepted")


if __name__ == "__main__":
    main()
