import pytest

from peroxide import PEROXIDE, write_peroxide_model
from toy import write_gaussian_model


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
