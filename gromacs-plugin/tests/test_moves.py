"""Moves within mdrun: alanine dipeptide in vacuum, whose averages are known from weighted samples of the generator.

    python -m pytest gromacs-plugin/tests

Runs under the installed GROMACS if its source is known to gromacs_source.py; otherwise the tests are skipped.
"""

import fcntl
import re

import numpy as np
import pytest

from conftest import GENERATOR, KT, MD, MODELS, Generator, Run, error_of, library_path, write_trr

ATOMS = 22
INTEGRATORS = [{}, MD]


def names(value):
    return value.get("integrator", "sd") if isinstance(value, dict) else None


# without moves, and rejected moves


def test_without_options_the_patch_changes_nothing(ala2):
    mdp = {"nstvout": 100, "nstfout": 100}
    plain, patched = (ala2.run(mdp, preload=preload) for preload in (False, True))
    for suffix in ("trr", "gro", "edr"):
        assert patched.bytes(suffix) == plain.bytes(suffix)
    assert "modejump" not in patched.text + (patched.folder / "md.log").read_text()


@pytest.fixture(scope="module")
def stretched(ala2):
    """A topology whose bonds to hydrogen are a tenth longer than those of the generator: it has no chance."""
    text = (ala2.folder / "topol.top").read_text()
    bonds = re.search(r"\[ bonds \].*?\n\n", text, re.S).group(0)
    hydrogens = {i + 1 for i, (_, name) in enumerate(ala2.atoms()) if name.startswith("H")}

    def lengthen(line):
        return f"{line.group(0)} 0.12 280000" if {int(line.group(1)), int(line.group(2))} & hydrogens else line.group(0)

    longer = re.sub(r"^ *(\d+) +(\d+) +1(?= *$)", lengthen, bonds, flags=re.M)
    assert longer.count(" 0.12 280000") == 12
    (ala2.folder / "stretched.top").write_text(text.replace(bonds, longer))
    return "stretched.top"


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=names)
def test_rejected_moves_leave_no_trace(ala2, stretched, integrator):
    """To the last bit of positions, velocities, forces and energies: those of plain dynamics with pair searches at the same steps."""
    mdp = {**integrator, "nstvout": 10, "nstfout": 10, "nstxout": 10, "nstcalcenergy": 10}
    plain = ala2.run({**mdp, "nstlist": 10}, topology=(stretched,))
    moved = ala2.run({**mdp, "nstlist": 20}, {"steps": 10}, topology=(stretched,))
    steps, numbers, fates = moved.jumps()
    assert len(steps) == 200 and set(fates) == {"rejected"} and np.isfinite(numbers).all()
    for suffix in ("trr", "edr"):
        assert moved.bytes(suffix) == plain.bytes(suffix)


@pytest.fixture(scope="module")
def hard(ala2, stretched):
    """The same, but for first and last atom, which repel each other so much that there is no number for it if they overlap."""
    text = (ala2.folder / stretched).read_text()
    hydrogen = "1 1.008 0 A 0.25 0.0657"
    types = f"[ atomtypes ]\nXA HC {hydrogen}\nXB H1 {hydrogen}\n\n[ nonbond_params ]\nXA XB 1 1.0 0.25\n\n"
    for number, old, new in ((1, "HC", "XA"), (ATOMS, "H1", "XB")):
        text, found = re.subn(rf"^( +{number} +){old}( +\d+ +(ACE|NME) )", rf"\g<1>{new}\g<2>", text, flags=re.M)
        assert found == 1
    (ala2.folder / "hard.top").write_text(text.replace("[ moleculetype ]", types + "[ moleculetype ]", 1))
    return "hard.top"


@pytest.mark.parametrize("fault, ranks", [("overlap", 1), ("overlap", 2), ("coincidence", 1), ("torn", 1)])
def test_a_proposal_without_a_finite_energy_is_rejected_as_any_other(ala2, hard, fault, ranks):
    """Left alone, GROMACS stops at the first, crashes at the second and never ends with the third. The run has to be that whose
    proposals are rejected for energies that are finite."""
    mdp = {"nsteps": 500, "nstvout": 10, "nstfout": 10, "nstxout": 10, "nstcalcenergy": 10}
    rejecting, faulty = (
        ala2.run(mdp, {}, topology=(hard,), ranks=ranks, environment={"MODEJUMP_FAULT": name}) for name in ("", fault)
    )
    assert list(rejecting.jumps()[2]) == ["rejected"] * 50 and list(faulty.jumps()[2]) == ["non_finite"] * 50
    for suffix in ("trr", "edr", "gro"):
        assert faulty.bytes(suffix) == rejecting.bytes(suffix)
    assert "50 non-finite" in (faulty.folder / "md.log").read_text()


def test_two_ranks_have_the_energies_of_one_or_none_of_what_is_torn_apart(ala2):
    """Bonds over distances at which ranks do not communicate are computed by none of them."""
    mdp = {"nsteps": 200, "rlist": 0.9, "rcoulomb": 0.9, "rvdw": 0.9}
    one, two = (ala2.run(mdp, {}, ranks=ranks, environment={"MODEJUMP_FAULT": "parted"}) for ranks in (1, 2))
    assert set(one.jumps()[2]) == {"rejected"}
    energies = [run.jumps()[1][:, 1] for run in (one, two)]
    lost = two.jumps()[2] == "non_finite"
    assert lost.any() and np.allclose(*(u[~lost] for u in energies), rtol=1e-3)
    # the dynamics goes on as if nothing had been proposed
    difference = one.frames()["x"] - two.frames()["x"]
    assert np.abs(difference - 6 * np.round(difference / 6)).max() < 1e-4


@pytest.fixture(scope="module")
def water(ala2):
    """The molecule in water."""
    files = [ala2.folder / f"water.{suffix}" for suffix in ("top", "gro")]
    command = ["gmx", "-quiet", "pdb2gmx", "-f", MODELS / "topology.pdb", "-ff", "amber99sb-ildn", "-water", "tip3p"]
    ala2.gmx([*command, "-o", "dry.gro", "-p", files[0], "-i", "posre-water.itp"])
    ala2.gmx(["gmx", "-quiet", "editconf", "-f", "dry.gro", "-o", "box.gro", "-box", "2.8", "-c"])
    ala2.gmx(["gmx", "-quiet", "solvate", "-cp", "box.gro", "-cs", "spc216.gro", "-p", files[0], "-o", files[1]])
    return files


@pytest.mark.parametrize("ranks", [1, 2])
def test_rejected_moves_leave_no_trace_in_water(ala2, water, ranks):
    """With PME, and water that is kept rigid. On two ranks but for rounding: atoms may come to lie in another order."""
    mdp = {**MD, "coulombtype": "PME", "rlist": 1.0, "rcoulomb": 0.9, "rvdw": 0.9, "nsteps": 50, "gen-temp": 100}
    mdp = {**mdp, "nstxout": 10, "nstvout": 10, "nstfout": 10}
    plain, moved = (ala2.run(mdp, jumps, topology=water, ranks=ranks) for jumps in (None, {}))
    assert list(moved.jumps()[2]) == ["rejected"] * 5
    if ranks == 1:
        assert moved.bytes("trr") == plain.bytes("trr") and moved.bytes("edr") == plain.bytes("edr")
    for name, tolerance in (("x", 1e-4), ("v", 1e-2)):
        assert np.allclose(moved.frames()[name], plain.frames()[name], atol=tolerance)


# what a run says of itself


def test_a_run_says_that_it_has_moves_and_what_came_of_them(ala2):
    run = ala2.run({}, {})
    log = (run.folder / "md.log").read_text()
    steps, numbers, fates = run.jumps()
    assert list(steps) == list(range(10, 2001, 10))
    accepted = np.count_nonzero(fates == "accepted")
    for text in (log, run.text):
        assert text.count("modejump: active; library") == 1 and "an attempt every 10 steps" in text
        assert f"modejump: 200 attempts, {accepted} accepted" in text and "effective sample size" in text
    # the potential energy is that of the energy file, where nothing jumped since
    energies = run.energies(skip=0)[0]
    rejected = np.flatnonzero(fates != "accepted")
    assert np.allclose(numbers[rejected, 0], energies[rejected + 1], atol=2e-3)
    accepted = np.flatnonzero(fates == "accepted")
    assert np.allclose(numbers[accepted, 1], energies[accepted + 1], atol=2e-3)


def test_a_run_is_a_function_of_its_seed(ala2):
    first, same, other = (ala2.run({}, {"seed": seed}).bytes("trr") for seed in (1, 1, 2))
    assert first == same and first != other


def test_without_a_seed_it_is_that_of_the_run(ala2):
    same = [ala2.run({"ld-seed": 18}, {"seed": seed}) for seed in (None, 18)]
    assert same[0].bytes("trr") == same[1].bytes("trr")
    assert all("an attempt every 10 steps, seed 18" in run.text for run in same)


def test_more_proposals_are_accepted_more_often(ala2):
    mdp = {"nsteps": 10000}
    rates = []
    for more in ({}, {"method": "isir", "proposals": 5}, {"method": "independence", "proposals": 5}):
        fates = ala2.run(mdp, more).jumps()[2]
        assert len(fates) == 1000
        rates.append(np.mean(fates == "accepted"))
    assert 0.6 < rates[0] < rates[1] - 0.05 and rates[0] < rates[2]


# the ensemble


@pytest.fixture(scope="module")
def exact(ala2):
    """Mean potential energy and weight of phi > 0, each with its error, from samples of the generator and their weights."""
    try:
        generator = Generator(GENERATOR)
    except (AttributeError, RuntimeError) as problem:
        pytest.fail(str(problem))
    x, log_q = generator.sample(20000, ATOMS)
    here = np.empty_like(x)
    here[:, generator.order(ala2.atoms())] = x + 3.0 - x.mean(axis=1, keepdims=True)
    write_trr(ala2.folder / "samples.trr", here, 6.0)
    run = Run(ala2, ala2.tpr({"nstcalcenergy": 1, "nstenergy": 1}))
    status, text = run.mdrun(options=["-rerun", ala2.folder / "samples.trr"])
    assert status == 0, text[-2000:]
    potential = run.energies(skip=0)[0]
    log_weights = -potential / KT - log_q
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    positive = ala2.phi(here) > 0
    means = []
    for values in (potential, positive):
        mean = np.sum(weights * values)
        means.append((mean, np.sqrt(np.sum((weights * (values - mean)) ** 2))))
    return means


def offsets(run, exact):
    """How far potential energy, temperature and weight of phi > 0 are from what they should be, in standard errors."""
    potential, temperature = run.energies()
    positive = (run.system.phi(run.frames()["x"]) > 0).astype(float)[5:]
    differences = []
    for values, (mean, error) in zip((potential, temperature, positive), (exact[0], (300.0, 0.0), exact[1])):
        differences.append((values.mean() - mean) / np.hypot(error, error_of(values)))
    return np.array(differences)


LONG = {"nsteps": 300000, "tau-t": 0.5}


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=names)
def test_energy_temperature_and_populations_are_exact(ala2, exact, integrator):
    run = ala2.run({**LONG, **integrator}, {})
    potential, temperature = run.energies()
    assert error_of(potential) < 0.3 and error_of(temperature) < 1.5
    assert np.abs(offsets(run, exact)).max() < 5


@pytest.mark.parametrize("fault", ["velocities", "simple"])
def test_wrong_velocities_are_found_out(ala2, exact, fault):
    """Half-step velocities kept across a jump, or made of the forces at the new configuration alone."""
    run = ala2.run(LONG, {}, environment={"MODEJUMP_FAULT": fault})
    assert np.abs(offsets(run, exact)[:2]).max() > 5


def test_jumps_cross_barriers_that_dynamics_does_not(ala2, exact):
    mdp = {"nsteps": 50000}
    plain, moved = ala2.run(mdp), ala2.run(mdp, {})
    crossings = [np.count_nonzero(np.diff(ala2.phi(run.frames()["x"]) > 0)) for run in (plain, moved)]
    assert crossings[0] == 0 and crossings[1] > 4 and exact[1][0] > 0.01


def after_jumps(run, molecule=slice(None)):
    """On-step velocities times the roots of masses, and forces over them, at the accepted jumps; and what was stored."""
    frames = run.frames()
    steps, _, fates = run.jumps()
    chosen = np.isin(frames["step"], steps[fates == "accepted"])
    root = np.sqrt(np.tile(run.system.masses(), frames["x"].shape[1] // ATOMS))[:, None]
    stored, forces = root * frames["v"][chosen], frames["f"][chosen] / root
    return stored[:, molecule], (stored + 0.5e-3 * forces)[:, molecule], forces[:, molecule]


EVERY = {"nsteps": 40000, "nstxout": 10, "nstvout": 10, "nstfout": 10}


def velocity_faults(run, molecule=slice(None), removed=0):
    """In standard errors: correlation of on-step velocities with forces, and kinetic energy of the stored ones."""
    stored, on_step, forces = after_jumps(run, molecule)
    freedoms = stored[0].size - removed
    assert len(stored) > 1000
    correlation = np.corrcoef(on_step.ravel(), forces.ravel())[0, 1] * np.sqrt(forces.size)
    kinetic = (stored**2).sum(axis=(1, 2)) / (freedoms * KT)
    return np.array([correlation, (kinetic.mean() - 1) / np.sqrt(2 / freedoms / len(kinetic))])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("integrator", INTEGRATORS, ids=names)
def test_velocities_after_a_jump_know_nothing_of_the_forces(ala2, integrator, ranks):
    """And have the temperature. On two ranks as well, where they are sent to where their atoms are: in a shorter run, since on busy
    cores ranks wait for each other."""
    run = ala2.run({**EVERY, "nsteps": 40000 if ranks == 1 else 15000, **integrator}, {}, ranks=ranks)
    assert np.abs(velocity_faults(run, removed=3 if integrator is MD else 0)).max() < 5


@pytest.mark.parametrize("fault", ["velocities", "simple"])
def test_velocities_of_a_faulty_rule_do(ala2, fault):
    run = ala2.run(EVERY, {}, environment={"MODEJUMP_FAULT": fault})
    assert np.abs(velocity_faults(run)).max() > 5


def test_momentum_is_kept_where_its_removal_would_cool(ala2):
    run = ala2.run({**MD, "nsteps": 2000, "nstcomm": 10, "nstxout": 10, "nstvout": 10}, {})
    momenta = (ala2.masses()[:, None] * run.frames()["v"]).sum(axis=1)
    assert np.abs(momenta).max() < 1e-3


def test_constraints_are_kept(ala2):
    """Bonds to hydrogen of constant length, with a generator that keeps them."""
    mdp = {"nsteps": 100000, "dt": 0.002, "constraints": "h-bonds", "tau-t": 0.5, "nstxout": 50, "nstvout": 50}
    run = ala2.run(mdp, {"model": MODELS / "model-hbonds.safetensors"})
    fates = run.jumps()[2]
    assert np.mean(fates == "accepted") > 0.02 and "LINCS WARNING" not in run.text and not np.any(fates == "constraint")
    temperature = run.energies()[1]
    assert abs(temperature.mean() - 300) < 5 * error_of(temperature) < 15
    x, v = (run.frames()[name] for name in "xv")
    methyl, hydrogen = (ala2.atoms().index(("ALA", name)) for name in ("CB", "HB1"))
    bonds = (x[:, methyl] - x[:, hydrogen] + 3) % 6 - 3
    lengths = np.linalg.norm(bonds, axis=1)
    assert np.ptp(lengths) < 1e-5
    # and were a step before, as leap-frog has it: velocities along no bond at x would lack half of the constraints' virial
    relative = v[:, methyl] - v[:, hydrogen]
    along = (relative * bonds).sum(axis=1, keepdims=True) / lengths[:, None] ** 2 * bonds

    def strain(velocity):
        return np.abs(np.linalg.norm(bonds - 0.002 * velocity, axis=1) / lengths - 1).max()

    # LINCS itself leaves up to 3e-4; without their part along the bond velocities would show
    assert strain(relative) < 6e-4 < 2e-3 < strain(relative - along)


# one molecule of several


@pytest.fixture(scope="module")
def two(ala2):
    """Two molecules, the second across the boundary of the box."""
    text = (ala2.folder / "topol.top").read_text()
    (ala2.folder / "two.top").write_text(re.sub(r"(Protein_chain_A +)1\s*$", r"\g<1>2\n", text))
    lines = (ala2.folder / "conf.gro").read_text().splitlines()
    shifted = []
    for line in lines[2:-1]:
        x, y, z = (float(line[a : a + 8]) for a in (20, 28, 36))
        shifted.append(f"{line[:20]}{(x + 3) % 6:8.3f}{y:8.3f}{(z + 3) % 6:8.3f}")
    (ala2.folder / "two.gro").write_text("\n".join(["two", "44", *lines[2:-1], *shifted, lines[-1]]) + "\n")
    return "two.top", "two.gro"


@pytest.mark.parametrize("ranks", [1, 2])
def test_only_the_models_atoms_jump(ala2, two, ranks):
    run = ala2.run(EVERY, {"atoms": "23 - 44"}, topology=two, ranks=ranks)
    x = run.frames()["x"]
    # where jumps lead and dynamics hardly ever does; at pi it may go around
    basin = [(ala2.phi(x, molecule) > 0) & (ala2.phi(x, molecule) < 2.2) for molecule in (0, 1)]
    assert np.count_nonzero(np.diff(basin[1])) > 10 and not np.any(basin[0])
    # the other molecule moves as it would: no step of its atoms is longer than thermal
    steps = np.diff(x[:, :ATOMS], axis=0)
    assert np.abs(steps - 6 * np.round(steps / 6)).max() < 0.15
    assert np.abs(velocity_faults(run, slice(ATOMS, None))).max() < 5
    temperature = run.energies()[1]
    assert abs(temperature.mean() - 300) < 5 * error_of(temperature)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_others_keep_their_velocity_at_the_time_of_the_jump(ala2, two, ranks):
    """Half a step of the old forces is completed, and half a step of the new ones begun."""
    lines = (ala2.folder / "two.gro").read_text().splitlines()
    near = [f"{line[:20]}{float(line[20:28]) + 0.8:8.3f}{line[28:44]}" for line in lines[2 : 2 + ATOMS]]
    (ala2.folder / "near.gro").write_text("\n".join([*lines[: 2 + ATOMS], *near, lines[-1]]) + "\n")
    mdp = {"nsteps": 2000, "nstxout": 10, "nstvout": 10, "nstfout": 10}
    start = two[0], "near.gro"
    plain, moved = ala2.run(mdp, topology=start), ala2.run(mdp, {"atoms": "23-44"}, topology=start, ranks=ranks)
    steps, _, fates = moved.jumps()
    first = steps[fates == "accepted"][0] // 10
    on_step = []
    for run in (plain, moved):
        frames = run.frames()
        stored, forces = (frames[name][first, :ATOMS] for name in ("v", "f"))
        on_step.append((stored, stored + 0.5e-3 * forces / ala2.masses()[:, None]))
    assert np.allclose(on_step[0][1], on_step[1][1], atol=2e-4)
    assert np.abs(on_step[0][0] - on_step[1][0]).max() > 1e-2, "forces change at the jump, and with them the stored velocities"


# continuation and parallel runs


def test_a_continued_run_is_a_straight_one(ala2):
    straight, parted = (Run(ala2, ala2.tpr({"nsteps": 400, "nstvout": 10, "nstfout": 10, "nstxout": 10})) for _ in range(2))
    assert straight.mdrun({})[0] == 0
    assert parted.mdrun({}, options=["-nsteps", 200])[0] == 0
    # what was written after the checkpoint is dropped
    (parted.folder / "jumps.csv").open("a").write("210,0,0,0,accepted\n")
    # a full disk loses nothing of the log
    before, part = (parted.folder / "jumps.csv").read_text(), parted.folder / "jumps.csv.part"
    part.symlink_to("/dev/full")
    status, text = parted.mdrun({}, options=["-nsteps", 200, "-cpi", "md.cpt"])
    assert status != 0 and "could not write jumps.csv.part" in text
    assert (parted.folder / "jumps.csv").read_text() == before
    part.unlink()
    assert parted.mdrun({}, options=["-nsteps", 200, "-cpi", "md.cpt"])[0] == 0
    assert parted.bytes("gro") == straight.bytes("gro")
    assert (parted.folder / "jumps.csv").read_text() == (straight.folder / "jumps.csv").read_text() and not part.exists()
    one, other = parted.frames(), straight.frames()
    assert np.array_equal(one["step"], other["step"])
    for name in ("x", "v", "f"):
        assert np.array_equal(one[name], other[name])


def test_a_log_belongs_to_one_run(ala2):
    first = ala2.run({"nsteps": 100}, {})
    log = first.folder / "jumps.csv"
    written = log.read_text()
    with log.open() as held:  # as a run that has not ended
        fcntl.flock(held, fcntl.LOCK_EX)
        for ranks in (1, 2):
            status, text = first.mdrun({}, ranks=ranks)
            assert status != 0 and "another run is writing jumps.csv: use an options file" in " ".join(text.split())
    files = sorted(path.name for path in first.folder.iterdir() if "jumps.csv" in path.name)
    assert files == ["jumps.csv"] and log.read_text() == written
    # one that has ended is kept, and what a run that was killed has left is not
    (first.folder / "jumps.csv.part").write_text("step\n10,")
    assert first.mdrun({"seed": 8})[0] == 0
    assert (first.folder / "#jumps.csv.1#").read_text() == written
    assert len(first.jumps()[0]) == 10 and log.read_text() != written


def test_two_ranks_make_the_moves_of_one(ala2):
    mdp = {"nsteps": 100, "nstxout": 10, "nstvout": 10}
    one, two = (ala2.run(mdp, {}, ranks=ranks) for ranks in (1, 2))
    assert "Domain decomposition grid 2 x 1 x 1" in (two.folder / "md.log").read_text()
    assert list(one.jumps()[2]) == list(two.jumps()[2]) and "accepted" in one.jumps()[2]
    assert np.allclose(one.jumps()[1], two.jumps()[1], atol=0.05)
    assert np.allclose(one.frames()["v"], two.frames()["v"], atol=0.01)
    difference = one.frames()["x"] - two.frames()["x"]
    assert np.abs(difference - 6 * np.round(difference / 6)).max() < 1e-4


# refusals


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": None}, "must set model = FILE and steps = N"),
        ({"steps": None}, "must set model = FILE and steps = N"),
        ({"steps": 0}, "the value of steps"),
        ({"steps": "ten"}, "the value of steps"),
        ({"model": "none.safetensors"}, "none.safetensors"),
        ({"frequency": 3}, "unknown option frequency; known options: model, steps, atoms, seed,"),
        ({"method": "gibbs"}, "known methods: independence, isir"),
        ({"proposals": 0}, "the value of proposals"),
        ({"atoms": "5"}, "not a range first-last"),
        ({"atoms": "1-21"}, "describes 22 atoms, but the range 1-21 has 21"),
        ({"atoms": "11-32"}, "atoms in the system is 22"),
        ({"temperature": 310}, "are coupled to 300"),
        ({"log": "none/jumps.csv"}, "could not write none/jumps.csv"),
        ({"log": "/dev/full"}, "could not write /dev/full"),
    ],
)
def test_bad_options_are_refused(ala2, options, message):
    assert message in ala2.refused({}, options)


def test_a_file_without_equals_sign_is_refused(ala2):
    assert "is not of the form key = value" in ala2.refused({}, {"seed": "1\nsteps"})


def test_a_library_that_is_not_there_is_refused(ala2):
    assert "set MODEJUMP_LIB to the path" in ala2.refused({}, {}, environment={"MODEJUMP_LIB": "none.so"})
    libc = {"MODEJUMP_LIB": "libc.so.6"}
    assert "has no function modejump_abi_version" in ala2.refused({}, {}, environment=libc)
    assert library_path().exists()


@pytest.mark.parametrize(
    "mdp, message",
    [
        ({"integrator": "md-vv"}, "integrators other than md and sd"),
        ({"integrator": "bd"}, "integrators other than md and sd"),
        ({**MD, "tcoupl": "berendsen"}, "Berendsen's does not sample the canonical ensemble"),
        ({**MD, "tcoupl": "nose-hoover", "nsttcouple": 10}, "Nose-Hoover coupling every 10 steps with an attempt every 10"),
        ({**MD, "pcoupl": "C-rescale", "compressibility": 4.5e-5, "ref-p": 1, "tau-p": 5}, "pressure coupling"),
        ({**MD, "comm-mode": "angular"}, "comm-mode = angular"),
        ({**MD, "tcoupl": "no"}, "set the option temperature"),
        ({**MD, "cos-acceleration": 0.1}, "accelerations: their forces are not in the potential energy"),
        ({**MD, "mts": "yes", "mts-level2-forces": "dihedral", "mts-level2-factor": 2, "nsttcouple": 10}, "multiple time stepping"),
        ({**MD, "gen-vel": "no", "deform": "0.01 0 0 0 0 0"}, "deformation of the box"),
        ({"electric-field-x": "1.0 0 0 0"}, "modules that provide forces"),
        ({"free-energy": "yes", "init-lambda": 0.5, "nstdhdl": 10}, "free-energy"),
        ({"freezegrps": "System", "freezedim": "Y N N", "comm-mode": "none"}, "is frozen, but proposals"),
        (
            {
                "pull": "yes",
                "pull-ngroups": 1,
                "pull-ncoords": 1,
                "pull-group1-name": "System",
                "pull-coord1-groups": "0 1",
                "pull-coord1-k": 1,
                "pull-coord1-vec": "1 0 0",
                "pull-coord1-geometry": "direction",
                "pull-coord1-origin": "3 3 3",
            },
            "pulling",
        ),
        ({"constraints": "h-bonds"}, "CH3"),
    ],
)
def test_what_is_not_exact_is_refused(ala2, mdp, message):
    environment = {"GMX_DISABLE_MODULAR_SIMULATOR": "ON"}
    assert message in ala2.refused(mdp, {}, environment=environment)


def test_groups_that_part_the_molecule_are_refused(ala2):
    index = ala2.folder / "parts.ndx"
    parts = {"System": range(1, 23), "head": range(1, 7), "rest": range(7, 23)}
    index.write_text("".join(f"[ {name} ]\n{' '.join(map(str, atoms))}\n" for name, atoms in parts.items()))
    groups = ("-n", index)
    baths = {"tc-grps": "head rest", "tau-t": "1 1", "ref-t": "300 310"}
    assert "coupled to several temperatures" in ala2.refused(baths, {}, grompp=groups)
    removal = {**MD, "comm-grps": "head rest"}
    assert "several groups of centre-of-mass removal" in ala2.refused(removal, {}, grompp=groups)
    # of the same temperature they are fine
    ala2.run({**baths, "ref-t": "300 300", "nsteps": 100}, {}, grompp=groups)


def test_restraints_in_space_need_a_centre_of_mass_that_moves(ala2):
    text = (ala2.folder / "topol.top").read_text()
    for name, line in ("restrained", "5 1 100 100 100"), ("walled", "5 2 1 0.5 100"):
        at = text.index("; Include Position restraint file")
        (ala2.folder / f"{name}.top").write_text(text[:at] + f"[ position_restraints ]\n{line}\n\n" + text[at:])
        start = (f"{name}.top",)
        assert "position restraints or frozen atoms with removal" in ala2.refused(MD, {}, topology=start)
        ala2.run({**MD, "comm-mode": "none", "nsteps": 100}, {}, topology=start)


def test_baths_of_several_temperatures_are_refused(ala2):
    pair = with_one_more_molecule(ala2)
    baths = {"tc-grps": "ours other", "tau-t": "1 1"}
    assert "other atoms are coupled to a different temperature" in ala2.refused({**baths, "ref-t": "300 310"}, {}, **pair)
    ala2.run({**baths, "ref-t": "300 300", "nsteps": 100}, {}, **pair)
    # nor if those of the model have none
    uncoupled = {**MD, **baths, "tau-t": "-1 1", "ref-t": "300 300"}
    assert "other atoms are coupled to a different temperature" in ala2.refused(uncoupled, {"temperature": 600}, **pair)


def test_a_frozen_neighbour_needs_a_centre_of_mass_that_moves(ala2):
    """GROMACS leaves it out of the removal, and its field is one in space."""
    pair = with_one_more_molecule(ala2)
    frozen = {**MD, "freezegrps": "other", "freezedim": "Y Y Y"}
    assert "position restraints or frozen atoms with removal" in ala2.refused(frozen, {}, **pair)
    ala2.run({**frozen, "comm-mode": "none", "nsteps": 100}, {}, **pair)


def with_one_more_molecule(ala2):
    """Topology, start and groups of a run in which a second molecule, `other`, is beside the first, `ours`."""
    (ala2.folder / "two.ndx").write_text("".join(
        f"[ {name} ]\n{' '.join(map(str, atoms))}\n"
        for name, atoms in {"System": range(1, 45), "ours": range(1, 23), "other": range(23, 45)}.items()))
    text = (ala2.folder / "topol.top").read_text()
    lines = text.rstrip().splitlines()
    name = lines[-1].split()[0]
    (ala2.folder / "pair.top").write_text("\n".join([*lines[:-1], f"{name} 2", ""]))
    conf = (ala2.folder / "conf.gro").read_text().splitlines()
    atoms = conf[2:-1]
    moved = [line[:20] + f"{float(line[20:28]) - 1.5:8.3f}" + line[28:44] for line in atoms]
    (ala2.folder / "pair.gro").write_text("\n".join(["pair", "44", *(line[:44] for line in atoms), *moved, conf[-1]]) + "\n")
    return {"topology": ("pair.top", "pair.gro"), "grompp": ("-n", ala2.folder / "two.ndx")}


def test_dynamics_without_a_bath_takes_the_temperature_of_the_option(ala2):
    run = ala2.run({**MD, "tcoupl": "no", "nsteps": 100}, {"temperature": 300})
    assert len(run.jumps()[0]) == 10


def test_averaged_distance_restraints_are_refused(ala2):
    text = (ala2.folder / "topol.top").read_text()
    restraint = "[ distance_restraints ]\n1 20 1 0 1 0.0 0.5 1.0 1.0\n\n"
    at = text.index("; Include Position restraint file")
    (ala2.folder / "averaged.top").write_text(text[:at] + restraint + text[at:])
    mdp = {"disre": "simple", "disre-tau": 10}
    assert "time-averaged distance restraints" in ala2.refused(mdp, {}, topology=("averaged.top",))
    ala2.run({"disre": "simple", "nsteps": 100}, {}, topology=("averaged.top",))


def with_one_more_atom(ala2, name, atom, more):
    """A topology, and its start, in which something is tied to the molecule."""
    text = (ala2.folder / "topol.top").read_text()
    text = text.replace("[ bonds ]", f"23 {atom} 4 XXX X 23 0\n\n{more}\n\n[ bonds ]", 1)
    (ala2.folder / f"{name}.top").write_text(text)
    lines = (ala2.folder / "conf.gro").read_text().splitlines()
    atoms = [*lines[2:-1], f"{4:5d}{'XXX':<5}{'X':>5}{23:5d}   2.900   2.700   2.900"]
    (ala2.folder / f"{name}.gro").write_text("\n".join([name, "23", *atoms, lines[-1]]) + "\n")
    return f"{name}.top", f"{name}.gro"


def test_what_is_tied_to_the_molecule_is_refused(ala2):
    site = with_one_more_atom(ala2, "site", "MW", "[ virtual_sites2 ]\n23 1 2 1 0.5")
    assert "virtual sites among the model's atoms, or constructed from them" in ala2.refused({}, {}, topology=site)
    tied = with_one_more_atom(ala2, "tied", "CT", "[ constraints ]\n1 23 1 0.15")
    assert "a constraint between an atom of the model and one outside it" in ala2.refused({}, {}, topology=tied)


def test_a_problem_on_one_rank_stops_all(ala2):
    assert "unknown option colour" in ala2.refused({}, {"colour": "blue"}, ranks=2)


def test_other_atoms_are_refused_by_name(ala2):
    text = (ala2.folder / "topol.top").read_text()
    other = re.sub(r"( ALA +)CB( )", r"\1CX\2", text)
    assert other != text
    (ala2.folder / "other.top").write_text(other)
    answer = ala2.refused({}, {}, topology=("other.top",))
    assert "CB" in answer or "CX" in answer, answer


def test_hydrogens_that_are_numbered_the_other_way_round_are_told(ala2):
    lines = (ala2.folder / "conf.gro").read_text().splitlines(keepends=True)
    a, b = (next(i for i, line in enumerate(lines) if line[10:15].strip() == name) for name in ("HB1", "HB2"))
    lines[a], lines[b] = lines[a][:20] + lines[b][20:], lines[b][:20] + lines[a][20:]
    (ala2.folder / "swapped.gro").write_text("".join(lines))
    said = "modejump: the atoms do not match the model: numbered differently from the model's frames: ALA2:HB1 (atom 12) and ALA2:HB2 (atom 13)"
    assert ala2.run({}, {"steps": 50}, topology=("topol.top", "swapped.gro")).text.count(said) == 1
    assert said not in ala2.run({}, {"steps": 50}).text
