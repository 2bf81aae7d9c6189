"""Alanine dipeptide at 300 K with jumps proposed by a continuous flow and screened by an energy-based model (EBM). The flow's exact
density, an integral along its path, is computed only for proposals that pass the EBM, and decides whether those are accepted.

    python examples/ala2_screened.py                                  # delayed acceptance: exact
    python examples/ala2_screened.py --acceptance surrogate           # the EBM alone: cheap, biased and marked as such
    python examples/ala2_screened.py --attempts 200 --log screened.csv
"""

import argparse
import pathlib
import time

import openmm
from openmm import app

from modejump import ModeJumpReporter, MonteCarloModeJump

ALA2 = pathlib.Path(__file__).resolve().parent.parent / "models/ala2"
STEPS = 500  # steps of dynamics between attempts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--attempts", type=int, default=40)
parser.add_argument("--acceptance", choices=["exact", "surrogate"], default="exact")
parser.add_argument("--log", type=pathlib.Path, default=pathlib.Path("target/screened.csv"), help="file for the counts after every attempt [%(default)s]")
options = parser.parse_args()
options.log.parent.mkdir(parents=True, exist_ok=True)

pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
jump = MonteCarloModeJump(
    str(ALA2 / "gvp-flow.safetensors"),
    frequency=STEPS,
    screen=str(ALA2 / "invariant-ebm.safetensors"),
    acceptance=options.acceptance,
    seed=1,
)
system.addForce(jump)

integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
simulation = app.Simulation(pdb.topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy()
simulation.context.setVelocitiesToTemperature(300, 1)
simulation.reporters.append(ModeJumpReporter(options.log, STEPS))

start = time.perf_counter()
simulation.step(STEPS * options.attempts + 1)  # each attempt is made at the start of the next step
s = jump.statistics(simulation.context)
seconds = (time.perf_counter() - start) / s.attempts
print(f"{s.attempts} attempts, {100 * s.acceptance:.0f} % accepted by the {s.likelihood} density, {seconds:.2f} s each")
if s.screened:
    print(
        f"{s.screened} passed the screen, {s.exact_evaluations} exact densities (without it: {2 * s.attempts}), "
        f"variance of ln(q_EBM/q) {s.correction_variance:.2f}"
    )
print(f"{options.log} has the counts after every attempt")
