"""Exchanges through exact maps, on as many MPI ranks as this is started with: `mpiexec -n 2 python exchange_on_ranks.py FOLDER`.

The first rank prints JSON: the number of ranks, the counters, and the mean squares of the coordinates in either state.
"""

import json
import math
import sys
from pathlib import Path

import mpiplus
from openmm import unit
from openmmtools import cache, mcmc, multistate, states

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import toy  # noqa: E402

import modejump  # noqa: E402
from modejump.openmmtools import LearnedReplicaExchangeSampler, NeuralJumpMove  # noqa: E402

TEMPERATURES, ITERATIONS = (300, 450), 300


def main(folder):
    communicator = mpiplus.get_mpicomm()
    first = communicator is None or communicator.rank == 0
    files = [folder / f"{t}.safetensors" for t in TEMPERATURES]
    if first:
        for file, t in zip(files, TEMPERATURES):
            toy.write_gaussian_model(file, (toy.SIGMA * math.sqrt(t / TEMPERATURES[0]),) * 3)
    if communicator is not None:
        communicator.barrier()
    dynamics = mcmc.LangevinDynamicsMove(timestep=2 * unit.femtosecond, collision_rate=5 / unit.picosecond, n_steps=50)
    moves = [mcmc.SequenceMove([dynamics, NeuralJumpMove(file, seed=5)]) for file in files]
    sampler = LearnedReplicaExchangeSampler(mcmc_moves=moves, number_of_iterations=ITERATIONS)
    sampler.set_maps([modejump.Bijection(*map(modejump.Model, files))], seed=3)
    sampler.energy_context_cache = sampler.sampler_context_cache = cache.ContextCache(platform=toy.platform()[0])
    thermodynamic = [states.ThermodynamicState(toy.well_system(), t * unit.kelvin) for t in TEMPERATURES]
    begin = states.SamplerState(positions=[[0.01, 0.0, 0.0]] * unit.nanometer)
    storage = multistate.MultiStateReporter(str(folder / "run.nc"), checkpoint_interval=ITERATIONS)
    sampler.create(thermodynamic, [begin], storage=storage)
    squares = [[], []]
    for _ in range(ITERATIONS):
        sampler.run(1)
        for replica, state in enumerate(sampler._replica_thermodynamic_states):
            x = sampler.sampler_states[replica].positions.value_in_unit(unit.nanometer)
            squares[state].append(float((x**2).mean()))
    if first:
        statistics = sampler.exchange_statistics(0)
        ranks = 1 if communicator is None else communicator.size
        print(json.dumps({"ranks": ranks, "attempts": statistics.attempts, "accepted": statistics.accepted, "squares": squares}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
