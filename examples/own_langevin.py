"""Adds jumps to your own Langevin loop: a particle in a double well with a barrier of 10 kT, in numpy.

    .venv/bin/python examples/own_langevin.py

Prints the population of the left well with and without jumps, beside the exact value.
"""

from pathlib import Path

import numpy as np

import modejump

MODEL = Path(__file__).resolve().parents[1] / "models/double-well/generator.safetensors"
TIMESTEP, JUMP_EVERY, STEPS = 0.002, 20, 100_000


def potential(x):
    """Reduced potential u = U/kT of configurations x [n, 2]."""
    return 10 * (x[:, 0] ** 2 - 1) ** 2 + 0.5 * x[:, 0] + 5 * (x[:, 1] - 0.5 * x[:, 0]) ** 2


def force(x):
    spring = 10 * (x[1] - 0.5 * x[0])
    return np.array([-40 * x[0] * (x[0] ** 2 - 1) - 0.5 + 0.5 * spring, -spring])


def run(jumps):
    rng, x = np.random.default_rng(1), np.array([1.0, 0.5])
    move = modejump.Move(modejump.Model(MODEL), seed=1, stride=JUMP_EVERY)
    left = 0
    for step in range(STEPS):
        if jumps and step % JUMP_EVERY == 0:
            x = move.attempt(x, potential, step=step).x
        x = x + TIMESTEP * force(x) + np.sqrt(2 * TIMESTEP) * rng.normal(size=2)
        left += x[0] < 0
    return left / STEPS, move.statistics().acceptance


grid = np.linspace(-2.5, 2.5, 20001)
weight = np.exp(-10 * (grid**2 - 1) ** 2 - 0.5 * grid)
print(f"P(left) exact       {weight[grid < 0].sum() / weight.sum():.3f}")
print(f"P(left) plain       {run(jumps=False)[0]:.3f}")
print("P(left) with jumps  {:.3f}, accepted {:.1%}".format(*run(jumps=True)))
