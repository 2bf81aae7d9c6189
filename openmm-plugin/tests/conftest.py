import pytest

import modejump
from double_well import ALA2, DOUBLE_WELL
from model_file import write_tarflow
from peroxide import PEROXIDE, write_peroxide_model
from toy import write_gaussian_model


@pytest.fixture(scope="session")
def generator():
    """Of the double well."""
    return modejump.Model(DOUBLE_WELL)


@pytest.fixture(scope="session")
def ala2():
    return modejump.Model(ALA2)


@pytest.fixture(scope="session")
def tarflow(tmp_path_factory):
    """Of five atoms, with weights that depend on the orientation and are no numbers of bfloat16."""
    return write_tarflow(tmp_path_factory.mktemp("tarflow") / "tarflow.safetensors", 5, 0.05, spread=0.2)


@pytest.fixture(scope="session")
def peroxide_model(tmp_path_factory):
    """Generator of hydrogen peroxide: Gaussian bonds and angles, any torsion."""
    return write_peroxide_model(tmp_path_factory.mktemp("models") / "peroxide.safetensors")


@pytest.fixture(scope="session")
def rigid_model(tmp_path_factory):
    """The same with O-H bonds of constant length."""
    path = tmp_path_factory.mktemp("models") / "rigid.safetensors"
    return write_peroxide_model(path, constraints=[[0, 1, PEROXIDE.oh], [2, 3, PEROXIDE.oh]])


@pytest.fixture(scope="session")
def gaussian_model(tmp_path_factory):
    """Generator of one particle in the harmonic well of toy.well_system, exactly."""
    return write_gaussian_model(tmp_path_factory.mktemp("models") / "gaussian.safetensors")
