"""What fix modejump refuses, and what it tells: options, fixes and forces beside it, atoms that are not the model's."""

import math

import pytest

from conftest import DYNAMICS, Run, data_file, jump
from model_file import scale_layer, write_model
from peroxide import start


@pytest.mark.parametrize(
    "fix, message",
    [
        ("model none.safetensors temp 300 seed 1", "none.safetensors"),
        ("model {model} temp 300", "use a different seed for each independent run"),
        ("model {model} temp 300 seed -3", "a number from 0 up"),
        ("model {model} temp 0", "positive temperature"),
        ("temp 300", "requires `model FILE`"),
        ("model {model} temp 300 frequency 3", "unknown keyword frequency"),
        ("model {model} temp 300 seed", "keyword seed has no value"),
        ("model {model} temp 300 seed 1 method gibbs", "known methods: independence, isir"),
        ("model {model} temp 300 seed 1 proposals 0", "0 proposals"),
        ("model {model} temp 300 seed 1 proposals -1", "-1 proposals"),
        ("model {model} temp 300 seed 1 ahead soon", "soon"),
        ("model {model} temp 300 seed 1 method isir screen {model}", "screen requires"),
    ],
)
def test_bad_options_are_refused(run, fix, message):
    text = run.bad(DYNAMICS.format(seed=1) + f"fix jump all modejump 20 {fix.format(model=run.model)}\nrun 10\n")
    assert message in text, text[-1500:]


def test_what_does_not_fit_is_refused(run):
    group = "group some id 1:3\n" + f"fix jump some modejump 20 model {run.model} temp 300 seed 1\nrun 10\n"
    # mpiexec may lose the last lines of ranks that it ends
    texts = (run.bad(DYNAMICS.format(seed=1) + group, ranks=2) for _ in range(5))
    assert any("has 4 atoms, but group some has 3" in text for text in texts)
    shake = jump(run) + "fix rigid all shake 0.0001 20 0 b 1\nrun 10\n"
    assert "fix rigid (shake) constrains atoms" in run.bad(DYNAMICS.format(seed=1) + shake)
    respa = jump(run) + "run_style respa 2 2 bond 1 angle 1 dihedral 2 pair 2\nrun 10\n"
    assert "does not work with run_style respa" in run.bad(DYNAMICS.format(seed=1) + respa)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "held, message",
    [
        ("fix dynamics all nve\nfix hold one setforce 0 0 0", "fix hold (setforce) holds atom 2 of group all"),
        ("fix dynamics all nve\nfix hold one planeforce 0 0 1", "fix hold (planeforce) holds atom 2 of group all"),
        ("fix dynamics rest nve\nfix hold one nve/noforce", "fix hold (nve/noforce) holds atom 2 of group all"),
        ("fix dynamics all nve\nfix hold all aveforce 0 0 0", "fix hold (aveforce) holds atom 1 of group all"),
        ("fix dynamics rest nve", "no fix integrates atom 2 of group all"),
    ],
)
def test_held_atoms_of_the_model_are_refused(run, held, message, ranks):
    groups = "group one id 2\ngroup rest id 1 3 4\nvelocity all create 300.0 5\nvelocity one set 0 0 0\n"
    commands = groups + "{}\nfix bath rest langevin 300 300 50 5\n" + jump(run) + "run 10\n"
    # mpiexec may lose the last lines of ranks that it ends
    texts = (run.bad(commands.format(held), ranks=ranks) for _ in range(5))
    assert any(message in text for text in texts)


def test_held_atoms_beside_the_model_are_not(tmp_path):
    run = Run(tmp_path, copies=2)
    held = "group one id 1:4\ngroup two id 5:8\nvelocity two set 0 0 0\nfix hold two setforce 0 0 0\n"
    jumps = f"fix jump one modejump 20 model {run.model} temp 300.0 seed 7\n"
    # and nothing has to move for a minimisation
    run.good(jumps.join([held, "minimize 0.0 1.0 3 3\n"]) + DYNAMICS.format(seed=5).replace("bath all", "bath one") + "run 10\n")


@pytest.mark.parametrize(
    "fixes, style",
    [
        ("fix dynamics all nve\nfix bath all temp/berendsen 300 300 50", "temp/berendsen"),
        ("fix dynamics all nve\nfix bath all temp/rescale 10 300 300 1 1.0", "temp/rescale"),
        ("fix bath all nve/limit 0.05", "nve/limit"),
        ("fix bath all nvk", "nvk"),
        ("fix dynamics all nve\nfix bath all viscous 0.01", "viscous"),
        ("fix dynamics all nvt temp 300 300 50\nfix bath all dt/reset 1 0.01 0.5 0.1", "dt/reset"),
    ],
)
def test_thermostats_that_are_not_canonical_are_refused(run, fixes, style):
    text = run.bad(f"velocity all create 300.0 1\n{fixes}\n" + jump(run) + "run 10\n")
    assert f"fix bath ({style}) does not sample the canonical ensemble" in text, text[-1500:]


def test_masses_of_another_order_are_refused(run):
    swapped = "set atom 1 type 2\nset atom 2 type 1\n"
    text = run.bad(swapped + DYNAMICS.format(seed=1) + jump(run) + "run 10\n")
    assert "a mass of 15.999 where the topology has HOH1:H1 (atom 1)" in text and "the k-th lowest ID in group all" in text
    # hydrogens may be made heavier by their neighbours
    heavier = "mass 1 3.024\nmass 2 13.983\n"
    run.good(heavier + DYNAMICS.format(seed=1) + jump(run) + "run 10\n")


def test_equal_atoms_that_are_numbered_the_other_way_round_are_told(run):
    """As the hydrogens of a CH2; here both hydrogens are taken to be bonded to one atom."""
    x = start(math.radians(90)) - [0.06, -1.2, 0.0]
    topology = {"names": ["H1", "O1", "O2", "H2"], "elements": ["H", "O", "O", "H"], "residues": ["HOH1"] * 4, "bonds": [[0, 1], [1, 2], [1, 3]]}
    for order, told in (([0, 1, 2, 3], False), ([3, 1, 2, 0], True)):
        layer = scale_layer(list(range(12)), list(x[order].ravel()), [0.02] * 12)
        run.model = write_model(run.folder / "model.safetensors", {"kind": "cartesian", "dimension": 12}, [layer], [], topology=topology)
        text = run.good(DYNAMICS.format(seed=1) + jump(run, every=2) + "run 10\n")
        said = "numbered differently from the model's frames: HOH1:H1 (atom 1) and HOH1:H2 (atom 4)"
        assert text.count(said) == told, text[-1500:]


@pytest.mark.parametrize(
    "fix, style",
    [
        ("all spring/self 1.0", "spring/self"),
        ("all spring/self 1.0\nfix_modify other energy yes", "spring/self"),
        ("all restrain dihedral 1 2 3 4 1.0 1.0 90.0", "restrain"),
        ("all addforce 0.1 0.0 0.0", "addforce"),
    ],
)
def test_fixes_with_an_energy_are_refused(run, fix, style):
    text = run.bad(DYNAMICS.format(seed=1) + jump(run) + f"fix other {fix}\nrun 10\n")
    assert f"fix other ({style}) has a potential energy" in text, text[-1500:]


@pytest.mark.parametrize(
    "more, message",
    [
        ("unfix dynamics\nunfix bath\nfix other all hmc 10 123 300", "fix other (hmc) rejects trajectories together with the jumps"),
        ("compute pairs all pe/tally all", "compute pairs (pe/tally) adds up pair contributions"),
        ("uncompute jump_pe", "the compute jump_pe, which this fix created, was deleted"),
        ("fix other all wall/reflect xlo 10.0", "fix other (wall/reflect) reflects atoms at a wall"),
        ("fix other all spring/rg 30 1.6", "fix other (spring/rg) applies forces without an energy to atoms of the model"),
        ("fix other all drag 0 0 0 1 2", "fix other (drag) applies forces without an energy to atoms of the model"),
        ("group some id 1\ngroup rest id 2:4\nfix other some smd cfor 5.0 couple rest NULL NULL NULL 3.0",
         "fix other (smd) applies forces without an energy to its group, and perhaps to another"),
        ("fix q all property/atom q ghost yes\nfix other all qeq/point 1 6.0 1e-6 100 charges", "fix other (qeq/point) assigns charges whose own energy"),
        ("fix other all pimd/langevin temp 300 thermostat PILE_L 1234", "fix other (pimd/langevin) makes atoms follow forces other than"),
        ("pair_style dpd/tstat 300 300 5.0 7\npair_coeff * * 1.0 5.0", "pair style dpd/tstat has friction or noise forces"),
        ("pair_style hybrid/overlay zero 6.0 dpd/tstat 300 300 5.0 7\npair_coeff * * zero\npair_coeff * * dpd/tstat 1.0 5.0",
         "pair style hybrid/overlay has friction or noise forces"),
        ("angle_style none\ndihedral_style none\npair_style lj/cut 6.0\npair_coeff * * 0.1 1.0\nspecial_bonds lj/coul 1 1 1\nbond_style quartic\nbond_coeff * 1200 -0.5 0.5 1.5 30", "bond style quartic permanently breaks bonds"),
        ("angle_style none\ndihedral_style none\npair_style lj/cut 6.0\npair_coeff * * 0.1 1.0\nspecial_bonds lj/coul 1 1 1\nbond_style hybrid quartic/omp\nbond_coeff * quartic/omp 1200 -0.5 0.5 1.5 30", "bond style quartic/omp permanently breaks bonds"),
    ],
    ids=lambda value: "",
)
def test_forces_that_the_moves_do_not_see_are_refused(run, more, message):
    run.head = "boundary f p p\ncomm_modify vel yes\n" + ("package omp 1\n" if "/omp" in more else "")
    data_file(run.folder / "data.peroxide", at=(12.0, 12.0, 12.0))
    (run.folder / "charges").write_text("1 4.5 13.9 0 0 0\n2 8.7 13.4 0 0 0\n")
    text = run.bad(DYNAMICS.format(seed=1) + jump(run) + more + "\nrun 10\n")
    assert message in " ".join(text.split()), text[-1500:]


def test_an_energy_of_other_atoms_alone_makes_no_difference(run):
    beside = "create_atoms 2 single 2.0 2.0 20.0\ngroup solute id 1:4\ngroup other subtract all solute\n"
    jumps = jump(run).replace("jump all", "jump solute")
    run.good(beside + DYNAMICS.format(seed=1) + jumps + "fix other other spring/self 1.0\nrun 40\n")
    text = run.bad(beside + DYNAMICS.format(seed=1) + jumps + "fix other all spring/self 1.0\nrun 10\n")
    assert "fix other (spring/self) has a potential energy" in text, text[-1500:]


def test_a_plane_is_refused(run):
    run.head = "dimension 2\n"
    data = run.folder / "data.peroxide"
    lines = data.read_text().replace("0.0 24.0 zlo zhi", "-12.0 12.0 zlo zhi").splitlines()
    at = lines.index("Atoms # molecular") + 2
    lines[at : at + 4] = [line.rsplit(" ", 1)[0] + " 0.0" for line in lines[at : at + 4]]
    data.write_text("\n".join(lines) + "\n")
    assert "does not work with dimension 2" in run.bad(DYNAMICS.format(seed=1) + jump(run) + "run 10\n")


def test_atoms_that_come_or_go_stop_the_run(run):
    """As by fix evaporate and deposit."""
    gas = "region gas block 10 14 10 14 4 8\nfix gas all deposit 1 2 30 123 region gas near 1.0\n"
    text = run.bad(DYNAMICS.format(seed=1) + gas + jump(run) + "run 80\n")
    assert "of the 4 atoms of group all, 4 are present at step 20, and 1 others" in " ".join(text.split()), text[-1500:]


def test_another_order_in_a_later_run_is_refused(run):
    text = run.bad(DYNAMICS.format(seed=1) + jump(run) + "run 20\nset atom 1 type 2\nset atom 2 type 1\nrun 20\n")
    assert "the atoms of group all, their masses or their order by ID have changed" in " ".join(text.split()), text[-1500:]


@pytest.mark.parametrize("fix", ["npt temp 300 300 50 iso 1 1 500", "deform 1 x erate 0.0001", "press/berendsen iso 1 1 500"])
def test_fixes_that_change_the_box_are_refused(run, fix):
    text = run.bad("velocity all create 300.0 1\n" + jump(run) + f"fix other all {fix}\nrun 10\n")
    assert f"fix other ({fix.split()[0]}) changes the box" in text, text[-1500:]


@pytest.mark.parametrize(
    "fix, found",
    [
        ("langevin 310 310 50 1", "310 at step 20"),
        ("langevin 300 310 50 1", "304.75 at step 20"),
        ("temp/csvr 301 301 50 1", "301 at step 20"),
        ("nvt temp 300 310 50", "305 at step 20"),
    ],
)
def test_thermostats_of_another_temperature_are_refused(run, fix, found):
    dynamics = "" if fix.startswith("nvt") else "fix dynamics all nve\n"
    text = run.bad("velocity all create 300.0 1\n" + dynamics + f"fix bath all {fix}\n" + jump(run) + "run 40\n")
    assert f"temp is 300, but fix bath ({fix.split()[0]}) is at temperature {found}" in text, text[-1500:]


def test_temperatures_of_each_atom_are_none_that_jumps_have(run):
    bath = "variable hot atom 300.0\nfix dynamics all nve\nfix bath all langevin v_hot 300.0 50 1\n"
    text = run.bad("velocity all create 300.0 1\n" + bath + jump(run) + "run 40\n")
    assert "fix bath (langevin) has no positive temperature, or one per atom" in text, text[-1500:]


def test_forces_without_an_energy_on_other_atoms_are_not_refused(tmp_path):
    run = Run(tmp_path, copies=2)
    groups = "group one id 1:4\ngroup two id 5:8\nfix other two spring/rg 30 1.6\n"
    run.good(groups + DYNAMICS.format(seed=5) + f"fix jump one modejump 20 model {run.model} temp 300.0 seed 7\nrun 40\n")
