"""`modejump gromacs` with the gmx that is installed."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import ROOT, example

from model_file import scale_layer, write_model
from reference import torsion, transitions, weighted_mean  # models/ala2, put on the path by the example

FREQUENT = {"nstenergy": "10", "nstxout-compressed": "50"}


def compare(prepared, driver, cycles, model="model-vacuum", **options):
    """<U> and <T> of a run with a jump every 50 steps and of plain dynamics of twelve times its length: z-scores, and what
    else the run says."""
    options = FREQUENT | options
    jumping = driver(**options)
    command = jumping.command("-n", cycles, "--steps", 50, "--proposals", 4, "--json", model=model)
    process = subprocess.Popen(command, cwd=jumping.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        plain = example.run("gmx", "mdrun", "-nt", 1, "-nsteps", 600 * cycles, "-deffnm", "plain", "-s", "topol.tpr",
                            cwd=jumping.folder)
        assert "Writing final coordinates" in plain
        out, err = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, err
    md = example.observe(jumping.folder, "plain.edr", "plain.xtc")
    jump = example.observe(jumping.folder, "jumps/ener.edr", "jumps/traj.xtc")
    scores = {}
    for name in "ut":
        (a, da), (b, db) = (weighted_mean(s[name][200:], np.ones(len(s[name]) - 200)) for s in (md, jump))
        scores[name] = (b - a) / np.hypot(da, db)
        print(f"<{name.upper()}> plain {a:.2f}({da:.2f}), with jumps {b:.2f}({db:.2f}): {scores[name]:+.1f} sigma")
    return scores, json.loads(out), jump


# The step that leaves stored velocities as they are, or kicks them in the wrong way, is caught on oscillators by
# src/engines/gromacs/velocities.rs; here is the whole way through GROMACS.
@pytest.mark.parametrize(
    "model, options",
    [
        ("model-vacuum", {}),
        ("model-vacuum", {"integrator": "md", "tcoupl": "V-rescale", "tau-t": "0.1"}),
        ("model-hbonds", {"constraints": "h-bonds"}),
    ],
    ids=["sd", "md", "sd-hbonds"],
)
def test_energy_and_temperature_are_those_of_plain_dynamics(prepared, driver, model, options):
    scores, summary, _ = compare(prepared, driver, 700, model, **options)
    assert abs(scores["u"]) < 5 and abs(scores["t"]) < 5, scores
    assert summary["complete"] and summary["cycles"] == 700 and summary["step"] == 35_000
    # vacuum proposals from a vacuum generator; the other one was trained in implicit solvent
    assert summary["acceptance"] > (0.9 if model == "model-vacuum" else 0.05), summary


def test_jumps_cross_the_barrier_and_agree_with_importance_weights(driver):
    """P(phi > 0) by jumps against the generator's own weighted samples, whose energies are GROMACS' as well."""
    run = driver()
    run.run("-n", 400, "--steps", 100, "--proposals", 64, "--method", "isir")
    jump = example.observe(run.folder, "jumps/ener.edr", "jumps/traj.xtc")
    assert transitions(jump["phi"]) > 10
    inside = (jump["phi"] > 0) & (jump["phi"] < 2.2)
    p, dp = weighted_mean(inside[4:], np.ones(len(inside) - 4))

    # 6000 samples, all weighed by one rerun
    samples = run.folder / "samples.trr"
    modejump, model = run.command()[0], run.command()[2]
    subprocess.run([modejump, "sample", model, "-n", "6000", "--seed", "5", "-o", "samples.safetensors"], cwd=run.folder, check=True)
    x, log_q = read_samples(run.folder / "samples.safetensors")
    order = np.array([1, 0, 2, 3, *range(4, 22)])  # pdb2gmx has HH31 before CH3
    write_trr(samples, x[:, np.argsort(order)] + 3.0)
    example.run("gmx", "mdrun", "-nt", 1, "-s", "topol.tpr", "-rerun", "samples.trr", "-e", "samples.edr", cwd=run.folder)
    example.run("gmx", "energy", "-f", "samples.edr", "-o", "samples.xvg", cwd=run.folder, stdin="Potential\n\n")
    u = example.columns(run.folder / "samples.xvg")[:, 1] / (example.KT * 300)
    assert len(u) == len(log_q)
    log_w = -u - log_q
    w = np.exp(log_w - log_w.max())
    assert w.sum() ** 2 / (w**2).sum() > 0.5 * len(w)  # GROMACS has the energies that the generator was trained for
    phi = torsion(x, (4, 6, 8, 14))
    q, dq = weighted_mean((phi > 0) & (phi < 2.2), w)
    print(f"P(0 < phi < 2.2): jumps {p:.4f}({dp:.4f}), weights {q:.4f}({dq:.4f})")
    assert abs(p - q) < 5 * np.hypot(dp, dq)


def read_samples(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    tensors = json.loads(raw[8 : 8 + size])

    def tensor(name):
        begin, end = tensors[name]["data_offsets"]
        return np.frombuffer(raw[8 + size + begin : 8 + size + end], "<f8").reshape(tensors[name]["shape"])

    return tensor("x"), tensor("log_density")


def write_trr(path, x):
    """Double-precision frames in a box of 6 nm."""
    box = np.diag([6.0] * 3).astype(">f8").tobytes()
    n = x.shape[1]
    with path.open("wb") as file:
        for i, frame in enumerate(x):
            file.write(np.array([1993, 13, 12], ">i4").tobytes() + b"GMX_trn_file")
            file.write(np.array([0, 0, 72, 0, 0, 0, 0, 24 * n, 0, 0, n, i + 1, 0], ">i4").tobytes())
            file.write(np.array([i, 0.0], ">f8").tobytes() + box + frame.astype(">f8").tobytes())


def of_checkpoint(folder, name):
    """x or v of the atoms after the last jump."""
    (state,) = (folder / "jumps").glob("state_*.cpt")
    dump = subprocess.run(["gmx", "dump", "-cp", state], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    return np.array(re.findall(rf"^ +{name}\[ *\d+\]=(.*)$", dump, re.M), float).reshape(-1, 3)


def test_a_molecule_cut_by_the_box_is_made_whole(driver):
    run = driver()
    example.run("gmx", "editconf", "-f", "conf.gro", "-o", "conf.gro", "-center", 0, 0, 0, cwd=run.folder)
    example.grompp(run.folder)
    summary = json.loads(run.run("-n", 20, "--steps", 200, "--json").stdout)
    assert summary["acceptance"] > 0.9
    x = of_checkpoint(run.folder, "x")
    # atoms on both sides of the box as dynamics has them, and a jump's molecule whole around the corner
    assert np.ptp(x, axis=0).max() < 2.0 and x.min() < 1.0


def add_waters(folder, places):
    """Rigid waters with the oxygen at each place, nm."""
    top = folder / "topol.top"
    water = '#include "amber99sb-ildn.ff/tip3p.itp"'
    top.write_text(top.read_text().replace("[ system ]", f"{water}\n\n[ system ]") + f"SOL {len(places)}\n")
    atoms = [("OW", 0.0, 0.0), ("HW1", 0.09572, 0.0), ("HW2", -0.024, 0.09266)]
    title, _, *lines, box = (folder / "conf.gro").read_text().splitlines()
    for k, (x, y, z) in enumerate(places):
        for name, dx, dy in atoms:
            lines.append(f"{k + 4:5d}{'SOL':5}{name:>5}{len(lines) + 1:5d}{x + dx:8.3f}{y + dy:8.3f}{z:8.3f}")
    (folder / "conf.gro").write_text("\n".join([title, str(len(lines)), *lines, box]) + "\n")
    example.grompp(folder)


def test_waters_keep_their_velocities(driver):
    """Beside four rigid waters: constraints of the solvent, velocities of atoms that do not jump."""
    run = driver(integrator="md", tcoupl="V-rescale", **{"tau-t": "0.1"})
    # far from the molecule, which a water that comes near would bind and hold
    add_waters(run.folder, [(0.7, 0.7, 0.7), (5.2, 0.8, 3.0), (3.0, 5.4, 0.8), (0.8, 3.0, 5.3)])
    run.run("-n", 1, "--steps", 100)
    state = next((run.folder / "jumps").glob("state_*.cpt"))
    summary = json.loads(run.run("-n", 30, "--steps", 100, "--json").stdout)
    assert summary["acceptance"] > 0.5 and abs(summary["t_mean"] - 300) < 60
    assert not state.exists()
    log = (run.folder / "jumps/md.log").read_text()
    assert "SETTLE" in log or "Settle" in log


def test_a_jump_keeps_the_momentum_of_all(driver):
    """Beside a water so near that the force between the two is another one after a jump, by whose half step the velocities of the
    moved atoms are stored; dynamics removes the momentum once, at step 0."""
    run = driver(integrator="md", tcoupl="V-rescale", **{"tau-t": "0.1", "nstcomm": "1000", "nstcalcenergy": "100"})
    x = np.array([[float(line[20 + 8 * k : 28 + 8 * k]) for k in range(3)] for line in open(run.folder / "conf.gro").readlines()[2:-1]])
    add_waters(run.folder, [x.mean(axis=0) + (0.0, 0.0, 0.6)])
    masses = {"H": 1.008, "C": 12.01, "N": 14.01, "O": 16.0}
    names = [line[10:15].strip() for line in (run.folder / "conf.gro").read_text().splitlines()[2:-1]]
    accepted, momenta = 0, []
    for jumps in range(1, 9):
        accepted = json.loads(run.run("-n", jumps, "--steps", 20, "--json").stdout)["acceptance"]
        momenta.append(np.abs([masses[name[0]] for name in names] @ of_checkpoint(run.folder, "v")).max())
    assert accepted > 0.2 and max(momenta) < 1e-3, (accepted, momenta)


@pytest.mark.parametrize(
    "gmx, mdrun",
    [("gmx_d", "gmx_d mdrun -nt 1"), ("gmx_mpi", "mpirun --allow-run-as-root --oversubscribe -np 2 gmx_mpi mdrun -ntomp 1")],
    ids=["double", "mpi"],
)
def test_other_builds(driver, gmx, mdrun):
    for program in (gmx, mdrun.split()[0]):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    run = driver()
    summary = json.loads(run.run("-n", 10, "--steps", 100, "--gmx", gmx, "--mdrun", mdrun, "--json").stdout)
    assert summary["acceptance"] > 0.9 and summary["step"] == 1000


def test_a_killed_run_goes_on_as_if_nothing_had_happened(driver):
    run = driver()
    options = ("-n", 40, "--steps", 200)
    run.run(*options, directory="whole")
    for delay in (0.15, 0.4, 0.7, 0.33):  # within dynamics, a rerun or a commit, wherever it hits
        process = subprocess.Popen(run.command(*options), cwd=run.folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run.run(*options, "--json")
    assert json.loads(done.stdout)["cycles"] == 40
    assert run.files() == run.files("whole")
    assert not list((run.folder / "jumps").glob("cycle-*"))
    # and a run that is complete stays as it is
    run.run(*options)
    assert run.files() == run.files("whole")


def test_a_killed_run_leaves_no_mdrun_behind(driver):
    run = driver()

    def started():
        """The processes that work in the folder of the run."""
        found = []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                found += [process.name] if (process / "cwd").resolve().is_relative_to(run.folder / "jumps") else []
            except OSError:  # of another user, or gone
                pass
        return found

    def wait(until):
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    process = subprocess.Popen(run.command("-n", 2, "--steps", 1_000_000_000), cwd=run.folder, stderr=subprocess.DEVNULL)
    wait(started)
    process.kill()
    process.wait()
    try:
        wait(lambda: not started())
    finally:  # it would run for hours
        for left in started():
            os.kill(int(left), signal.SIGKILL)


def test_joined_files_are_read_by_gromacs_and_have_each_step_once(driver):
    run = driver()
    run.run("-n", 6, "--steps", 200)
    listing = example.run("gmx", "check", "-f", "jumps/traj.xtc", cwd=run.folder)
    assert "Coords" in listing and "25" in listing.split("Coords")[1].split()[0], listing  # 0, 50, … 1200
    times = example.columns(run.folder / "energy.xvg")[:, 0] if example.observe(run.folder, "jumps/ener.edr", "jumps/traj.xtc") else []
    assert np.allclose(times, 0.05 * np.arange(25))
    rows = (run.folder / "jumps/jumps.csv").read_text().splitlines()
    assert len(rows) == 7 and rows[0].startswith("cycle,step,potential,fate") and rows[6].startswith("6,1200,")


def test_the_first_cycles_need_not_be_averaged(driver):
    run = driver()
    options = ("-n", 24, "--steps", 200, "--json")
    all_of_it = json.loads(run.run(*options).stdout)
    later = json.loads(run.run(*options, "--equilibrate", 12).stdout)
    u = example.observe(run.folder, "jumps/ener.edr", "jumps/traj.xtc")["u"]  # of steps 0, 50, …, 4800
    for summary, first in ((all_of_it, 0), (later, 49)):
        assert summary["u_mean"] == pytest.approx(u[first:].mean(), abs=1e-3)
    assert later["cycles"] == 24 and "leaves none of the 24 cycles" in run.refused(*options, "--equilibrate", 24)


def test_walkers_differ_and_each_goes_on(driver):
    run = driver()
    for name in "ab":
        (run.folder / name).mkdir()
        shutil.copy(run.folder / "topol.tpr", run.folder / name)
    options = ("--multidir", "a", "b", "--steps", 100)
    run.run("-n", 3, *options, directory=None)
    out = run.run("-n", 6, *options, "--json", directory=None).stdout.splitlines()
    assert [json.loads(line)["cycles"] for line in out] == [6, 6]
    # the same dynamics with other proposals
    assert run.files("a")["jumps.csv"] != run.files("b")["jumps.csv"]


def test_a_walker_that_fails_is_named(driver):
    run = driver()
    for name in "ab":
        (run.folder / name).mkdir()
        shutil.copy(run.folder / "topol.tpr", run.folder / name)
    failing = run.folder / "failing.sh"
    failing.write_text('#!/bin/sh\ncase $PWD in */b/*) echo no licence >&2; exit 7;; esac\nexec gmx mdrun -nt 1 "$@"\n')
    failing.chmod(0o755)
    told = run.refused("-n", 2, "--steps", 100, "--multidir", "a", "b", "--mdrun", "./failing.sh", directory=None)
    assert "\nmodejump: b: " in told and "no licence" in told


def test_a_proposal_that_ranks_lose_the_bonds_of_is_rejected(driver, tmp_path):
    """Bonds longer than the distance at which ranks communicate end a rerun, and would at every start of the run."""
    header = (ROOT / "models/ala2/model-vacuum.safetensors").read_bytes()
    header = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    topology = json.loads(header["__metadata__"]["modejump"])["topology"]
    lines = (ROOT / "models/ala2/topology.pdb").read_text().splitlines()
    x = np.array([[float(line[k : k + 8]) / 10 for k in (30, 38, 46)] for line in lines if line[:6].strip() in ("ATOM", "HETATM")])
    wide = tmp_path / "wide.safetensors"
    coordinates = {"kind": "cartesian", "dimension": x.size}
    write_model(wide, coordinates, [scale_layer(list(range(x.size)), list(x.ravel()), [1.0] * x.size)], [], topology=topology)
    run = driver()
    options = ("-n", 2, "--steps", 50, "--mdrun", "gmx mdrun -ntmpi 2 -ntomp 1", "--json")
    summary = json.loads(run.run(*options, model=os.path.relpath(wide.with_suffix(""), ROOT / "models/ala2")).stdout)
    assert summary["cycles"] == 2 and summary["acceptance"] == 0


def test_time_runs_out_after_a_whole_cycle(driver):
    run = driver()
    done = run.run("-n", 10_000, "--steps", 100, "--maxh", 2 / 3600)
    assert "run the same command again to continue" in done.stdout
    # nothing is half done
    cycles = len(run.files()["jumps.csv"].splitlines()) - 1
    assert run.run("-n", cycles, "--steps", 100).returncode == 0
    run.run("-n", cycles + 1, "--steps", 100)
    refused = run.refused("-n", cycles, "--steps", 100)
    assert f"has already done {cycles + 1} cycles, but --cycles is {cycles}: use" in refused


def test_a_run_that_is_told_to_end_says_so(driver):
    run = driver()
    process = subprocess.Popen(run.command("-n", 10_000, "--steps", 100), cwd=run.folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (run.folder / "jumps" / "jumps.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 1 and "cycles" in out, err  # so that what follows in a script does not start
    assert "of 10000 cycles: run the same command again to continue" in err


def test_a_full_disk_loses_nothing(driver):
    run = driver()
    options = ("-n", 30, "--steps", 200)
    run.run(*options, directory="whole")
    # no file may grow beyond 32 blocks of 512 bytes; the signal that comes with it is ignored
    limited = ["sh", "-c", 'trap "" XFSZ; ulimit -f 32; exec "$@"', "sh"]
    done = run.run(*options, prefix=limited, check=False)
    assert done.returncode == 1 and done.stderr.startswith("modejump: "), done.stderr
    assert "too large" in done.stderr or "failed" in done.stderr
    run.run(*options)
    assert run.files() == run.files("whole")


def test_what_the_generator_does_not_keep_is_named(driver):
    message = driver(constraints="h-bonds").refused("-n", 1)
    assert "ACE1:CH3 (atom 1)" in message and "is constrained to 0.10899" in message and "the model varies it" in message


def test_atoms_of_other_names_are_named(driver):
    run = driver()
    for name in ("topol.top", "conf.gro"):
        path = run.folder / name
        path.write_text(path.read_text().replace("HB1", "HX1"))
    example.grompp(run.folder)
    message = run.refused("-n", 1)
    assert "ALA2:HB1 (atom 12)" in message and "HX1" in message
    message = run.refused("-n", 1, "--first-atom", 4)
    assert "22 atoms, starting at atom 4," in message


@pytest.mark.parametrize(
    "options, words",
    [
        ({"nstfout": "0"}, ["nstfout = 0", "--rerun-tpr"]),
        ({"integrator": "md", "tcoupl": "no"}, ["tcoupl", "V-rescale"]),
        ({"integrator": "md", "tcoupl": "berendsen", "tau-t": "0.5"}, ["Berendsen", "V-rescale"]),
        ({"integrator": "md-vv", "tcoupl": "V-rescale"}, ["md-vv", "sd or md"]),
        ({"annealing": "single", "annealing-npoints": "2", "annealing-time": "0 9", "annealing-temp": "300 310"},
         ["annealing", "temperature"]),
        ({"freezegrps": "System", "freezedim": "N N Y"}, ["freezegrps", "Y"]),
        ({"comm-mode": "angular"}, ["comm-mode", "angular momentum"]),
        ({"electric-field-x": "1 0 0 0"}, ["electric field", "potential energy"]),
        ({"integrator": "md", "tcoupl": "V-rescale", "mts": "yes", "mts-level2-factor": "2", "coulombtype": "PME"},
         ["mts", "single force"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_run_inputs_that_jumps_do_not_go_with_are_refused_with_the_reason(driver, options, words):
    message = driver(**options).refused("-n", 1)
    assert all(word in message for word in words), message
    assert "topol.tpr" in message


def test_a_virtual_site_that_follows_the_molecule_is_refused(driver):
    """Whatever its place in the topology: a rerun leaves it where it is."""
    run = driver()
    top, gro = run.folder / "topol.top", run.folder / "conf.gro"
    lines = gro.read_text().splitlines()
    atoms = [*lines[2:-1], f"{4:5d}{'SIT':<5}{'M':>5}{23:5d}   2.900   2.700   2.900"]
    gro.write_text("\n".join(["site", "23", *atoms, lines[-1]]) + "\n")
    site = "23 MW 4 SIT M 23 0\n\n[ virtual_sites2 ]\n23 1 2 1 0.5\n\n[ bonds ]"
    top.write_text(top.read_text().replace("[ bonds ]", site, 1))
    example.grompp(run.folder)
    message = run.refused("-n", 1)
    assert "virtual site SIT4 M follows atoms of the model" in message, message


def test_a_second_run_input_gives_the_forces(driver, prepared):
    run = driver(nstfout="0")
    shutil.copy(prepared() / "topol.tpr", run.folder / "forces.tpr")
    run.run("-n", 2, "--rerun-tpr", "forces.tpr")
    # of another system: the energies differ, and nothing is committed
    shutil.copy(prepared(epsilon_r="4") / "topol.tpr", run.folder / "forces.tpr")
    before = run.files()
    assert "rerun of the current configuration gives" in run.refused("-n", 3, "--rerun-tpr", "forces.tpr")
    assert run.files() == before


def test_a_failing_gromacs_speaks_for_itself(driver):
    run = driver()
    assert "no-such-gmx" in run.refused("--gmx", "no-such-gmx")
    assert "topol2.tpr" in run.refused("-s", "topol2.tpr")
    (run.folder / "bad.tpr").write_bytes((run.folder / "topol.tpr").read_bytes()[:500])
    assert "gmx failed" in run.refused("-s", "bad.tpr")
    message = run.refused("--mdrun", "gmx mdrun -nonsense", directory="other")
    assert "Unknown command-line option" in message and "-nonsense" in message
    assert "-plumed" in run.refused("--mdrun", "gmx mdrun -plumed plumed.dat")


def test_a_directory_belongs_to_one_run(driver):
    run = driver()
    run.run("-n", 2)
    assert "settings differ" in run.refused("-n", 4, "--seed", 2)
    assert "settings differ" in run.refused("-n", 4, model="model")
    path = run.folder / "jumps/traj.xtc"
    path.write_bytes(path.read_bytes()[:-10])
    assert "traj.xtc" in run.refused("-n", 4) and "shorter" in run.refused("-n", 4)
    (run.folder / "taken").mkdir()
    (run.folder / "taken/traj.xtc").touch()
    assert "use a new directory" in run.refused("-n", 1, directory="taken")
    # a log and a checkpoint that others wrote are not ours to replace
    for name in ("md.log", "state_5.cpt"):
        (run.folder / f"with-{name}").mkdir()
        (run.folder / f"with-{name}" / name).touch()
        assert f"contains {name}" in run.refused("-n", 1, directory=f"with-{name}")
    process = subprocess.Popen(run.command("-n", 1000, directory="busy"), cwd=run.folder, stderr=subprocess.DEVNULL)
    try:
        while not (run.folder / "busy/modejump.ckpt").exists():
            assert process.poll() is None, "the run ended before its first checkpoint"
            time.sleep(0.02)
        assert "another modejump" in run.refused("-n", 1, directory="busy")
    finally:
        process.kill()
        process.wait()
