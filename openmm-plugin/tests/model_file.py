"""Writes small model files without training: generators made of fixed layers only."""

import json
import struct


def write_model(path, coordinates, layers, uniform, *, topology=None, temperature=300.0, steering=None):
    """A safetensors file without tensors; the description says all. Returns the path as a string."""
    card = {
        "format": 1,
        "model": {"kind": "coupling", "config": {"uniform": uniform, "layers": layers}},
        "coordinates": coordinates,
        "exactness": "exact",
        "temperature": temperature,
        "topology": topology,
        "provenance": {"made_by": "openmm-plugin/tests/model_file.py"},
    }
    if steering is not None:
        card["steering"] = steering
    header = json.dumps({"__metadata__": {"modejump": json.dumps(card)}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return str(path)


def scale_layer(transformed, mean, sd):
    """u' = mean + sd u for each coordinate."""
    n = len(mean)
    matrix = [sd[i] if i == j else 0.0 for i in range(n) for j in range(n)]
    return {"type": "whiten", "transformed": transformed, "mean": list(mean), "matrix": matrix}
