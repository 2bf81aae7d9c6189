"""One model for a temperature ladder: replica exchange of alanine dipeptide from 300 K to 600 K with jumps of one steerable generator
trained at 600 K, compared with the same ladder without jumps.

    make build plugin
    python examples/temperature_ladder.py --output target/ladder

Writes summary.json and prints a table: at each temperature, the fraction of jumps accepted, the mean potential energy, and how often the
replica at that temperature changed between the basins of phi.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import openmm
from openmm import app, unit

import modejump

ALA2 = pathlib.Path(__file__).resolve().parent.parent / "models/ala2"
sys.path.insert(0, str(ALA2))
from reference import PHI, torsion  # noqa: E402


class Ladder(app.ReplicaExchangeSampler):
    """Replica-exchange sampler that counts the jumps of each state."""

    jump = None

    def simulateReplica(self, replica, *steps):
        context, state = self.simulation.context, self.replicaStateIndex[replica]
        before = self.jump and self.jump.statistics(context)
        super().simulateReplica(replica, *steps)
        if self.jump:
            after = self.jump.statistics(context)
            self.counts[state] += [after.attempts - before.attempts, after.accepted - before.accepted]


def ladder(temperatures, options, model=None):
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    jump = modejump.MonteCarloModeJump(str(model), options.frequency, seed=options.seed) if model else None
    if jump:
        system.addForce(jump)
    integrator = openmm.LangevinMiddleIntegrator(temperatures[0], 1.0, 0.001)
    integrator.setRandomNumberSeed(options.seed)
    simulation = app.Simulation(pdb.topology, system, integrator, openmm.Platform.getPlatformByName(options.platform))
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    sampler = Ladder([{"temperature": t} for t in temperatures], simulation, options.steps)
    sampler.jump, sampler.counts = jump, np.zeros((len(temperatures), 2), dtype=int)
    if jump:
        modejump.assign_replica_streams(sampler)
    for replica in range(len(temperatures)):
        sampler.simulateReplica(replica, 5000)
    sampler.counts[:] = 0
    energies, left = ([[] for _ in temperatures] for _ in range(2))

    def record(sampler):
        for replica, state in enumerate(sampler.replicaStateIndex):
            energy = sampler.replicaStateEnergy[replica][state]
            x = sampler.replicaConformation[replica].getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            energies[state].append(energy.value_in_unit(unit.kilojoule_per_mole))
            left[state].append(bool(0 < torsion(x, PHI) < 2.2))

    sampler.reporters.append(record)
    sampler.simulate(options.iterations)
    return [summary(*row) for row in zip(temperatures, sampler.counts.tolist(), energies, left)]


#: Number of blocks for the error estimates, each of at least two exchanges.
BLOCKS = 20


def summary(temperature, counts, energies, positive):
    blocks = np.array([np.mean(block) for block in np.array_split(energies, BLOCKS)]) if len(energies) >= 2 * BLOCKS else None
    return {
        "temperature": temperature,
        "attempts": counts[0],
        "acceptance": counts[1] / counts[0] if counts[0] else None,
        "u_mean": float(np.mean(energies)),
        "u_stderr": None if blocks is None else float(blocks.std(ddof=1) / np.sqrt(BLOCKS)),
        "positive_phi": float(np.mean(positive)),
        "crossings": int(np.sum(np.diff(np.array(positive, dtype=int)) != 0)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ALA2 / "steerable.safetensors")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 360.0, 430.0, 510.0, 600.0])
    parser.add_argument("--iterations", type=int, default=2000, help="number of exchanges")
    parser.add_argument("--steps", type=int, default=100, help="steps of 1 fs between exchanges")
    parser.add_argument("--frequency", type=int, default=10, help="steps between jumps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--platform", default="Reference")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("target/ladder"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    found = {"jumps": ladder(options.temperatures, options, options.model), "plain": ladder(options.temperatures, options)}
    (options.output / "summary.json").write_text(json.dumps(found, indent=1))
    print("  T (K)  accepted    <U> with jumps      <U> without       crossings with, without")
    for a, b in zip(found["jumps"], found["plain"]):
        u, v = (f"{row['u_mean']:8.2f} ± " + ("   –" if row["u_stderr"] is None else f"{row['u_stderr']:4.2f}") for row in (a, b))
        accepted = "     –  " if a["acceptance"] is None else f"{100 * a['acceptance']:6.1f} %"
        print(f"{a['temperature']:7.0f}  {accepted}  {u}    {v}    {a['crossings']:8} {b['crossings']:8}")
    if options.iterations < 2 * BLOCKS:
        print(f"{options.iterations} exchanges are too few for error estimates: use --iterations {2 * BLOCKS} or more")


if __name__ == "__main__":
    main()
