"""Reference values for alanine dipeptide, independent of any generator.

`flat-phi` runs Langevin dynamics under a bias that makes phi uniform and writes the free-energy difference of the
phi > 0 basin and <U> at 300 K, both weighted back. `metadynamics` does the same under a bias on phi and psi that
well-tempered metadynamics has learned. `plain` runs plain molecular dynamics and writes how often phi changes its basin.
All rewrite a JSON file after every nanosecond, so a killed run keeps what it has.

    python models/ala2/reference.py flat-phi --nanoseconds 60 -o models/ala2/reference-flat.json
    python models/ala2/reference.py metadynamics --nanoseconds 41 --seed 2 -o models/ala2/reference-metadynamics.json
    python models/ala2/reference.py plain --nanoseconds 60 -o models/ala2/reference-plain.json
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
PSI = (6, 8, 14, 16)
BIAS_GROUP = 31  # force group of the bias; metadynamics takes the last free one, which is the same
ORDER = 10  # of the Fourier series of the bias


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


def weighted_mean(values, weights, blocks=20):
    """Weighted mean and its standard error by a jackknife over blocks in time."""
    top = np.array([b.sum() for b in np.array_split(values * weights, blocks)])
    bottom = np.array([b.sum() for b in np.array_split(weights, blocks)])
    left_out = (top.sum() - top) / (bottom.sum() - bottom)
    error = np.sqrt((blocks - 1) * np.mean((left_out - left_out.mean()) ** 2))
    return float(top.sum() / bottom.sum()), float(error)


def delta_f(inside, weights):
    """-ln P(left)/P(rest) and its standard error."""
    p, error = weighted_mean(inside, weights)
    if p in (0.0, 1.0):
        return float("nan"), float("nan")
    return float(-np.log(p / (1 - p))), error / (p * (1 - p))


def simulation(system, temperature, seed, timestep, friction):
    integrator = openmm.LangevinMiddleIntegrator(temperature, friction, timestep)
    integrator.setRandomNumberSeed(seed)
    pdb = app.PDBFile(str(HERE / "topology.pdb"))
    run = app.Simulation(pdb.topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    run.context.setPositions(pdb.positions)
    openmm.LocalEnergyMinimizer.minimize(run.context)
    run.context.setVelocitiesToTemperature(temperature, seed)
    return run


def observe(context):
    """Positions, potential energy without the bias, and the bias."""
    state = context.getState(positions=True, energy=True, groups=set(range(BIAS_GROUP)))
    x = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    bias = context.getState(energy=True, groups={BIAS_GROUP})
    return x, *(s.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) for s in (state, bias))


def harmonics(phi):
    """cos(k phi), sin(k phi) for k = 1 ... ORDER, along the last axis."""
    angles = np.multiply.outer(phi, np.arange(1, ORDER + 1))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def sampled(run, options):
    """phi, energy and bias every 0.1 ps, from the start up to each full nanosecond."""
    stride = int(round(0.1 / options.timestep))
    rows = []
    for frame in range(int(options.nanoseconds * 10000)):
        run.step(stride)
        x, u, bias = observe(run.context)
        rows.append((float(torsion(x, PHI)), u, bias))
        if frame % 10000 == 9999:
            yield np.array(rows).T


def add_bias(system):
    """Bias on phi, a Fourier series whose coefficients are global parameters c0, c1, ..."""
    terms = [f"c{k - 1}*cos({k}*theta) + c{ORDER + k - 1}*sin({k}*theta)" for k in range(1, ORDER + 1)]
    force = openmm.CustomTorsionForce(" + ".join(terms))
    for i in range(2 * ORDER):
        force.addGlobalParameter(f"c{i}", 0.0)
    force.addTorsion(*PHI)
    force.setForceGroup(BIAS_GROUP)
    system.addForce(force)


def flat_phi(options):
    """Learns a bias that makes phi uniform, freezes it, samples, and weighs each frame by exp(+bias/kT).

    Coefficients follow the stochastic gradient of Valsson and Parrinello's variational functional, PRL 113, 090601 (2014),
    with a uniform target. An imperfect bias costs efficiency, never correctness.
    """
    system = openmm.XmlSerializer.deserialize((HERE / options.system).read_text())
    add_bias(system)
    run = simulation(system, 300.0, options.seed, options.timestep, 1.0)
    bias = np.zeros(2 * ORDER)
    learning, stride = 40000, int(round(0.1 / options.timestep))
    for step in range(learning):  # 4 ns
        run.step(stride)
        phi = float(torsion(observe(run.context)[0], PHI))
        bias += 0.1 / (1 + step / 2000) * harmonics(phi)
        for i, c in enumerate(bias):
            run.context.setParameter(f"c{i}", c)
    weighted(run, options, "Langevin dynamics at 300 K under a bias that flattens phi, weighted by exp(bias/kT)")


def metadynamics(options):
    """4 ns of well-tempered metadynamics in phi and psi (Barducci, Bussi and Parrinello, PRL 100, 020603, 2008); then the
    bias is frozen, and frames are weighted by exp(+bias/kT)."""
    system = openmm.XmlSerializer.deserialize((HERE / options.system).read_text())
    variables = []
    for atoms in (PHI, PSI):
        angle = openmm.CustomTorsionForce("theta")
        angle.addTorsion(*atoms)
        variables.append(app.BiasVariable(angle, -np.pi, np.pi, 0.3, True))
    learning, stride = int(round(4000 / options.timestep)), int(round(0.4 / options.timestep))
    bias = app.Metadynamics(system, variables, 300.0, biasFactor=8.0, height=1.0, frequency=stride)
    run = simulation(system, 300.0, options.seed, options.timestep, 1.0)
    bias.step(run, learning)
    weighted(run, options, "Langevin dynamics at 300 K under a frozen bias on phi and psi that well-tempered metadynamics "
             "has learned, weighted by exp(bias/kT)")


def weighted(run, options, method):
    """Samples under a frozen bias and writes what the weighted frames say."""
    for phi, energy, bias in sampled(run, options):
        weight = np.exp((bias - bias.max()) / (KT * 300.0))
        value, error = delta_f(in_left_basin(phi), weight)
        u_mean, u_error = weighted_mean(energy, weight)
        write(options.output, {
            "method": method,
            "nanoseconds": len(phi) / 10000, "timestep_ps": options.timestep, "seed": options.seed,
            "delta_f_kT": value, "delta_f_stderr": error, "u_mean": u_mean, "u_stderr": u_error,
            "transitions": transitions(phi),
            "effective_fraction": float(weight.sum() ** 2 / (weight**2).sum() / len(weight)),
        })


def plain(options):
    system = openmm.XmlSerializer.deserialize((HERE / options.system).read_text())
    run = simulation(system, 300.0, options.seed, options.timestep, 1.0)
    for phi, energy, _ in sampled(run, options):
        n, nanoseconds = transitions(phi), len(phi) / 10000
        u_mean, u_error = weighted_mean(energy, np.ones(len(energy)))
        write(options.output, {
            "method": "plain Langevin dynamics, 300 K",
            "nanoseconds": nanoseconds, "transitions": n,
            "transitions_per_ns": n / nanoseconds,
            "timestep_ps": options.timestep,
            "u_mean": u_mean, "u_stderr": u_error,
        })


def write(path, values):
    pathlib.Path(path).write_text(json.dumps(values, indent=1) + "\n")
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["flat-phi", "metadynamics", "plain"])
    parser.add_argument("--nanoseconds", type=float, required=True)
    parser.add_argument("--system", default="system.xml")
    parser.add_argument("--timestep", type=float, default=0.001, help="ps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    {"flat-phi": flat_phi, "metadynamics": metadynamics, "plain": plain}[arguments.method](arguments)
