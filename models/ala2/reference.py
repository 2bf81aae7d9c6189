"""Reference values for alanine dipeptide, independent of any generator.

`replica-exchange` runs parallel tempering (300–810 K, Langevin dynamics of each replica, swaps of neighbours every
0.5 ps) and writes the free-energy difference of the phi > 0 basin and <U> at 300 K. `plain` runs plain molecular dynamics
and writes how often phi changes its basin. Both append to a JSON file after every nanosecond, so a killed run keeps what it
has.

    python models/ala2/reference.py replica-exchange --nanoseconds 6 -o models/ala2/reference-rex.json
    python models/ala2/reference.py plain --nanoseconds 30 -o models/ala2/reference-plain.json
"""

import argparse
import json
import pathlib

import numpy as np
import openmm
from openmm import app, unit

HERE = pathlib.Path(__file__).parent
KT = 0.00831446261815324  # kJ/(mol K)
PHI = (4, 6, 8, 14)


def torsion(x, atoms):
    """IUPAC torsion angle in radian of positions [..., atom, 3]."""
    a, b, c, d = (x[..., i, :] for i in atoms)
    b0, b1, b2 = a - b, c - b, d - c
    b1 = b1 / np.linalg.norm(b1, axis=-1, keepdims=True)
    v = b0 - (b0 * b1).sum(-1, keepdims=True) * b1
    w = b2 - (b2 * b1).sum(-1, keepdims=True) * b1
    return np.arctan2((np.cross(b1, v) * w).sum(-1), (v * w).sum(-1))


def transitions(phi):
    """Changes between the cores of the two basins; wandering on the barrier counts once."""
    core = np.where((phi > 0.5) & (phi < 1.7), 1, np.where((phi > -2.8) & (phi < -0.7), -1, 0))
    visits = core[core != 0]
    return int((visits[1:] != visits[:-1]).sum())


def in_left_basin(phi):
    return (phi > 0) & (phi < 2.2)


def block_error(values, blocks=20):
    means = [b.mean() for b in np.array_split(np.asarray(values, dtype=float), blocks)]
    return float(np.std(means, ddof=1) / np.sqrt(blocks))


def delta_f(inside):
    """-ln P(left)/P(rest) and its error from blocks."""
    p = float(np.mean(inside))
    if p in (0.0, 1.0):
        return float("nan"), float("nan")
    return float(-np.log(p / (1 - p))), block_error(inside) / (p * (1 - p))


def simulation(system_file, temperature, seed, timestep, friction):
    system = openmm.XmlSerializer.deserialize((HERE / system_file).read_text())
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
    integrator.setRandomNumberSeed(seed)
    pdb = app.PDBFile(str(HERE / "topology.pdb"))
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(pdb.positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    context.setVelocitiesToTemperature(temperature, seed)
    return context


def observe(context):
    state = context.getState(positions=True, energy=True)
    x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return x, state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def replica_exchange(options):
    temperatures = 300.0 * 1.22 ** np.arange(6)
    contexts = [simulation(options.system, t, options.seed + i, options.timestep, 1.0) for i, t in enumerate(temperatures)]
    rng = np.random.default_rng(options.seed)
    steps = int(round(0.5 / options.timestep))
    phi, energy, swaps, tried = [], [], np.zeros(5), np.zeros(5)
    for cycle in range(int(options.nanoseconds * 2000)):
        states = []
        for context in contexts:
            context.getIntegrator().step(steps)
            states.append(observe(context))
        if cycle >= 200:  # 0.1 ns of equilibration
            phi.append(float(torsion(states[0][0], PHI)))
            energy.append(states[0][1])
        beta = 1 / (KT * temperatures)
        for i in range(cycle % 2, 5, 2):
            tried[i] += 1
            if np.log(rng.random()) < (beta[i] - beta[i + 1]) * (states[i][1] - states[i + 1][1]):
                swaps[i] += 1
                for to, source, scale in ((i, i + 1, 1 / 1.22), (i + 1, i, 1.22)):
                    contexts[to].setPositions(states[source][0])
                    contexts[to].setVelocitiesToTemperature(temperatures[to], int(rng.integers(1 << 30)))
        if cycle % 2000 == 1999:
            value, error = delta_f(in_left_basin(np.array(phi)))
            write(options.output, {
                "method": "replica exchange, 6 temperatures from 300 to 810 K",
                "nanoseconds_per_replica": (cycle + 1) / 2000,
                "delta_f_kT": value, "delta_f_stderr": error,
                "u_mean": float(np.mean(energy)), "u_stderr": block_error(energy),
                "transitions_at_300K": transitions(np.array(phi)),
                "swap_acceptance": (swaps / np.maximum(tried, 1)).round(3).tolist(),
            })


def plain(options):
    context = simulation(options.system, 300.0, options.seed, options.timestep, 1.0)
    steps = int(round(0.1 / options.timestep))
    phi, energy = [], []
    for frame in range(int(options.nanoseconds * 10000)):
        context.getIntegrator().step(steps)
        x, u = observe(context)
        phi.append(float(torsion(x, PHI)))
        energy.append(u)
        if frame % 10000 == 9999:
            n = transitions(np.array(phi))
            write(options.output, {
                "method": "plain Langevin dynamics, 300 K",
                "nanoseconds": (frame + 1) / 10000, "transitions": n,
                "transitions_per_ns": n / ((frame + 1) / 10000),
                "timestep_ps": options.timestep,
                "u_mean": float(np.mean(energy)), "u_stderr": block_error(energy),
            })


def write(path, values):
    pathlib.Path(path).write_text(json.dumps(values, indent=1) + "\n")
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["replica-exchange", "plain"])
    parser.add_argument("--nanoseconds", type=float, required=True, help="per replica")
    parser.add_argument("--system", default="system.xml")
    parser.add_argument("--timestep", type=float, default=0.001, help="ps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    {"replica-exchange": replica_exchange, "plain": plain}[arguments.method](arguments)
