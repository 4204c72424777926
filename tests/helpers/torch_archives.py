"""Torch archives made by hand, without torch: pickles put together from opcodes, in a plain zip."""

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

START, STOP = b"\x80\x02", b"."


def pickled(value: Any) -> bytes:
    """Opcodes that make a plain value: text, numbers, None, lists, tuples, dicts, `Raw`."""
    if isinstance(value, Raw):
        return value.code
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8b" + struct.pack("<i", len(data)) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, dict):
        return b"}(" + b"".join(pickled(k) + pickled(v) for k, v in value.items()) + b"u"
    inner = b"".join(map(pickled, value))
    return b"](" + inner + b"e" if isinstance(value, list) else b"(" + inner + b"t"


class Raw:
    """Opcodes as they are, where `pickled` expects a value."""

    def __init__(self, code: bytes) -> None:
        self.code = code


def called(name: str, *args: Any) -> Raw:
    """A call of ``module.name``."""
    module, _, function = name.rpartition(".")
    return Raw(f"c{module}\n{function}\n".encode() + pickled(tuple(args)) + b"R")


def tensor(
    key: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    kind: str = "FloatStorage",
) -> Raw:
    """A tensor in the storage ``key``, contiguous unless strides are given."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = pickled(("storage", Raw(f"ctorch\n{kind}\n".encode()), key, "cpu", 0)) + b"Q"
    hooks = called("collections.OrderedDict")
    return called(
        "torch._utils._rebuild_tensor_v2", Raw(storage), offset, shape, strides, False, hooks
    )


def archive(data_pkl: bytes, storages: Mapping[str, bytes]) -> bytes:
    """The bytes of a file as torch.save writes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("m/data.pkl", data_pkl)
        out.writestr("m/byteorder", "little")
        for key, data in storages.items():
            out.writestr(f"m/data/{key}", data)
    return file.getvalue()


def model_file(tensors: Mapping[str, np.ndarray], **outer: Any) -> bytes:
    """A checkpoint of parameters under "model", each in a storage of its own."""
    state = {name: tensor(str(i), t.shape) for i, (name, t) in enumerate(tensors.items())}
    storages = {str(i): t.tobytes() for i, t in enumerate(tensors.values())}
    return archive(START + pickled({"model": state, **outer}) + STOP, storages)
