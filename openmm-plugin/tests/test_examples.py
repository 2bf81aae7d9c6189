"""The example scripts, as a user runs them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import toy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *arguments, **options):
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["ala2_screened", "ase_jumps", "every_move", "openmm_moves", "moves/gallery", "moves/run"])
def test_each_says_how_it_is_run(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    first = text[3:].split("\n\n")[0].split("\n")
    assert " ".join(first) in " ".join(run(f"{name}.py", "--help").split())


def test_screened_jumps_make_the_attempts_that_were_asked_for(tmp_path):
    out = run("ala2_screened.py", "--attempts", "2", "--acceptance", "surrogate", "--log", str(tmp_path / "screened.csv"))
    assert out.startswith("2 attempts")


def test_a_log_has_a_place_that_is_told(tmp_path):
    out = run("ala2_screened.py", "--attempts", "1", "--acceptance", "surrogate", cwd=tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.csv")] == ["target/screened.csv"]
    assert "target/screened.csv has" in out


@pytest.mark.parametrize("name", ["solvated_jumps", "moves/run"])
def test_models_are_found_from_any_folder(name, tmp_path):
    code = f"import runpy; print(runpy.run_path({str(EXAMPLES / name) + '.py'!r})['ALA2'].exists())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "True\n", done.stderr


@toy.since("ReplicaExchangeSampler")
def test_a_short_ladder_has_no_errors(tmp_path):
    arguments = ["--temperatures", "400", "600", "--iterations", "4", "--steps", "20", "--output", str(tmp_path)]
    out = run("temperature_ladder.py", *arguments)
    assert "nan" not in out and "4 exchanges are too few for error estimates" in out
    assert "NaN" not in (tmp_path / "summary.json").read_text()


def test_a_langevin_loop_of_ones_own():
    exact, plain, jumps = (float(line.split()[-1]) for line in re.findall(r"P\(left\)[ a-z]+[0-9.]+", run("own_langevin.py")))
    assert plain == 0.0 and abs(jumps - exact) < 0.05


def test_every_move_in_one_potential():
    exact, *found = (float(line[14:].split()[0]) for line in run("every_move.py", "600").splitlines())
    assert len(found) == 7 and all(abs(p - exact) < 0.15 for p in found)


def test_every_move_in_openmm():
    rows = re.findall(r"^([A-Za-z-]+.*?) +([0-9.]+)%", run("openmm_moves.py", "400"), re.MULTILINE)
    assert [name for name, _ in rows] == ["independence", "i-SIR of 4", "annealed", "latent walk", "trajectories", "mode jumps"]
    assert all(float(accepted) > 10 for name, accepted in rows if name != "mode jumps")


def test_jumps_in_a_simulation_of_ase():
    accepted, changes = re.search(r"([0-9.]+)% of the jumps accepted, (\d+) changes", run("ase_jumps.py", "3000")).groups()
    assert float(accepted) > 60 and int(changes) > 0


def test_a_solute_in_a_bath_is_counted(tmp_path):
    out = run("solvated_jumps.py", "chain", "--steps", "0", "3", "--seconds", "0.03", "--output", str(tmp_path))
    rows = re.findall(r"\| chain \| (frozen|3 steps)[^|]*\| (\d+) \| (\d+) \|", out)
    assert [path for path, _, _ in rows] == ["frozen", "3 steps"]
    assert all(int(attempts) >= int(accepted) for _, attempts, accepted in rows) and (tmp_path / "summary.json").exists()
