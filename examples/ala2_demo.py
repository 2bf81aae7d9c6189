"""Alanine dipeptide at 300 K in implicit solvent: plain molecular dynamics and molecular dynamics with generator jumps,
each for the same wall time. Both run in OpenMM at the same time, each on one core.

    python examples/ala2_demo.py --seconds 90 --output target/demo            # or simply: make demo
    python examples/ala2_demo.py --hbonds …                                   # bonds to hydrogen constrained

Writes summary.json (its keys are set in `summarise`) and series.json for `modejump plot`.
"""

import argparse
import json
import math
import multiprocessing
import pathlib
import sys
import time

import numpy as np
import openmm
from openmm import app, unit

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "models/ala2"))
from reference import KT, PHI, PSI, delta_f, in_left_basin, torsion, transitions, weighted_mean  # noqa: E402

TEMPERATURE = 300.0
RECORD = 20  # steps between recorded frames
#: Long runs without a generator: {part of the file name: (key in the summary, description)}.
REFERENCES = {"flat": ("reference", "with a bias on phi"), "metadynamics": ("metadynamics", "after metadynamics in phi and psi")}


def build(options, jump):
    """Builds a Simulation on the Reference platform, the fastest for 22 atoms."""
    name = "system-hbonds.xml" if options.hbonds else "system.xml"
    system = openmm.XmlSerializer.deserialize((ROOT / "models/ala2" / name).read_text())
    if jump:
        from modejump import MonteCarloModeJump

        force = MonteCarloModeJump(
            str(options.model), frequency=options.frequency, proposals=options.proposals, seed=options.seed
        )
        system.addForce(force)
    pdb = app.PDBFile(str(ROOT / "models/ala2/topology.pdb"))
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, options.timestep)
    integrator.setRandomNumberSeed(options.seed + int(jump))
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(pdb.topology, system, integrator, platform)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, options.seed)
    return simulation, force if jump else None


def run(options, jump, queue):
    """Runs dynamics until the wall time is used up and puts the time series into the queue."""
    simulation, force = build(options, jump)
    simulation.step(5000)
    if jump:
        force.reset_statistics(simulation.context)
    # the System's CMMotionRemover takes three more
    dof = 3 * simulation.system.getNumParticles() - simulation.system.getNumConstraints() - 3
    frames, potential, kinetic = [], [], []
    start = time.perf_counter()
    shown = start
    while time.perf_counter() - start < options.seconds:
        simulation.step(RECORD)
        state = simulation.context.getState(positions=True, energy=True)
        frames.append(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        potential.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        kinetic.append(state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole))
        if jump and time.perf_counter() - shown > 10:
            shown = time.perf_counter()
            crossed = transitions(torsion(np.array(frames), PHI))
            print(f"  {shown - start:5.0f} s: {len(frames) * RECORD} steps, {crossed} phi transitions", flush=True)
    wall = time.perf_counter() - start
    x = np.array(frames)
    result = {
        "wall": wall,
        "steps": len(frames) * RECORD,
        "phi": torsion(x, PHI),
        "psi": torsion(x, PSI),
        "u": np.array(potential),
        "t": 2 * np.array(kinetic) / (dof * KT),
    }
    if jump:
        result["statistics"] = force.statistics(simulation.context)
        result["log_weight"] = np.array(force.log_weights(simulation.context))
    queue.put((jump, result))


def most_events(n):
    """Largest Poisson mean for which n events or fewer have a probability of 5 %."""
    tail = lambda mean: math.exp(-mean) * sum(mean**k / math.factorial(k) for k in range(n + 1))  # noqa: E731
    low, high = 0.0, n + 10.0 + 5.0 * math.sqrt(n)
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if tail(middle) > 0.05 else (low, middle)
    return low


def summarise(md, jump, reweighted, plain, references):
    statistics = jump["statistics"]
    value, error = delta_f(in_left_basin(jump["phi"]), np.ones(len(jump["phi"])))
    summary = {
        "acceptance": statistics.acceptance,
        "attempts": statistics.attempts,
        "transitions_md": transitions(md["phi"]),
        "transitions_jump": transitions(jump["phi"]),
        "wall_md_s": md["wall"],
        "wall_jump_s": jump["wall"],
        "steps_md": md["steps"],
        "steps_jump": jump["steps"],
        "delta_f_kT": value,
        "delta_f_stderr": error,
        "ess": reweighted["ess"] if reweighted else float("nan"),
    }
    for name, series in (("md", md), ("jump", jump)):
        for quantity in "ut":
            mean, error = weighted_mean(series[quantity], np.ones(len(series[quantity])))
            summary[f"{quantity}_{name}_mean"], summary[f"{quantity}_{name}_stderr"] = mean, error
    if reweighted:
        summary["delta_f_reweighted_kT"] = reweighted["delta_f_kT"]
        summary["delta_f_reweighted_stderr"] = reweighted["delta_f_stderr"]
        summary["acceptance_fresh_proposal"] = reweighted["acceptance"]
    if plain:
        # the rate per nanosecond of plain MD comes from a long run; the conversion to seconds, from this machine's speed now
        nanoseconds_per_second = md["steps"] * plain["timestep_ps"] / 1000 / md["wall"]
        rate = lambda events: events / plain["nanoseconds"] * nanoseconds_per_second  # noqa: E731
        jumps = summary["transitions_jump"] / jump["wall"]
        summary["plain_transitions_per_s"] = rate(plain["transitions"])
        if plain["transitions"] > 0:
            summary["speedup"] = jumps / rate(plain["transitions"])
        summary["speedup_at_least"] = jumps / rate(most_events(plain["transitions"]))
    for name, reference in references.items():
        summary[f"delta_f_{name}_kT"] = reference["delta_f_kT"]
        summary[f"delta_f_{name}_stderr"] = reference["delta_f_stderr"]
    return summary


def report(s):
    print()
    print(f"{'':28}{'plain MD':>14}{'MD + jumps':>14}")
    row = lambda name, a, b: print(f"{name:28}{a:>14}{b:>14}")  # noqa: E731
    row("wall time / s", f"{s['wall_md_s']:.0f}", f"{s['wall_jump_s']:.0f}")
    row("steps", s["steps_md"], s["steps_jump"])
    row("phi transitions", s["transitions_md"], s["transitions_jump"])
    per_minute = [60 * s[f"transitions_{k}"] / s[f"wall_{k}_s"] for k in ("md", "jump")]
    row("phi transitions per minute", f"{per_minute[0]:.1f}", f"{per_minute[1]:.1f}")
    row("<U> / kJ/mol", *(f"{s[f'u_{k}_mean']:.2f}({s[f'u_{k}_stderr']:.2f})" for k in ("md", "jump")))
    row("<T> / K", *(f"{s[f't_{k}_mean']:.1f}({s[f't_{k}_stderr']:.1f})" for k in ("md", "jump")))
    print()
    print(f"acceptance                  {100 * s['acceptance']:.1f} % of {s['attempts']} attempts")
    print(f"dF(phi > 0)                 {s['delta_f_kT']:.3f} +- {s['delta_f_stderr']:.3f} kT")
    if "delta_f_reweighted_kT" in s:
        print(f"  by importance weights     {s['delta_f_reweighted_kT']:.3f} +- {s['delta_f_reweighted_stderr']:.3f} kT,"
              f" ESS {100 * s['ess']:.0f} %, acceptance of a single new proposal {100 * s['acceptance_fresh_proposal']:.0f} %")
    for name, what in REFERENCES.values():
        if f"delta_f_{name}_kT" in s:
            print(f"  without a generator       {s[f'delta_f_{name}_kT']:.3f} +- {s[f'delta_f_{name}_stderr']:.3f} kT,"
                  f" from a long run {what}")
    if "speedup_at_least" in s:
        estimate = f"{s['speedup']:.0f} x the rate of plain MD in a long run, " if "speedup" in s else ""
        print(f"phi transitions per second  {estimate}at least {s['speedup_at_least']:.0f} x with 95 % confidence")


def series_of(md, jump):
    beta = 1 / (KT * TEMPERATURE)
    entry = lambda name, s: {  # noqa: E731
        "name": name, "phi": s["phi"].tolist(), "psi": s["psi"].tolist(), "reduced_potential": (beta * s["u"]).tolist()
    }
    return [entry("plain MD", md), entry("MD + jumps", jump)]


def load(path):
    return json.loads(path.read_text()) if path and path.exists() else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90, help="wall time of each of the two runs")
    parser.add_argument("--model", type=pathlib.Path, help="generator (default: the shipped one)")
    parser.add_argument("--hbonds", action="store_true", help="constrain bonds to hydrogen")
    parser.add_argument("--frequency", type=int, default=10, help="steps between attempts")
    parser.add_argument("--proposals", type=int, default=1, help="proposals per attempt (i-SIR above one)")
    parser.add_argument("--timestep", type=float, default=0.001, help="ps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reweighted", type=pathlib.Path, help="output of `modejump reweight` for the same model")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "target/demo")
    options = parser.parse_args()
    name = "model-hbonds.safetensors" if options.hbonds else "model.safetensors"
    options.model = options.model or ROOT / "models/ala2" / name
    options.output.mkdir(parents=True, exist_ok=True)

    print(f"alanine dipeptide, amber99sbildn + OBC, 300 K: plain MD and MD + jumps, {options.seconds:.0f} s each, side by side")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=run, args=(options, jump, queue)) for jump in (False, True)]
    for worker in workers:
        worker.start()
    results = {}
    while len(results) < 2:
        try:
            jump, result = queue.get(timeout=5)
            results[jump] = result
        except Exception:
            if any(w.exitcode not in (None, 0) for w in workers):
                for w in workers:
                    w.terminate()
                sys.exit("a simulation failed; its message is above")
    for worker in workers:
        worker.join()
    md, jump = results[False], results[True]
    document = load(options.reweighted)
    system = "-hbonds" if options.hbonds else ""
    known = {kind: load(ROOT / f"models/ala2/reference-{kind}{system}.json") for kind in ("plain", *REFERENCES)}
    references = {name: known[kind] for kind, (name, _) in REFERENCES.items() if known[kind]}
    summary = summarise(md, jump, document and document["summary"], known["plain"], references)
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (options.output / "series.json").write_text(json.dumps({"series": series_of(md, jump)}))
    report(summary)


if __name__ == "__main__":
    main()
