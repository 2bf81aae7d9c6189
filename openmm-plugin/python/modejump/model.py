"""Model files: generators with their densities, and maps between two of them; numpy in, numpy out.

Lengths are in nm, or OpenMM Quantities; logarithms are natural. Molecules have the shape (atoms, 3), models of abstract
coordinates (dimension,).
"""

import json
import os
import warnings
from ctypes import POINTER, byref, c_char_p, c_double, c_uint32, c_uint64, c_void_p

import numpy as np
from openmm import unit

from ._core import _box_of, _call, _handle_of, _ModelOptions, _pointer, _real, _SharedOwner, _whole
from .units import in_unit

PRECISIONS = ("f32", "f64", "bf16")
DECODINGS = ("sequential", "jacobi", "gauss_seidel")
ROWS = 4096  # of one call into the library, between which Ctrl-C is heard
FARTHEST_CENTROID = 8  # standard deviations: less likely than 1e-14


def set_device(name):
    """Sets where models loaded from now on run: "cpu", "auto" (a GPU, if there is one), "cuda" or "cuda:N". Raises Error if there
    is no such device. The models of MonteCarloModeJump are loaded when a Context is created.
    """
    if not isinstance(name, str):
        raise TypeError(f'expected the name of a device, such as "cuda:0", found {name!r}')
    _call("set_device", name.encode())
    os.environ["MODEJUMP_DEVICE"] = name  # for the plugin, which is a library of its own


def _parts(n):
    """Slices of n rows, each for one call into the library; one at least, so that a call checks its arguments."""
    return [slice(start, min(start + ROWS, n)) for start in range(0, max(n, 1), ROWS)]


def device():
    """Where models loaded from now on run: "cpu", or the name of a GPU."""
    name = c_char_p()
    _call("device", byref(name))
    return name.value.decode()


class Model(_SharedOwner):
    """A model file: a generator with its density, or an energy-based model.

    Raises Error if there is no such file, if it is malformed, or if an option does not apply to this kind of model.

    Parameters
    ----------
    path : str or path
    precision : "f32", "f64" or "bf16"
        Precision of the networks. "bf16", for a TarFlow: single precision with weights rounded to bfloat16, so that single
        samples take about half the time; the density differs from that of the file, and is exact in itself.
    decoding : "sequential", "jacobi" or "gauss_seidel"
        How a TarFlow computes its samples: token after token, all together by iteration, or in segments by iteration. Their log q
        is exact in any case.
    segment : int, optional
        For "gauss_seidel": tokens per segment.
    decoding_tolerance : float, optional
        For iterative decoding: largest error of the latent point, at most 1e-3, beyond rounding (some 1e-5 in "f32").
    decoding_passes : int, optional
        For iterative decoding: maximum number of passes; a sample that needs more is decoded token after token.

    Attributes
    ----------
    dimension : int
        Number of coordinates of a configuration.
    shape, move_shape : tuple of int
        Shape of a configuration: (atoms, 3), or (dimension,) for abstract coordinates; and its shape in a Move, without auxiliary
        coordinates.
    auxiliary : int
        Number of auxiliary coordinates, which come last.
    latent_temperature : float
        For a steerable model, its temperature divided by that of its training; 0 for a model with a fixed temperature.
    centroid_noise : float
        Standard deviation, nm, of each component of the centroid of x if that is noise, as in a TarFlow; else 0. Moves take care of
        it. Before log_density is used in a weight, center every configuration and shift it by such noise.
    metadata : dict
        Description of the model in its file: kind, coordinates, topology, temperature, provenance.
    hash : str
        Hash of the bytes of the file, hexadecimal.
    device : str
        Where the model runs: "cpu", or the name of a GPU.
    """

    _free, _origin = "modejump_model_free", "load it with modejump.Model(path)"

    def __init__(
        self,
        path,
        *,
        precision="f32",
        decoding="sequential",
        segment=None,
        decoding_tolerance=None,
        decoding_passes=None,
    ):
        if precision not in PRECISIONS or decoding not in DECODINGS:
            names = "; ".join(", ".join(names) for names in (PRECISIONS, DECODINGS))
            raise ValueError(f"unknown precision {precision!r} or decoding {decoding!r}; known values: {names}")
        if segment is not None and decoding != "gauss_seidel":
            raise ValueError("segment requires the decoding gauss_seidel")
        if decoding == "sequential" and (decoding_tolerance, decoding_passes) != (None, None):
            raise ValueError("decoding_tolerance and decoding_passes require the decoding jacobi or gauss_seidel")
        options, handle = _ModelOptions(), c_void_p()
        _call("model_options_init", byref(options))
        options.precision, options.decoding = PRECISIONS.index(precision), DECODINGS.index(decoding)
        chosen = {"segment": segment, "decoding_tolerance": decoding_tolerance, "decoding_passes": decoding_passes}
        for name, value in chosen.items():
            if value is not None:
                setattr(options, name, value)
        path = os.fsencode(path)
        if b"\0" in path:
            raise ValueError(f"invalid path {path!r}: it contains a null byte")
        _call("model_load_with", path, byref(options), byref(handle))
        self._own(handle)

    def _own(self, handle):
        self._handle = handle
        dimension, text = c_uint64(), c_char_p()
        _call("model_dimension", self._handle, byref(dimension))
        _call("model_metadata", self._handle, byref(text))
        self.dimension = dimension.value
        self.metadata = json.loads(text.value)
        _call("model_hash", self._handle, byref(text))
        self.hash = text.value.decode()
        _call("model_device", self._handle, byref(text))
        self.device = text.value.decode()
        sigma = c_double()
        _call("model_centroid_noise", self._handle, byref(sigma))
        self.centroid_noise = sigma.value
        variance, auxiliary = c_double(), c_uint64()
        _call("model_steering", self._handle, byref(variance), byref(auxiliary))
        self.latent_temperature = variance.value
        self.auxiliary = auxiliary.value
        molecule = self.metadata.get("topology") is not None or self.metadata["coordinates"]["kind"] != "cartesian"
        self.move_shape = self._shape_of(self.dimension - self.auxiliary, molecule)
        self.shape = self._shape_of(self.dimension, molecule and self.auxiliary == 0)

    @staticmethod
    def _shape_of(dimension, molecule):
        return (dimension // 3, 3) if molecule else (dimension,)

    def at_temperature(self, kelvin):
        """The steerable model at a temperature, K: samples and densities are those of that temperature. Raises Error for other models."""
        handle, kelvin = c_void_p(), in_unit(kelvin, unit.kelvin, "the temperature")
        _call("model_at_temperature", self._handle, c_double(kelvin), byref(handle))
        model = Model.__new__(Model)
        model._own(handle)
        return model

    def _rows(self, x):
        """x as float64 [n][dimension], and the shape of an array with one value per configuration."""
        x = np.ascontiguousarray(_real(in_unit(x, unit.nanometer, "the configuration")), dtype=np.float64)
        k = len(self.shape)
        atoms = (self.dimension // 3, 3)  # also taken for a model without names of atoms
        if self.shape == (3 * atoms[0],) and self.dimension > 3 and x.shape[-2:] == atoms:
            k = 2
        elif x.ndim < k or x.shape[x.ndim - k :] != self.shape:
            raise ValueError(f"expected configurations of shape {self.shape}, found an array of shape {x.shape}")
        return x.reshape(-1, self.dimension), x.shape[: x.ndim - k]

    def _warn_of_centroids(self, rows):
        """Warns of configurations whose centroid is not the noise that it is for this model."""
        if self.centroid_noise and len(rows):
            centroids = rows.reshape(len(rows), -1, 3).mean(axis=1)
            farthest = np.abs(np.where(np.isfinite(centroids), centroids, 0.0)).max()
            if farthest > FARTHEST_CENTROID * self.centroid_noise:
                warnings.warn(
                    f"centroids of x are up to {farthest:.3g} nm from the origin, but for this model they are noise with a standard "
                    f"deviation of {self.centroid_noise:.3g} nm (centroid_noise): center the configurations and add such noise",
                    stacklevel=3,
                )

    def sample(self, n, seed=1, first=0):
        """x [n, *shape] in nm and log q [n] of samples number first to first + n - 1 of the sequence that belongs to the seed.

        log q = -inf marks a sample that must not be used. The volume that densities refer to differs between kinds of models by a
        constant, given in docs/comparing.md. Raises Error for an energy-based model, which has no samples.
        """
        seed, first, n = (_whole(value, name) for name, value in (("seed", seed), ("first", first), ("n", n)))
        x, log_density = np.empty((n, *self.shape)), np.empty(n)
        for rows in _parts(n):
            numbers = seed, (first + rows.start) % 2**64, rows.stop - rows.start
            _call("model_sample", self._handle, *map(c_uint64, numbers), _pointer(x[rows]), _pointer(log_density[rows]))
        return x, log_density

    def log_density(self, x):
        """log q of each configuration in x [..., *shape]; -inf where the density is zero or undefined."""
        rows, shape = self._rows(x)
        self._warn_of_centroids(rows)
        log_density = np.empty(len(rows))
        for part in _parts(len(rows)):
            x = rows[part]
            _call("model_log_density", self._handle, c_uint64(len(x)), _pointer(x), _pointer(log_density[part]))
        return log_density.reshape(shape)[()]

    @property
    def latent_dimension(self):
        """Number of latent coordinates of a flow. Raises Error for a model without a latent space, as do generate and encode."""
        latent = c_uint64()
        _call("model_latent_dimension", self._handle, byref(latent))
        return latent.value

    def generate(self, z):
        """Maps latent points z [n, latent_dimension] to x [n, *shape]; also returns ln|∂x/∂z| [n] and log q [n], -inf where there
        is no configuration in the support. A point that is not finite gives an x that is not finite."""
        latent = self.latent_dimension
        z = np.ascontiguousarray(_real(z), dtype=np.float64)
        if z.ndim != 2 or z.shape[1] != latent:
            raise ValueError(f"expected latent points of shape (n, {latent}), found an array of shape {z.shape}")
        n = len(z)
        x, log_det, log_density = np.full((n, *self.shape), np.nan), np.empty(n), np.empty(n)
        for part in _parts(n):
            pointers = (_pointer(array[part]) for array in (z, x, log_det, log_density))
            _call("model_generate", self._handle, c_uint64(part.stop - part.start), *pointers)
        return x, log_det, log_density

    def encode(self, x):
        """Maps configurations x [n, *shape] to latent points z [n, latent_dimension]; also returns ln|∂x/∂z| [n] and log q [n].
        Where log q is -inf there is no latent point, and z is meaningless or NaN."""
        rows, _ = self._rows(x)
        self._warn_of_centroids(rows)
        n = len(rows)
        z, log_det, log_density = np.full((n, self.latent_dimension), np.nan), np.empty(n), np.empty(n)
        for part in _parts(n):
            pointers = (_pointer(array[part]) for array in (rows, z, log_det, log_density))
            _call("model_encode", self._handle, c_uint64(part.stop - part.start), *pointers)
        return z, log_det, log_density

    def check_labels(self, x, box=None):
        """Raises Error, naming the atoms, if no jump from the configuration x [*move_shape] is accepted: positions in another unit,
        atoms in another order, equivalent atoms, such as the hydrogens of a CH2 or CH3 group, that are numbered differently from the
        frames of the model, a stereocentre of the opposite handedness, or a bond of another length than the model keeps. With
        `box`, nm, which has the box vectors as rows, the molecule is made whole first."""
        box = _box_of(box)
        x = np.ascontiguousarray(_real(in_unit(x, unit.nanometer, "the configuration")), dtype=np.float64)
        _call("model_check_labels", self._handle, c_uint64(x.size), _pointer(x), None if box is None else _pointer(box))

    def log_density_gradient(self, x):
        """log q [...] and its gradient with respect to x [..., *shape], 1/nm; the gradient is zero where log q is -inf."""
        rows, shape = self._rows(x)
        self._warn_of_centroids(rows)
        log_density, gradient = np.empty(len(rows)), np.empty_like(rows)
        for part in _parts(len(rows)):
            pointers = (_pointer(rows[part]), _pointer(log_density[part]), _pointer(gradient[part]))
            _call("model_log_density_gradient", self._handle, c_uint64(len(rows[part])), *pointers)
        return log_density.reshape(shape)[()], gradient.reshape(*shape, *self.shape)


class Bijection(_SharedOwner):
    """The invertible map f = T_to ∘ T_from⁻¹ of two flows with a common latent space, from the configurations of one to those of
    the other.

    A map in internal coordinates changes only the shape of a molecule; every image has the frame of its original. Raises Error
    for models without a latent space, or with different atoms, latent spaces or frames.
    """

    _free, _origin = "modejump_bijection_free", "create it with modejump.Bijection(from_, to) from two Models"

    def __init__(self, from_, to):
        handles = _handle_of(from_, Model, "from_"), _handle_of(to, Model, "to")
        self._handle = c_void_p()
        _call("bijection_new", *handles, byref(self._handle))
        self.from_, self.to = from_, to

    def map(self, x):
        """f(x) [..., *shape] of whole molecules x, nm, and ln |df/dx| [...]; if x has no image, x itself and -inf."""
        return self._images(x, 0)

    def inverse(self, y):
        """f⁻¹(y) and ln |df⁻¹/dy|, as for `map`."""
        return self._images(y, 1)

    def _images(self, x, inverse):
        rows, shape = self.from_._rows(x)
        y, log_det, status = np.empty_like(rows), np.empty(len(rows)), np.empty(len(rows), dtype=np.uint32)
        for part in _parts(len(rows)):
            pointers = (*map(_pointer, (rows[part], y[part], log_det[part])), status[part].ctypes.data_as(POINTER(c_uint32)))
            _call("bijection_map", self._handle, c_uint32(inverse), c_uint64(len(rows[part])), *pointers)
        return y.reshape(*shape, *self.from_.shape), log_det.reshape(shape)[()]
