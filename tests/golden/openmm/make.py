"""Writes ala2.json: energies and forces of perturbed configurations from Python OpenMM (Reference platform).

    .venv/bin/python tests/golden/openmm/make.py
"""

import json
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

HERE = Path(__file__).resolve().parent
ALA2 = HERE.parents[2] / "models" / "ala2"


def evaluate(system, frames):
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    energies, forces = [], []
    for frame in frames:
        context.setPositions(frame)
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        forces.append(state.getForces(asNumpy=True)._value.ravel().tolist())
    return {"energy": energies, "force": forces}


def main():
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    x0 = np.array(pdb.positions.value_in_unit(unit.nanometer))
    frames = [np.round(x0 + np.random.default_rng(seed).normal(0, 0.006, x0.shape), 6) for seed in range(4)]
    result = {"openmm": openmm.version.version, "x": [frame.ravel().tolist() for frame in frames]}
    for name in ("system", "system-hbonds"):
        result[name] = evaluate(openmm.XmlSerializer.deserialize((ALA2 / f"{name}.xml").read_text()), frames)
    (HERE / "ala2.json").write_text(json.dumps(result, indent=None) + "\n")


if __name__ == "__main__":
    main()
