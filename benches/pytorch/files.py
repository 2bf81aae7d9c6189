"""Reads the project's files."""

import json
import pathlib

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHIPPED = ROOT / "models/ala2/model.safetensors"


def read(path):
    """Returns the tensors and metadata of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    types = dict(F32=torch.float32, F64=torch.float64, I64=torch.int64)

    def tensor(entry):
        begin, end = entry["data_offsets"]
        return torch.frombuffer(bytearray(data[start + begin : start + end]), dtype=types[entry["dtype"]]).view(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items() if 0 not in entry["shape"]}, metadata


def golden(name):
    return read(ROOT / "tests/golden" / name)[0]
