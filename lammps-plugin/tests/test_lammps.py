"""fix modejump in LAMMPS: hydrogen peroxide, whose populations and energies are known exactly.

    python -m pytest lammps-plugin/tests        # after building the plugin into target/lammps-plugin (make test-lammps)
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import CSVR, DYNAMICS, KCAL, NVT, OUTPUT, PLUGIN, Run, data_file, error_of, jump
from model_file import scale_layer, write_model
from peroxide import PEROXIDE, exact_energy, exact_positive, torsion_of, write_peroxide_model


@pytest.mark.parametrize(
    "dynamics, freedom, more",
    [(DYNAMICS, 12, ""), (DYNAMICS, 12, "proposals 3 method isir"), (NVT, 9, ""), (CSVR, 9, "")],
    ids=["langevin", "isir", "nvt", "csvr"],
)
def test_populations_energy_and_temperature_are_exact(run, dynamics, freedom, more):
    run.good(dynamics.format(seed=48291) + jump(run, every=10, more=more) + OUTPUT.format(every=20) + "run 400000\n")
    phi = np.array([torsion_of(x) for x in run.frames()[1000:]])
    positive = phi > 0
    assert abs(positive.mean() - exact_positive()) < 4 * error_of(positive) < 0.05
    thermo = run.thermo()
    energy, temperature = KCAL * thermo["PotEng"][1000:], thermo["Temp"][1000:] * 9 / freedom  # LAMMPS takes 3 of 12 off
    assert abs(energy.mean() - exact_energy(3)) < 4 * error_of(energy) < 1.0
    assert abs(temperature.mean() - 300.0) < 4 * error_of(temperature) < 12.0


def test_within_a_state_it_is_plain_dynamics(run):
    """Plain dynamics stays where it began; there energy and temperature must be the same with jumps to the other state and back."""
    means = {}
    for name, more in (("plain", ""), ("jumps", jump(run))):
        run.good(DYNAMICS.format(seed=7321) + more + OUTPUT.format(every=20) + "run 400000\n")
        inside = np.array([torsion_of(x) > 0 for x in run.frames()[1000:]])
        thermo = run.thermo()
        for column in ("PotEng", "Temp"):
            values = thermo[column][1000:][inside]
            means[name, column] = values.mean(), error_of(values)
        means[name, "inside"] = inside.mean()
    assert means["plain", "inside"] == 1.0 and means["jumps", "inside"] < 0.9
    for column in ("PotEng", "Temp"):
        (a, da), (b, db) = means["plain", column], means["jumps", column]
        assert abs(a - b) < 4 * math.hypot(da, db), (column, a, da, b, db)


def test_velocities_after_a_jump_know_nothing_of_the_forces(run):
    """Velocities at the time of x are independent of x. Half a kick too much or too little correlates them with the bonds' forces
    by 0.11; averages of energy and temperature would hardly show it here."""
    output = OUTPUT.format(every=20).replace("xu yu zu", "xu yu zu vx vy vz").replace("step pe temp", "step f_jump[2]")
    run.good(DYNAMICS.format(seed=48291) + jump(run) + output + "run 400000\n")
    values, accepted = run.frames(columns=6), run.thermo()["f_jump[2]"]
    jumped = values[1:][np.diff(accepted) > 0]
    x, v = jumped[..., :3], jumped[..., 3:]
    forces, along = [], []
    for hydrogen, oxygen in ((0, 1), (3, 2)):
        bond = x[:, hydrogen] - x[:, oxygen]
        length = np.linalg.norm(bond, axis=1)
        forces.append(10 * PEROXIDE.oh - length)
        along.append((v[:, hydrogen] * bond).sum(axis=1) / length)
    correlation = np.corrcoef(np.concatenate(forces), np.concatenate(along))[0, 1]
    assert len(jumped) > 1500 and abs(correlation) < 4 / math.sqrt(2 * len(jumped)) < 0.08
    # and have the temperature: angstrom/fs, dalton
    kinetic = (v**2).sum(axis=2) * np.array(PEROXIDE.masses)
    assert kinetic.mean() / 3 == pytest.approx(0.0083144626 * 300 * 1e-4, rel=0.03)


HELD = [
    ("", (1, 1, 1)),
    ("fix hold beside setforce NULL NULL 0.0", (1, 1, 0)),
    ("fix hold beside setforce 0.0 NULL NULL", (0, 1, 1)),
    ("region far block 11 13 11 13 16 18\nfix hold beside setforce 0.0 0.0 0.0 region far", (1, 1, 1)),
    ("fix hold beside planeforce 0 0 1", (1, 1, 0)),
    ("fix hold beside lineforce 0 0 1", (0, 0, 1)),
    ("fix hold beside aveforce NULL 0.0 NULL", (1, 1, 1)),
]


@pytest.mark.parametrize("ranks, held, free", [(2, "", (1, 1, 1))] + [(1, *one) for one in HELD], ids=str)
def test_atoms_that_did_not_jump_keep_their_velocities_on_the_step(run, ranks, held, free):
    """Beside the molecule an oxygen with a Lennard-Jones force, or with components of it: whether the molecule jumps is not in its
    velocity at that time, nor in the momentum of all."""
    epsilon, sigma, dt, ftm2v = 0.5, 3.0, 0.5, 1 / 48.88821291**2
    commands = f"pair_style lj/cut 10.0\npair_coeff * * {epsilon} {sigma}\ncreate_atoms 2 single 0.5 15.5 3.0\ngroup one id 1:4\ngroup beside id 5\n"
    commands += f"fix dynamics all nve\n{held}\nfix jump one modejump 10 model {run.model} temp 300.0 seed 7\n" + OUTPUT.format(every=1)
    commands = commands.replace("xu yu zu", "xu yu zu vx vy vz fx fy fz").replace("step pe temp", "step f_jump[2]")
    run.good(commands + "velocity one create 300.0 5\nrun 2000\n", ranks=ranks)
    x, v, f = np.split(run.frames(atoms=5, columns=9), 3, axis=2)
    masses = np.array([*PEROXIDE.masses, PEROXIDE.masses[1]])[:, None]
    momentum = (masses * v).sum(axis=1) * free
    assert np.abs(momentum - momentum[0]).max() < 1e-12
    kick = 0.5 * dt * ftm2v / masses
    jumps = np.flatnonzero(np.diff(run.thermo()["f_jump[2]"]) > 0)
    assert len(jumps) > 3
    for n in jumps:
        # where the step would have gone without a jump
        half = v[n] + kick * f[n]
        would = x[n] + dt * half
        apart = would[4] - would[:4]
        r = np.linalg.norm(apart, axis=1, keepdims=True)
        force = (24 * epsilon * (2 * (sigma / r) ** 12 - (sigma / r) ** 6) / r**2 * apart).sum(axis=0) * free
        assert np.abs(half[4] + kick[4] * force - v[n + 1, 4]).max() < 1e-12
        assert np.abs(kick[4] * (f[n + 1, 4] - force)).max() > 1e-9


def test_plain_dynamics_stays_in_its_well(run):
    run.good(DYNAMICS.format(seed=48291) + OUTPUT.format(every=20) + "run 40000\n", plugin=False)
    phi = np.array([torsion_of(x) for x in run.frames()])
    assert (phi > 0).all()


def test_rejected_moves_leave_no_trace(run):
    """A generator of configurations that are never accepted: the trajectory is that of plain dynamics, to the last bit."""
    lost = write_peroxide_model(run.folder / "lost.safetensors", stretch=0.05)
    plain = DYNAMICS.format(seed=11) + OUTPUT.format(every=20)
    # lists are rebuilt at the same steps
    run.good(plain + "neigh_modify every 1 delay 0 check no\nrun 2000\n")
    expected = run.frames()
    moves = f"fix jump all modejump 20 model {lost} temp 300.0 seed 7\n"
    text = run.good(plain + moves + "neigh_modify every 1 delay 0 check no\nthermo_style custom step f_jump[1] f_jump[2]\nrun 2000\n")
    assert np.array_equal(run.frames(), expected), text[-2000:]
    assert run.thermo()["f_jump[1]"][-1] == 100 and run.thermo()["f_jump[2]"][-1] == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_drawing_ahead_changes_nothing(run, ranks):
    frames = []
    for ahead in ("no", "yes"):
        moves = f"fix jump all modejump 20 model {run.model} temp 300.0 seed 7 proposals 2 ahead {ahead}\n"
        run.good(DYNAMICS.format(seed=5) + moves + OUTPUT.format(every=20) + "thermo_style custom step f_jump[*]\nrun 4000\n", ranks=ranks)
        frames.append(run.frames())
    assert np.array_equal(*frames) and run.thermo()["f_jump[2]"][-1] > 5


def test_several_ranks_make_the_same_moves(tmp_path):
    """Two molecules, one of which jumps, on one and on two ranks: the same proposals, and as many acceptances but for rounding."""
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        run = Run(folder, copies=2)
        commands = "group one id 1:4\n" + DYNAMICS.format(seed=5)
        commands += f"fix jump one modejump 20 model {run.model} temp 300.0 seed 7\n" + OUTPUT.format(every=20)
        run.good(commands + "thermo_style custom step f_jump[*]\nrun 40000\n", ranks=ranks)
        found.append((run.thermo(), run.frames(8)))
    (one, frames), (two, others) = found
    assert one["f_jump[1]"][-1] == two["f_jump[1]"][-1] == 2000
    assert abs(one["f_jump[7]"][-1] - two["f_jump[7]"][-1]) < 0.04 and one["f_jump[7]"][-1] > 0.06
    for x in (frames, others):
        phi = np.array([[torsion_of(molecule) for molecule in frame.reshape(2, 4, 3)] for frame in x])
        assert 0.1 < (phi[:, 0] > 0).mean() < 0.9 and (phi[:, 1] > 0).all(), "only the first molecule jumps"
    # the first steps are the same
    assert np.abs(frames[1] - others[1]).max() < 1e-6


def test_proposals_may_be_farther_away_than_the_neighbouring_rank(run):
    """Bonds of 1 nm in slabs of 0.6 nm: the energies are those on one rank, and the rejections leave no trace. Where ranks do not
    communicate over such a distance, there is no energy."""
    lost = write_peroxide_model(run.folder / "lost.safetensors", stretch=0.9)
    moves = f"fix jump all modejump 5 model {lost} temp 300.0 seed 7\n"
    # bonds need their atoms on one rank
    cutoff = "comm_modify cutoff 23.0\n"
    plain = "velocity all create 300.0 5\nfix dynamics all nve\n" + OUTPUT.format(every=5)
    found = []
    for ranks, more in ((1, ""), (1, cutoff + moves), (4, cutoff + moves), (4, moves)):
        run.head = f"processors {ranks} 1 1\n"
        columns = "atoms f_jump[*]" if more else "atoms"
        run.good(plain + more + f"thermo_style custom step {columns}\nrun 100\n", ranks=ranks)
        found.append((run.thermo(), run.frames()))
    (_, expected), (one, _), (four, _), (lacking, _) = found
    for (thermo, frames) in found[2:]:
        assert (thermo["Atoms"] == 4).all() and thermo["f_jump[1]"][-1] == 20 and thermo["f_jump[2]"][-1] == 0
        assert np.abs(frames - expected).max() < 1e-9
    assert four["f_jump[9]"][-1] == pytest.approx(one["f_jump[9]"][-1], rel=1e-9)
    assert four["f_jump[5]"][-1] == 0 < lacking["f_jump[5]"][-1]


def test_a_second_run_goes_on_on_several_ranks(run):
    thermo = "thermo_style custom step f_jump[1]\n"
    run.good(DYNAMICS.format(seed=5) + jump(run) + OUTPUT.format(every=20) + thermo + "run 200\nrun 200\n", ranks=2)
    assert run.thermo()["f_jump[1]"][-1] == 20


def test_a_shrink_wrapped_box_follows_the_jumps(run):
    data_file(run.folder / "data.peroxide", at=(12.0, 12.0, 12.0))
    frames = []
    for run.head in ("", "boundary s s s\n"):
        run.good(DYNAMICS.format(seed=5) + jump(run) + OUTPUT.format(every=20) + "thermo_style custom step atoms f_jump[*]\nrun 20000\n")
        thermo = run.thermo()
        assert (thermo["Atoms"] == 4).all() and thermo["f_jump[7]"][-1] > 0.06
        frames.append(run.frames())
    # the first steps are those in a periodic box
    assert np.abs(frames[0][:10] - frames[1][:10]).max() < 1e-6


def test_proposals_beyond_a_fixed_face_are_rejected(run):
    # the other state has an atom below the face
    data_file(run.folder / "data.peroxide", at=(12.0, 12.0, 0.5))
    run.head = "boundary f f f\n"
    run.good("fix dynamics all nve\n" + jump(run, every=1) + "thermo 1\nthermo_style custom step atoms f_jump[*]\nrun 40\n")
    thermo = run.thermo()
    assert (thermo["Atoms"] == 4).all() and thermo["f_jump[5]"][-1] > 5


@pytest.mark.parametrize("head", ["", "boundary s s s\n"])
def test_torn_proposals_are_rejected_unevaluated(run, head):
    data_file(run.folder / "data.peroxide", at=(12.0, 12.0, 12.0))
    torn = write_peroxide_model(run.folder / "torn.safetensors", stretch=1e15)
    run.head = head
    moves = f"fix jump all modejump 20 model {torn} temp 300.0 seed 7\n"
    run.good(DYNAMICS.format(seed=5) + moves + "thermo_style custom step atoms f_jump[*]\nthermo 20\nrun 200\n")
    thermo = run.thermo()
    assert (thermo["Atoms"] == 4).all() and thermo["f_jump[1]"][-1] == thermo["f_jump[5]"][-1] == 10
    assert not thermo["f_jump[8]"].any() and not thermo["f_jump[9]"].any(), "no proposal has a weight"


@pytest.mark.parametrize("ranks", [1, 2])
def test_proposals_without_an_energy_are_rejected(run, ranks):
    """Bonds longer than FENE allows, which is an error of LAMMPS."""
    data_file(run.folder / "data.peroxide", at=(18.0, 12.0, 12.0))
    wide = write_peroxide_model(run.folder / "wide.safetensors", stretch=0.3)
    fene = "bond_style fene\nspecial_bonds fene\nbond_coeff 1 20.0 1.5 2.0 0.95\nbond_coeff 2 20.0 2.2 6.0 1.4\n"
    plain = fene + DYNAMICS.format(seed=5) + OUTPUT.format(every=20) + "neigh_modify every 1 delay 0 check no\n"
    moves = f"fix jump all modejump 20 model {wide} temp 300.0 seed 7\nthermo_style custom step f_jump[*]\n"
    run.head = f"processors {ranks} 1 1\n"
    if ranks > 1:  # the others wait for the one that has thrown
        said = ["Bad FENE bond", "Fix modejump: LAMMPS could not compute the energy of a proposal"]
        for _ in range(8):
            text = run.bad(plain + moves + "run 200\n", ranks=ranks)
            if all(line in text for line in said):  # mpiexec may lose the last lines of ranks that it ends
                break
        assert all(line in text for line in said)
        return
    run.good(plain + "run 2000\n")
    expected = run.frames()
    text = run.good(plain + moves + "run 2000\n")
    assert run.thermo()["f_jump[1]"][-1] == run.thermo()["f_jump[5]"][-1] == 100
    assert np.array_equal(run.frames(), expected) and "FENE bond" not in text


@pytest.mark.parametrize("boundary", ["p p p", "p p s", "s p p"])
def test_wrapped_data_without_image_flags(run, boundary):
    run.head = f"boundary {boundary}\n"
    data_file(run.folder / "data.peroxide", at=(1.5, 12.0, -0.5) if boundary[0] == "s" else (0.0, 12.0, 0.0), wrapped=True)
    columns = "thermo_style custom step atoms f_jump[*]\n"
    run.good(DYNAMICS.format(seed=5) + jump(run) + columns + "run 20000\n")
    assert run.thermo()["Atoms"][-1] == 4 and run.thermo()["f_jump[7]"][-1] > 0.06


def test_atoms_half_a_box_apart_are_named(run):
    # an atom moved so far that no box says where it belongs
    moved = "group first id 1\ndisplace_atoms first move 0.0 9.0 12.5\nfix jump all modejump 1 model {} temp 300.0 seed 1\nrun 1\n"
    text = run.bad("fix dynamics all nve\n" + moved.format(run.model))
    assert "the bond between atoms 1 and 2" in text and "reset_atoms image" in text


def test_partitions_have_other_random_numbers(run):
    run.good(DYNAMICS.format(seed=5) + jump(run) + "thermo_style custom step f_jump[9] temp\nthermo 20\nrun 2000\n", ranks=2,
             arguments=["-partition", "2x1"])
    first, second = (run.thermo(f"log.lammps.{world}") for world in (0, 1))
    assert (first["f_jump[9]"][1:] != second["f_jump[9]"][1:]).all()
    assert first["Temp"][0] == second["Temp"][0] and first["Temp"][-1] != second["Temp"][-1]


def test_counters_are_there_at_any_step(run):
    run.good(DYNAMICS.format(seed=5) + jump(run) + "thermo_style custom step f_jump[1]\nthermo 7\nrun 70\n")
    assert list(run.thermo()["f_jump[1]"]) == [step // 20 for step in range(0, 71, 7)]


def test_steps_that_come_again_are_told_once(run):
    text = run.good(DYNAMICS.format(seed=5) + jump(run) + "run 100\nrun 100\n")
    assert "an attempt at step" not in text
    text = run.good(DYNAMICS.format(seed=5) + jump(run) + 2 * "run 100\nreset_timestep 0\n" + "run 100\n")
    assert text.count("an attempt at step 20 comes after one at step 100") == text.count("WARNING: Fix modejump") >= 1, text


def test_a_model_of_another_temperature_is_told(run):
    text = run.good(DYNAMICS.format(seed=5).replace("300.0 300.0", "350.0 350.0") + jump(run).replace("temp 300.0", "temp 350.0") + "run 20\n")
    assert "was trained for 300 K; fewer jumps are accepted at 350 K" in " ".join(text.split()), text
    assert "was trained for" not in run.good(DYNAMICS.format(seed=5) + jump(run) + "run 20\n")


def test_attempts_go_on_after_reset_timestep_and_pre_no(run):
    text = run.good(DYNAMICS.format(seed=5) + jump(run) + "thermo_style custom step f_jump[1]\nthermo 100\nrun 100\nreset_timestep 500\nrun 100 pre no\n")
    rows = [line.split() for line in text.splitlines() if len(line.split()) == 2 and line.split()[0] == "600"]
    assert rows == [["600", "10"]], text


def test_a_run_is_a_function_of_its_seed(run):
    def frames(seed):
        moves = f"fix jump all modejump 20 model {run.model} temp 300.0 seed {seed}\n"
        text = run.good(DYNAMICS.format(seed=11) + moves + OUTPUT.format(every=20) + "run 400\n")
        assert f"4 atoms of group all, an attempt every 20 steps, seed {seed}\n" in text
        return run.frames()

    first = frames(3)
    assert np.array_equal(frames(3), first) and not np.array_equal(frames(4), first)


def test_two_fixes_of_one_input_are_independent(tmp_path):
    run = Run(tmp_path, copies=2)
    fixes = "".join(
        f"group {name} id {atoms}\nfix jump{name} {name} modejump 10 model {run.model} temp 300.0 seed 1\n"
        for name, atoms in (("one", "1:4"), ("two", "5:8"))
    )
    run.good(DYNAMICS.format(seed=48291) + fixes + OUTPUT.format(every=20) + "run 30000\n")
    positive = np.array([[torsion_of(x[:4]) > 0, torsion_of(x[4:]) > 0] for x in run.frames(atoms=8)[100:]])
    same = (positive[:, 0] == positive[:, 1]).astype(float)
    p = exact_positive()
    # 0.85 with common numbers, which leave the populations of either molecule as they are
    assert abs(same.mean() - (p**2 + (1 - p) ** 2)) < 4 * error_of(same) and error_of(same) < 0.05, (same.mean(), error_of(same))


CHAIN = """
units real
atom_style molecular
bond_style harmonic
angle_style harmonic
pair_style zero 6.0
special_bonds lj/coul 0 0 0
fix cmap all cmap {maps}
read_data data.chain fix cmap crossterm CMAP
pair_coeff * *
bond_coeff 1 300 1.45
angle_coeff 1 50 115
timestep 0.5
velocity all create 300.0 3
fix dynamics all nve
fix bath all langevin 300.0 300.0 50.0 3
plugin load {plugin}
fix jump all modejump 5 model chain.safetensors temp 300.0 seed 7
thermo 5
thermo_style custom step f_cmap f_jump[2]
run 30000
"""


def test_cmap_of_charmm_has_its_say(tmp_path):
    """Five atoms whose two torsions know of nothing but a map of CHARMM36: its mean energy is an integral."""
    names = ["C1", "N1", "C2", "C3", "N2"]
    topology = {"names": names, "elements": [name[0] for name in names], "residues": ["MOL1"] * 5, "bonds": [[i, i + 1] for i in range(4)]}
    coordinates = {"kind": "internal", "frame": [0, 1, 2], "rows": [[3, 2, 1, 0], [4, 3, 2, 1]], "normalize_angles": True, "constraints": []}
    kt = 0.0019872 * 300
    bond, angle = math.sqrt(kt / 600) / 10, math.sqrt(kt / 100) / math.pi
    layers = [scale_layer([0, 1, 2, 3], [0.145] * 4, [bond] * 4), scale_layer([4, 5, 6], [115 / 180] * 3, [angle] * 3)]
    write_model(tmp_path / "chain.safetensors", coordinates, layers, [7, 8], topology=topology)
    x = [[0, 0, 0], [1.4, 0, 0], [2.1, 1.2, 0], [3.5, 1.2, 0.4], [4.2, 2.4, 0.2]]
    sections = {
        "Masses": ["1 12.011", "2 14.007"],
        "Atoms # molecular": [f"{i + 1} 1 {1 if names[i][0] == 'C' else 2} {x[i][0]} {x[i][1]} {x[i][2]}" for i in range(5)],
        "Bonds": [f"{i} 1 {i} {i + 1}" for i in range(1, 5)],
        "Angles": [f"{i} 1 {i} {i + 1} {i + 2}" for i in range(1, 4)],
        "CMAP": ["1 1 1 2 3 4 5"],
    }
    lines = ["chain", "", "5 atoms", "4 bonds", "3 angles", "1 crossterms", "", "2 atom types", "1 bond types", "1 angle types", ""]
    lines += [f"-15 15 {axis}lo {axis}hi" for axis in "xyz"]
    for name, rows in sections.items():
        lines += ["", name, "", *rows]
    (tmp_path / "data.chain").write_text("\n".join(lines) + "\n")
    maps = next(Path(sys.prefix).glob("lib/python3*/site-packages/lammps/share/lammps/potentials/charmm36.cmap"))
    (tmp_path / "in.chain").write_text(CHAIN.format(maps=maps, plugin=PLUGIN))
    lmp = next(Path(sys.prefix).glob("lib/python3*/site-packages/lammps/lmp"))
    environment = dict(os.environ, LD_LIBRARY_PATH=str(Path(sys.prefix) / "lib"), OMP_NUM_THREADS="1")
    done = subprocess.run([lmp, "-in", "in.chain", "-nocite"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    rows = [line.split() for line in done.stdout.splitlines() if re.fullmatch(r" +\d+ +\S+ +\d+ *", line)]
    energy, accepted = np.array([float(row[1]) for row in rows[200:]]), int(float(rows[-1][2]))
    # the first of the file's maps, 24 by 24, made finer by its Fourier series
    numbers = [float(v) for line in maps.read_text().splitlines() if not line.startswith("#") for v in line.split()]
    fine = np.zeros((240, 240), complex)
    coarse = np.fft.fftshift(np.fft.fft2(np.reshape(numbers[:576], (24, 24))))
    fine[108:132, 108:132] = coarse
    values = np.fft.ifft2(np.fft.ifftshift(fine)).real * 100
    weights = np.exp(-values / kt)
    expected = (values * weights).sum() / weights.sum()
    assert accepted > 200 and abs(values.mean() - expected) > 0.5
    assert abs(energy.mean() - expected) < 5 * error_of(energy) + 0.03, (energy.mean(), error_of(energy), expected)


def test_a_screen_that_is_the_generator_changes_nothing(run):
    plain = DYNAMICS.format(seed=11) + OUTPUT.format(every=20)
    run.good(plain + jump(run) + "thermo_style custom step f_jump[*]\nrun 4000\n")
    expected, thermo = run.frames(), run.thermo()
    run.good(plain + jump(run, more=f"screen {run.model}") + "thermo_style custom step f_jump[*]\nrun 4000\n")
    assert run.thermo()["f_jump[2]"][-1] == thermo["f_jump[2]"][-1] > 10
    assert np.abs(run.frames()[:20] - expected[:20]).max() < 1e-3
