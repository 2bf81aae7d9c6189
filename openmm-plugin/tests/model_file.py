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
