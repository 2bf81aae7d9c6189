"""A TarFlow as the generator: four atoms, each tied to all others by springs of length zero, whose shape is normal about the centroid."""

import numpy as np
import openmm
import toy
from model_file import write_file
from test_ensemble import assert_mean

import modejump

N = 4
#: Standard deviation of a coordinate about the centroid, but for the freedom that the centroid takes away, nm.
SD = 0.05


def write_tarflow(path, stretch=1.0):
    """One block whose layers are without effect: every token is left as it is, but for the first all are stretched."""
    c, prefix = 4, "blocks.0.attn_blocks.0"
    matrices = {"attention.qkv": (3 * c, c), "attention.proj": (c, c), "mlp.main.0": (c, c), "mlp.main.3": (c, c)}
    tensors = {"blocks.0.pos_embed": np.zeros((N, c))}
    for name, shape in matrices.items():
        tensors |= {f"{prefix}.{name}.weight": np.zeros(shape), f"{prefix}.{name}.bias": np.zeros(shape[0])}
    for name in ("attention.norm", "mlp.norm"):
        tensors |= {f"{prefix}.{name}.weight": np.ones(c), f"{prefix}.{name}.bias": np.zeros(c)}
    for name, rows, columns in (("proj_in", c, 3), ("proj_out", 6, c)):
        tensors |= {f"blocks.0.{name}.weight": np.zeros((rows, columns)), f"blocks.0.{name}.bias": np.zeros(rows)}
    tensors["blocks.0.proj_out.bias"][:3] = np.log(stretch)
    sizes = {"tokens": N, "token_size": 3, "channels": c, "blocks": 1, "layers": 1, "heads": 1, "expansion": 1}
    config = {"network": sizes, "units_per_nm": 1 / SD, "centroid": 1 / np.sqrt(N)}
    coordinates = {"kind": "cartesian", "dimension": 3 * N}
    return write_file(path, {"kind": "tarflow", "config": config}, coordinates, tensors)


def cluster():
    system, springs = openmm.System(), openmm.HarmonicBondForce()
    for i in range(N):
        system.addParticle(12.0)
        for j in range(i):
            springs.addBond(i, j, 0.0, toy.KT / SD**2 / N)
    system.addForce(springs)
    return system


def start():
    return SD * np.random.default_rng(1).normal(size=(N, 3)) + [0.3, -0.2, 0.1]


def test_a_perfect_tarflow_is_always_accepted(tmp_path):
    """Whatever centroid the configuration has: the flow's is noise, and the molecule stays where it is."""
    system = cluster()
    jump = modejump.MonteCarloModeJump(write_tarflow(tmp_path / "tarflow.safetensors"), 0, seed=2)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=start())
    centroid = toy.positions(context).mean(axis=0)
    assert all(jump.attempt(context) for _ in range(200))
    assert np.abs(toy.positions(context).mean(axis=0) - centroid).max() < 1e-6


def test_the_ensemble_is_that_of_the_springs_whatever_the_tarflow(tmp_path):
    system = cluster()
    jump = modejump.MonteCarloModeJump(write_tarflow(tmp_path / "wide.safetensors", 1.2), 5, seed=4, draw_ahead=True)
    system.addForce(jump)
    integrator = toy.langevin()
    context = toy.make_context(system, integrator, x=start())
    energies = []
    for _ in range(6000):
        integrator.step(5)
        energies.append(toy.potential(context))
    assert 0.3 < jump.statistics(context).acceptance < 0.95
    assert_mean(energies, 1.5 * (N - 1) * toy.KT, "potential energy")
