"""Writes small model files without training."""

import json
import struct

import numpy as np


def write_model(path, coordinates, layers, uniform, *, topology=None, temperature=300.0, steering=None):
    """A coupling flow of fixed layers only, without tensors; the description says all. Returns the path as a string."""
    model = {"kind": "coupling", "config": {"uniform": uniform, "layers": layers}}
    return write_file(path, model, coordinates, {}, topology=topology, temperature=temperature, steering=steering)


def write_file(path, model, coordinates, tensors, *, topology=None, temperature=300.0, steering=None):
    """A safetensors file with arrays `tensors` by their names, in f64. Returns the path as a string."""
    card = {
        "format": 1,
        "model": model,
        "coordinates": coordinates,
        "exactness": "exact",
        "temperature": temperature,
        "topology": topology,
        "provenance": {"made_by": "openmm-plugin/tests/model_file.py"},
    }
    if steering is not None:
        card["steering"] = steering
    entries, data = {"__metadata__": {"modejump": json.dumps(card)}}, b""
    for name, array in tensors.items():
        bytes_ = np.asarray(array, dtype="<f8").tobytes()
        entries[name] = {"dtype": "F64", "shape": np.shape(array), "data_offsets": [len(data), len(data) + len(bytes_)]}
        data += bytes_
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return str(path)


def scale_layer(transformed, mean, sd):
    """u' = mean + sd u for each coordinate."""
    n = len(mean)
    matrix = [sd[i] if i == j else 0.0 for i in range(n) for j in range(n)]
    return {"type": "whiten", "transformed": transformed, "mean": list(mean), "matrix": matrix}


def write_tarflow(path, n, sd, *, stretch=1.0, spread=0.0, topology=None):
    """Of n atoms, whose coordinates have the standard deviation sd, nm: one block whose layers are without effect, so that every token is left
    as it is, but for the first all are stretched; with a spread of the weights their effect is random."""
    c, prefix, rng = 4, "blocks.0.attn_blocks.0", np.random.default_rng(3)
    matrices = {"attention.qkv": (3 * c, c), "attention.proj": (c, c), "mlp.main.0": (c, c), "mlp.main.3": (c, c)}
    matrices = {f"{prefix}.{name}": shape for name, shape in matrices.items()} | {"blocks.0.proj_in": (c, 3), "blocks.0.proj_out": (6, c)}
    tensors = {"blocks.0.pos_embed": spread * rng.normal(size=(n, c))}
    for name, shape in matrices.items():
        tensors |= {f"{name}.weight": spread * rng.normal(size=shape), f"{name}.bias": np.zeros(shape[0])}
    for name in ("attention.norm", "mlp.norm"):
        tensors |= {f"{prefix}.{name}.weight": np.ones(c), f"{prefix}.{name}.bias": np.zeros(c)}
    tensors["blocks.0.proj_out.bias"][:3] = np.log(stretch)
    sizes = {"tokens": n, "token_size": 3, "channels": c, "blocks": 1, "layers": 1, "heads": 1, "expansion": 1}
    config = {"network": sizes, "units_per_nm": 1 / sd, "centroid": 1 / np.sqrt(n)}
    coordinates = {"kind": "cartesian", "dimension": 3 * n}
    return write_file(path, {"kind": "tarflow", "config": config}, coordinates, tensors, topology=topology)
