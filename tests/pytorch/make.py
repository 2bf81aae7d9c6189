"""Makes the PyTorch files that the tests read, without PyTorch.

Classes and functions under PyTorch's names stand in for its own, so that Python's pickle writes what torch.save writes: a zip
archive (stored, not compressed) with NAME/data.pkl, NAME/byteorder, NAME/data/KEY and NAME/version.

usage: python3 tests/pytorch/make.py     (writes beside this file)

negated.pt is PyTorch's own (2.15): torch.save({"w": torch._neg_view(torch.tensor([1.0, -2.0]))}, "negated.pt").
"""
import collections
import io
import json
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile

HERE = pathlib.Path(__file__).parent


def module(name):
    sys.modules[name] = types.ModuleType(name)
    return sys.modules[name]


TORCH, UTILS = module("torch"), module("torch._utils")


def _stand_in(*_):
    raise RuntimeError("only its name is written")


def function(owner, name):
    f = types.FunctionType(_stand_in.__code__, globals(), name)
    f.__module__, f.__qualname__ = owner.__name__, name
    setattr(owner, name, f)
    return f


REBUILD_TENSOR = function(UTILS, "_rebuild_tensor_v2")
REBUILD_PARAMETER = function(UTILS, "_rebuild_parameter")


class Storage:
    def __init__(self, kind, key, data, width):
        self.kind = getattr(TORCH, kind, None) or type(kind, (), {"__module__": "torch"})
        setattr(TORCH, kind, self.kind)
        self.key, self.data, self.numel = key, data, len(data) // width


class Tensor:
    def __init__(self, storage, offset, shape, stride):
        self.arguments = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce_ex__(self, protocol):
        return (REBUILD_TENSOR, self.arguments)


class Parameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce_ex__(self, protocol):
        return (REBUILD_PARAMETER, (self.tensor, True, collections.OrderedDict()))


class Hostile:
    """Unpickled by Python, this would run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return (os.system, (self.command,))


class Hyperparameters(dict):
    """A class of the training program, as Lightning's checkpoints hold."""


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return ("storage", value.kind, value.key, "cpu", value.numel)
        return None


def save(path, content, storages, protocol=2):
    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(content)
    root = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        def write(name, data):
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}", (1980, 1, 1, 0, 0, 0)), data)

        write("data.pkl", buffer.getvalue())
        write("byteorder", b"little")
        for storage in storages:
            write(f"data/{storage.key}", storage.data)
        write("version", b"3\n")


class Storages(list):
    def add(self, kind, code, values):
        data = values if code is None else struct.pack(f"<{len(values)}{code}", *values)
        width = {"BFloat16Storage": 2, "BoolStorage": 1}.get(kind) or struct.calcsize(code)
        self.append(Storage(kind, str(len(self)), data, width))
        return self[-1]


def types_and_views(path, protocol):
    """One tensor of every type, and views: transposed, with an offset, expanded, a scalar, empty, shared storage."""
    storages = Storages()
    whole = lambda kind, code, values, n=None: Tensor(
        storages.add(kind, code, values), 0, (n or len(values),), (1,))
    matrix = storages.add("FloatStorage", "f", [float(i) for i in range(12)])
    state = collections.OrderedDict()
    state["net.0.weight"] = Tensor(matrix, 0, (3, 4), (4, 1))
    state["transposed"] = Tensor(matrix, 0, (4, 3), (1, 4))
    state["column"] = Parameter(Tensor(matrix, 1, (3,), (4,)))
    state["expanded"] = Tensor(matrix, 5, (2, 2), (0, 1))
    state["scalar"] = Tensor(matrix, 11, (), ())
    state["empty"] = Tensor(matrix, 0, (0, 4), (4, 1))
    state["f64"] = whole("DoubleStorage", "d", [0.1, -2.5e300])
    state["f16"] = whole("HalfStorage", "e", [1.0, -0.333251953125, 65504.0, 2.0 ** -24])
    state["bf16"] = whole("BFloat16Storage", None, bytes([0x80, 0x3f, 0x49, 0xc0]), 2)
    state["i64"] = whole("LongStorage", "q", [-(2 ** 40), 3])
    state["i32"] = whole("IntStorage", "i", [-7, 2 ** 31 - 1])
    state["u8"] = whole("ByteStorage", "B", [0, 255])
    state["bool"] = whole("BoolStorage", None, bytes([1, 0]), 2)
    checkpoint = {
        "state_dict": state,
        "epoch": 3, "loss": -1.25, "big": 2 ** 100, "long": -(2 ** 40), "flag": True, "nothing": None,
        "names": ["a", ("b", "c")],
        "optimizer": {"state": {0: {"exp_avg": Tensor(matrix, 4, (2,), (1,))}}},
        "list": [1, Tensor(matrix, 8, (1,), (1,))],
        "hyper": Hyperparameters(rate=1e-3, inner=Tensor(matrix, 9, (1,), (1,))),
    }
    save(path, checkpoint, storages, protocol)


def hostile(path, evidence):
    storages = Storages()
    weight = Tensor(storages.add("FloatStorage", "f", [1.5]), 0, (1,), (1,))
    save(path, {"weight": weight, "trap": Hostile(f"touch {evidence}")}, storages)


def unread(path):
    """A tensor of a type that is not read, beside a network's."""
    storages = Storages()
    weight = Tensor(storages.add("FloatStorage", "f", [1.5]), 0, (1,), (1,))
    tokens = Tensor(storages.add("UInt16Storage", "H", [1, 2]), 0, (2,), (1,))
    save(path, {"net": {"weight": weight}, "tokens": tokens}, storages)


def generator(path, source):
    """The checkpoint inside a golden file (its arrays `w.…`), as Lightning would keep it."""
    data = source.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    storages, state = Storages(), collections.OrderedDict()
    for name, entry in sorted(header.items()):
        if not name.startswith("w."):
            continue
        begin, end = entry["data_offsets"]
        kind, code = {"F64": ("DoubleStorage", "d"), "I64": ("LongStorage", "q")}[entry["dtype"]]
        values = struct.unpack(f"<{(end - begin) // 8}{code}", data[8 + n + begin:8 + n + end])
        stride, step = [], 1
        for size in reversed(entry["shape"]):
            stride.insert(0, step)
            step *= size
        state["flow." + name[2:]] = Tensor(
            storages.add(kind, code, values), 0, tuple(entry["shape"]), tuple(stride))
    save(path, {"epoch": 100, "state_dict": state}, storages)


if __name__ == "__main__":
    types_and_views(HERE / "types.pt", 2)
    types_and_views(HERE / "types-protocol4.pt", 4)
    hostile(HERE / "hostile.pt", "modejump-was-executed")
    unread(HERE / "unread.pt")
    generator(HERE / "icbg.ckpt", HERE / "../golden/flows/icbg_ala2_flex_idinit.safetensors")
