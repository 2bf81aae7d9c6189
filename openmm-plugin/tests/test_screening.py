"""A screening model beside the generator: delayed acceptance, and acceptance by the screen alone."""

import csv
import io
import math
import subprocess
import sys

import numpy as np
import openmm
import openmm.app
import pytest
import toy
from peroxide import write_peroxide_model

import modejump


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Covers both wells of toy.two_well_system."""
    return toy.write_gaussian_model(tmp_path_factory.mktemp("wide") / "wide.safetensors", (0.4, 0.06, 0.06))


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """Believes in the left well and is too narrow."""
    path = tmp_path_factory.mktemp("wrong") / "wrong.safetensors"
    return toy.write_gaussian_model(path, (0.45, 0.05, 0.07), (-0.2, 0.01, 0.0))


def run(model, attempts, **options):
    """Positions after each block of dynamics with one attempt in it."""
    system = toy.two_well_system()
    jump = modejump.MonteCarloModeJump(model, 5, seed=8, **options)
    system.addForce(jump)
    integrator = toy.langevin(0.002)
    context = toy.make_context(system, integrator, x=[[toy.SEPARATION, 0.0, 0.0]])
    x = np.empty((attempts, 3))
    for i in range(attempts):
        integrator.step(5)
        x[i] = toy.positions(context)[0]
    return x, jump.statistics(context)


@pytest.mark.parametrize("proposals", [1, 4])
def test_a_wrong_screen_leaves_the_populations_exact(wide, wrong, proposals):
    x, statistics = run(wide, 20000, screen=wrong, proposals=proposals)
    left = x[:, 0] < 0
    assert abs(left.mean() - toy.LEFT) < 5 * toy.batch_error(left)
    for axis in (1, 2):
        square = x[:, axis] ** 2
        assert abs(square.mean() - toy.SIGMA**2) < 5 * toy.batch_error(square)
    assert 0 < statistics.accepted < statistics.screened < statistics.attempts
    assert statistics.exact_evaluations == 2 * statistics.screened
    assert statistics.correction_variance > 0.05


def test_the_generator_as_its_own_screen_changes_nothing(wide):
    screened, statistics = run(wide, 300, screen=wide)
    plain, _ = run(wide, 300)
    assert np.array_equal(screened, plain)
    assert statistics.accepted == statistics.screened > 10 and statistics.correction_variance < 1e-6


def test_without_a_screen_there_is_nothing_to_count(wide):
    _, statistics = run(wide, 20)
    assert (statistics.screened, statistics.exact_evaluations) == (0, 0) and math.isnan(statistics.correction_variance)


def biased_left():
    """Population of the left well in exp(-u) q/q_s, by quadrature along x; the other axes are factors of their own."""
    x = np.linspace(-1.0, 1.0, 20001)
    normal = lambda mean, width: np.exp(-((x - mean) ** 2) / (2 * width**2)) / width
    target = toy.LEFT * normal(-toy.SEPARATION, toy.SIGMA) + (1 - toy.LEFT) * normal(toy.SEPARATION, toy.SIGMA)
    weight = target * normal(0.0, 0.4) / normal(-0.2, 0.45)
    return weight[x < 0].sum() / weight.sum()


def test_a_surrogate_that_decides_samples_the_biased_populations(wide, wrong):
    assert abs(biased_left() - toy.LEFT) > 0.05
    system = toy.two_well_system()
    jump = modejump.MonteCarloModeJump(wide, 1, seed=8, screen=wrong, acceptance="surrogate")
    system.addForce(jump)
    # practically no dynamics, which would pull each well back to its own distribution
    integrator = toy.langevin(1e-9)
    context = toy.make_context(system, integrator, x=[[toy.SEPARATION, 0.0, 0.0]])
    assert jump.statistics(context).likelihood == "surrogate"
    left = np.empty(20000)
    for i in range(len(left)):
        integrator.step(1)
        left[i] = toy.positions(context)[0, 0] < 0
    assert abs(left.mean() - biased_left()) < 5 * toy.batch_error(left)
    statistics = jump.statistics(context)
    assert statistics.likelihood == "surrogate" and "surrogate" in repr(statistics)
    assert (statistics.screened, statistics.exact_evaluations) == (0, 0) and statistics.acceptance > 0.02
    jump.reset_statistics(context)
    assert jump.statistics(context).likelihood == "surrogate"


def test_the_generator_as_its_own_surrogate_changes_nothing(wide):
    by_surrogate, statistics = run(wide, 300, screen=wide, acceptance="surrogate")
    plain, exact = run(wide, 300)
    assert np.array_equal(by_surrogate, plain)
    assert (statistics.likelihood, exact.likelihood) == ("surrogate", "exact")


def test_a_surrogate_decides_only_where_it_is_asked_to_and_given(wide, wrong):
    assert modejump.MonteCarloModeJump(wide, screen=wrong).acceptance == "exact"
    with pytest.raises(openmm.OpenMMException, match="requires one"):
        modejump.MonteCarloModeJump(wide, acceptance="surrogate")
    with pytest.raises(openmm.OpenMMException, match="exact or surrogate"):
        modejump.MonteCarloModeJump(wide, screen=wrong, acceptance="fast")


def test_xml_keeps_the_acceptance(wide, wrong):
    jump = modejump.MonteCarloModeJump(wide, 25, screen=wrong, acceptance="surrogate")
    xml = openmm.XmlSerializer.serialize(jump)
    assert 'version="3"' in xml and 'acceptance="surrogate"' in xml
    back = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(xml))
    assert back.acceptance == "surrogate" and openmm.XmlSerializer.serialize(back) == xml


@pytest.mark.parametrize("acceptance", ["exact", "surrogate"])
def test_the_reporter_has_the_columns_of_the_screen(wide, wrong, acceptance):
    rows = report(modejump.MonteCarloModeJump(wide, 5, seed=8, screen=wrong, acceptance=acceptance))
    header, last = rows[0], rows[-1]
    assert header[-5:] == ["Likelihood", "Screened", "Exact Evaluations", "Stage 2 Acceptance", "Correction Variance"]
    assert all(row[header.index("Likelihood")] == acceptance for row in rows[1:])
    number = {name: float(value) for name, value in zip(header, last) if name != "Likelihood"}
    if acceptance == "exact":
        # the attempt that belongs to the last report's step is made when the next step begins
        assert 0 < number["Screened"] < number["Attempts"] == 199
        assert number["Exact Evaluations"] == 2 * number["Screened"] and number["Correction Variance"] > 0
        assert abs(number["Stage 2 Acceptance"] - number["Accepted"] / number["Screened"]) < 1e-5
    else:
        assert number["Screened"] == number["Exact Evaluations"] == 0 and number["Accepted"] > 0


def test_the_reporter_has_no_such_columns_without_a_screen(wide):
    assert report(modejump.MonteCarloModeJump(wide, 5, seed=8))[0][-1] == "ESS"


def report(jump):
    """Rows of a ModeJumpReporter, the header first."""
    system = toy.two_well_system()
    system.addForce(jump)
    topology = openmm.app.Topology()
    topology.addAtom("C", openmm.app.element.carbon, topology.addResidue("TOY", topology.addChain()))
    simulation = openmm.app.Simulation(topology, system, toy.langevin(0.002), *toy.platform())
    simulation.context.setPositions(np.array([[toy.SEPARATION, 0.0, 0.0]]))
    out = io.StringIO()
    simulation.reporters.append(modejump.ModeJumpReporter(out, 250))
    simulation.step(1000)
    return list(csv.reader(line.lstrip("#") for line in out.getvalue().splitlines()))


@pytest.mark.parametrize("embed", [False, True])
def test_xml_keeps_the_screen(wide, wrong, embed):
    jump = modejump.MonteCarloModeJump(wide, 25, screen=wrong, proposals=3, embed=embed)
    xml = openmm.XmlSerializer.serialize(jump)
    assert 'version="2"' in xml and ("screenData=" in xml) == embed and jump.screening_model_hash in xml
    back = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(xml))
    assert back.screening_model_file == wrong and back.screening_model_hash == jump.screening_model_hash
    assert openmm.XmlSerializer.serialize(back) == xml
    without = modejump.MonteCarloModeJump(wide)
    assert without.screening_model_file == "" and 'version="1"' in openmm.XmlSerializer.serialize(without)


def test_an_embedded_screen_needs_no_file(wide, wrong, tmp_path):
    path = tmp_path / "there.safetensors"
    path.write_bytes(open(wrong, "rb").read())
    system = toy.two_well_system()
    system.addForce(modejump.MonteCarloModeJump(wide, 0, seed=3, embed=True, screen=path))
    xml = openmm.XmlSerializer.serialize(system)
    path.unlink()
    code = (
        "import sys, openmm, toy, modejump\n"
        "system = openmm.XmlSerializer.deserialize(sys.stdin.read())\n"
        "jump = modejump.MonteCarloModeJump.cast(system.getForce(system.getNumForces() - 1))\n"
        "context = toy.make_context(system, toy.langevin(), x=[[toy.SEPARATION, 0.0, 0.0]])\n"
        "for _ in range(100): jump.attempt(context)\n"
        "print(jump.statistics(context).screened)"
    )
    here = str(__import__("pathlib").Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], input=xml, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2


def test_a_screen_that_does_not_fit_is_refused(wide, wrong, tmp_path, peroxide_model):
    with pytest.raises(openmm.OpenMMException, match="nowhere.safetensors"):
        modejump.MonteCarloModeJump(wide, screen=tmp_path / "nowhere.safetensors")
    system = toy.two_well_system()
    system.addForce(modejump.MonteCarloModeJump(wide, screen=peroxide_model))
    with pytest.raises(openmm.OpenMMException, match="4 atoms"):
        openmm.Context(system, toy.langevin(), *toy.platform())
    path = tmp_path / "m.safetensors"
    path.write_bytes(open(wrong, "rb").read())
    xml = openmm.XmlSerializer.serialize(modejump.MonteCarloModeJump(wide, screen=path))
    write_peroxide_model(path)
    system = toy.two_well_system()
    system.addForce(openmm.XmlSerializer.deserialize(xml))
    with pytest.raises(openmm.OpenMMException, match="hash"):
        openmm.Context(system, toy.langevin(), *toy.platform())
