"""modejump.Model and modejump.Bijection: samples, densities, and what they say of themselves."""

import warnings

import numpy as np
import pytest
import toy
from ctrl_c import ctrl_c_after
from double_well import ALA2, DOUBLE_WELL, MODELS
from openmm import unit

import modejump


def test_a_model_says_what_it_is(generator, ala2):
    assert (generator.dimension, generator.shape) == (2, (2,))
    assert (ala2.dimension, ala2.shape) == (66, (22, 3))
    assert ala2.metadata["model"]["kind"] == "coupling" and ala2.metadata["temperature"] == 300.0
    assert len(ala2.hash) == 32 and ala2.hash != generator.hash


def test_devices_are_found_by_name(monkeypatch):
    monkeypatch.setenv("MODEJUMP_DEVICE", "cpu")  # puts back what set_device changes
    modejump.set_device("cpu")
    assert modejump.device() == "cpu"
    assert modejump.Model(DOUBLE_WELL).device == "cpu"
    with pytest.raises(modejump.Error, match="toaster.*known devices: cpu, auto, cuda, cuda:N"):
        modejump.set_device("toaster")
    # no such card; but the library has kernels
    with pytest.raises(modejump.Error) as missing:
        modejump.set_device("cuda:99")
    assert "does not include the feature" not in str(missing.value)


def test_samples_come_with_their_density(ala2):
    x, log_q = ala2.sample(70, seed=3)
    assert x.shape == (70, 22, 3) and log_q.shape == (70,)
    assert np.abs(ala2.log_density(x) - log_q).max() < 1e-3  # single precision inside
    assert ala2.log_density(x[0]).shape == () and ala2.log_density(x.reshape(7, 10, 22, 3)).shape == (7, 10)
    again, _ = ala2.sample(20, seed=3, first=50)
    assert np.abs(again - x[50:]).max() < 1e-5
    assert np.isneginf(ala2.log_density(-x[0])), "D-alanine"
    assert np.isneginf(ala2.log_density(np.full((22, 3), np.nan)))


def test_hydrogens_that_are_numbered_the_other_way_round_are_named(ala2):
    x, _ = ala2.sample(1, seed=3)
    ala2.check_labels(x[0])
    exchanged = x[0].copy()
    exchanged[[11, 12]] = exchanged[[12, 11]]
    with pytest.raises(modejump.Error, match=r"ALA2:HB1 \(atom 12\) and ALA2:HB2 \(atom 13\)"):
        ala2.check_labels(exchanged)
    with pytest.raises(modejump.Error, match="found 3 coordinates"):
        ala2.check_labels(x[0, 0])


def test_a_start_in_another_unit_or_cut_by_a_box_is_named(ala2):
    x = ala2.sample(1, seed=3)[0][0]
    with pytest.raises(modejump.Error, match="pass positions in nm"):
        ala2.check_labels(10 * x)
    box = 3 * np.eye(3)
    cut = (x - x[8]) % 3
    with pytest.raises(modejump.Error, match="make the molecule whole, or pass the box"):
        ala2.check_labels(cut)
    ala2.check_labels(cut, box)
    ala2.check_labels(10 * cut * unit.angstrom, 10 * box * unit.angstrom)


def test_many_rows_are_those_of_several_calls(generator):
    n = 2 * modejump.model.ROWS + 10
    x, log_q = generator.sample(n, seed=4, first=7)
    y, log_p = generator.sample(30, seed=4, first=7 + n - 30)
    assert (x[-30:] == y).all() and (log_q[-30:] == log_p).all()
    assert (generator.log_density(x)[-30:] == generator.log_density(y)).all()
    assert all((a[-30:] == b).all() for a, b in zip(generator.log_density_gradient(x), generator.log_density_gradient(y)))
    assert generator.sample(0)[0].shape == (0, 2) and generator.log_density(np.empty((0, 2))).shape == (0,)


def test_ctrl_c_is_heard_between_the_rows_of_a_long_call(generator):
    with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.3):
        for _ in range(1000):
            generator.sample(20 * modejump.model.ROWS)


def test_images_of_many_configurations_are_those_of_several_calls(generator):
    same = modejump.Bijection(generator, generator)
    x, _ = generator.sample(modejump.model.ROWS + 10, seed=4)
    for of in (same.map, same.inverse):
        whole, part = of(x), of(x[-20:])
        assert all((a[-20:] == b).all() for a, b in zip(whole, part)) and np.abs(whole[0] - x).max() < 1e-5
    assert same.map(np.empty((0, 2)))[0].shape == (0, 2)


def test_the_gradient_is_that_of_the_density(generator):
    x, _ = generator.sample(50, seed=2)
    z, log_det, of_encoding = generator.encode(x)
    again, log_det_again, _ = generator.generate(z)
    assert z.shape == (len(x), generator.latent_dimension) and np.allclose(of_encoding, generator.log_density(x))
    assert np.allclose(again, x, atol=1e-3) and np.allclose(log_det, log_det_again, atol=1e-3)
    with pytest.raises(ValueError, match="latent points of shape"):
        generator.generate(z[0])
    log_q, gradient = generator.log_density_gradient(x)
    assert gradient.shape == x.shape and np.allclose(log_q, generator.log_density(x), atol=1e-4)
    h = 1e-3
    for axis in range(2):
        step = h * np.eye(2)[axis]
        slope = (generator.log_density(x + step) - generator.log_density(x - step)) / (2 * h)
        # at the knots of a spline the gradient jumps, so differences across them are something in between
        assert np.isclose(gradient[:, axis], slope, atol=0.2, rtol=0.05).mean() > 0.8


def test_a_tarflow_warns_of_centroids_that_are_not_its_noise(tarflow):
    """Its log q depends on the centroid: that of frames of a simulation, which are anywhere, means nothing in a weight."""
    model = modejump.Model(tarflow)
    assert model.centroid_noise == pytest.approx(0.05 / np.sqrt(5)) and modejump.Model(ALA2).centroid_noise == 0
    x, log_q = model.sample(4, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(model.log_density(x) - log_q).max() < 1e-3
        modejump.Model(ALA2).log_density(modejump.Model(ALA2).sample(1)[0] + 1.0)
    for evaluate in (model.log_density, model.log_density_gradient, model.encode):
        with pytest.warns(UserWarning, match="centroids of x are up to 1.0. nm from the origin"):
            evaluate(x + 1.0)


def test_configurations_of_atoms_without_names(tarflow):
    model = modejump.Model(tarflow)
    x, log_q = model.sample(4, seed=3)
    assert model.shape == (15,) and np.abs(model.log_density(x.reshape(4, 5, 3)) - log_q).max() < 1e-3
    with pytest.raises(ValueError, match="expected configurations of shape"):
        model.log_density(x.reshape(4, 3, 5))
    for call, argument in ((model.log_density, x), (model.generate, x.reshape(4, 15))):
        with pytest.raises(TypeError, match="complex"):
            call(argument + 0j)


def test_one_configuration_of_three_coordinates_keeps_its_axis(tmp_path):
    model = modejump.Model(toy.write_box_model(tmp_path / "box.safetensors", -1.0, 1.0))
    for n in (1, 2, 3):
        x, log_q = model.sample(n, seed=3)
        found, gradient = model.log_density_gradient(x)
        assert found.shape == model.log_density(x).shape == (n,) and gradient.shape == x.shape == (n, 3)
        assert np.allclose(found, log_q)


def test_a_tarflow_in_other_precisions(tarflow):
    x, log_q = modejump.Model(tarflow).sample(20, seed=3)
    double, rounded = (modejump.Model(tarflow, precision=p).log_density(x) for p in ("f64", "bf16"))
    assert 0 < np.abs(log_q - double).max() < 1e-3 < np.abs(rounded - double).max() < 1
    x, log_q = modejump.Model(tarflow, precision="bf16").sample(20, seed=3)
    assert np.abs(modejump.Model(tarflow, precision="bf16").log_density(x) - log_q).max() < 1e-3


def test_samples_of_a_tarflow_by_iteration_are_those_in_turn_within_the_tolerance(tarflow):
    in_turn = modejump.Model(tarflow, precision="f64")
    x, _ = in_turn.sample(20, seed=3)
    for settings in ({"decoding": "jacobi"}, {"decoding": "gauss_seidel", "segment": 3}):
        y, log_q = modejump.Model(tarflow, precision="f64", decoding_tolerance=1e-3, **settings).sample(20, seed=3)
        assert np.abs(x - y).max() < 1e-3 and np.abs(log_q - in_turn.log_density(y)).max() < 1e-9
    y, _ = modejump.Model(tarflow, precision="f64", decoding="jacobi", decoding_passes=1).sample(20, seed=3)
    assert (y == x).all(), "one pass is not enough"


def test_an_energy_has_no_samples():
    energy = modejump.Model(MODELS / "ala2" / "invariant-ebm.safetensors")
    with pytest.raises(modejump.Error, match="cannot draw samples"):
        energy.sample(1)
    x, _ = modejump.Model(ALA2).sample(3)
    assert np.isfinite(energy.log_density(x)).all()
