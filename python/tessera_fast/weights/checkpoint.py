"""Checkpoint files, without torch: what is in a .pt or .safetensors file, and writing the latter.

A torch archive is a zip with a pickle, data.pkl, that says which slices of which raw entries are
which tensors; unpickle.py reads it as data. Tensors are views on a memory map of the file.
"""

import hashlib
import json
import math
import mmap
import os
import secrets
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError, WeightsError
from ..suggest import one_of
from .unpickle import Opaque, TensorRecord, unpickle

_TORCH_DTYPES = {
    "torch.FloatStorage": "<f4", "torch.HalfStorage": "<f2", "torch.BFloat16Storage": "bf16",
    "torch.DoubleStorage": "<f8", "torch.LongStorage": "<i8", "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2", "torch.CharStorage": "|i1", "torch.ByteStorage": "|u1",
    "torch.BoolStorage": "|b1",
}  # fmt: skip
_SAFETENSORS_DTYPES = {
    "F32": "<f4", "F16": "<f2", "BF16": "bf16", "F64": "<f8", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1", "U16": "<u2", "U32": "<u4",
    "U64": "<u8",
}  # fmt: skip
_FLOATS = ("<f4", "<f2", "bf16", "<f8")
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: where its values lie. Nothing is read before :meth:`read`."""

    dtype: str  # a numpy dtype, "bf16", or the name of one that is not supported
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    offset: int  # of the first element, in elements
    raw: np.ndarray | None  # uint8, the bytes of the storage; None: not in the file

    def read(self) -> np.ndarray:
        """The values as float32, C-contiguous and aligned: a view of the file where they are so.

        ValueError says what is wrong with the record.
        """
        if self.dtype not in _FLOATS:
            raise ValueError(f"expected float32, float16, bfloat16 or float64, got {self.dtype}")
        if self.raw is None:
            raise ValueError("its storage is not in the file")
        item = _itemsize(self.dtype)
        if len(self.shape) != len(self.strides) or min((*self.shape, *self.strides, 0)) < 0:
            raise ValueError(f"bad shape {self.shape} or strides {self.strides}")
        size = math.prod(self.shape)
        if size == 0:
            return np.zeros(self.shape, np.float32)
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        end = max(self.offset + last + 1, size) * item  # values may lie apart, not coincide
        if self.offset < 0 or end > self.raw.size:
            raise ValueError(f"needs {end} bytes of a storage of {self.raw.size}")
        values = self.raw[self.offset * item : end]
        values = values.view("<u2" if self.dtype == "bf16" else self.dtype)
        steps = tuple(s * item for s in self.strides)
        view = np.lib.stride_tricks.as_strided(values, self.shape, steps, writeable=False)
        if self.dtype == "bf16":  # the upper half of a float32
            return (view.astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf: the caller checks
            return np.require(view, np.float32, ["C", "A"])


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, unjudged."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any] = field(default_factory=dict)  # "args", "arch" or "config"
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file


def digest(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks; WeightsError if it cannot be read."""
    state = hashlib.sha256()
    try:
        with path.open("rb") as f:
            while block := f.read(1 << 20):
                state.update(block)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    return state.hexdigest()


def read(path: Path) -> Checkpoint:
    """Map a checkpoint file; its first bytes decide the format, not its name.

    WeightsError for a file that is absent, unsafe, truncated or of another format.
    """
    try:
        with path.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    start = bytes(data[:24])
    raw = np.frombuffer(data, np.uint8)
    if start.startswith(b"PK"):
        return _read_torch(path, raw)
    if len(start) > 8 and start[8:9] == b"{":
        return _read_safetensors(path, raw)
    if start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    elif start.startswith(b"\x80"):
        what = (
            "a bare pickle or a file of torch < 1.6, which is not read; load it with torch in an "
            "environment where you trust it, and save it again with torch.save"
        )
    else:
        what = f"expected a torch archive or safetensors, got {size} bytes of something else"
    raise WeightsError(f"{path}: {what}")


# ---- torch archives


def _read_torch(path: Path, raw: np.ndarray) -> Checkpoint:
    entries = _zip_entries(path, raw)
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightsError(f"{path}: expected one data.pkl in the archive, got {len(roots)}")
    root = roots[0]
    if f"{root}byteorder" in entries and entries[f"{root}byteorder"].tobytes() != b"little":
        raise WeightsError(f"{path}: expected little-endian values; save it on such a machine")
    try:
        content = unpickle(entries[f"{root}data.pkl"].tobytes())
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    state, config = outer(path, content)
    tensors = {
        name: StoredTensor(
            _TORCH_DTYPES.get(t.storage.kind, t.storage.kind),
            t.shape,
            t.strides,
            t.offset,
            entries.get(f"{root}data/{t.storage.key}"),
        )
        for name, t in state.items()
        if isinstance(t, TensorRecord)
    }
    return Checkpoint(path, tensors, config)


def outer(path: Path, content: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The state dict and the configuration of a torch file; a bare state dict will do."""
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a dict, got {type(content).__name__}")
    keys = ("model", "encoder_state_dict", "model_state", "model_state_dict")
    states = [content[key] for key in keys if isinstance(content.get(key), dict)]
    if not states and any(isinstance(v, TensorRecord) for v in content.values()):
        states = [content]
    if not states:
        found = ", ".join(repr(k) for k in list(content)[:8] if isinstance(k, str))
        raise WeightsError(f"{path}: expected a dict under one of {keys}, got keys {found or None}")
    state = {name: value for name, value in states[0].items() if isinstance(name, str)}
    for key in ("args", "arch", "config"):
        config = content.get(key)
        if isinstance(config, Opaque):  # argparse.Namespace: its state is its attributes
            config = config.state
        if isinstance(config, dict):
            return state, config
    return state, {}


def _zip_entries(path: Path, raw: np.ndarray) -> dict[str, np.ndarray]:
    """The bytes of every entry, as views. torch stores entries uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise WeightsError(f"{path}: not a whole zip archive, truncated? ({error})") from error
    entries = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise WeightsError(f"{path}: {info.filename} is compressed; torch stores it as it is")
        header = raw[info.header_offset : info.header_offset + 30].tobytes()
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise WeightsError(f"{path}: the zip entry {info.filename} is damaged")
        n_name, n_extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + 30 + n_name + n_extra
        if start + info.file_size > raw.size:
            raise WeightsError(f"{path}: the zip entry {info.filename} is truncated")
        entries[info.filename] = raw[start : start + info.file_size]
    return entries


# ---- safetensors: 8 bytes of header length, a JSON header, the values


def _read_safetensors(path: Path, raw: np.ndarray) -> Checkpoint:
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if length > min(raw.size - 8, _MAX_HEADER):
        raise WeightsError(f"{path}: truncated: the header needs {length} bytes of {raw.size}")
    values = raw[8 + length :]
    end = 0
    tensors = {}
    try:
        header = json.loads(raw[8 : 8 + length].tobytes(), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(v, str) for v in metadata.values()):
            raise TypeError("__metadata__ must hold strings")
        for name, entry in header.items():
            dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
            shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)) or stop < start:
                raise ValueError(f"{name}: bad shape or offsets")
            strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            if stop - start != math.prod(shape) * _itemsize(dtype):
                raise ValueError(f"{name}: {stop - start} bytes do not hold {dtype} {shape}")
            tensors[name] = StoredTensor(dtype, shape, strides, 0, values[start:stop])
            end = max(end, stop)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: the safetensors header is malformed: {error}") from error
    if end != values.size:
        raise WeightsError(f"{path}: expected {end} bytes of values, got {values.size}; truncated?")
    return Checkpoint(path, tensors, metadata=metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a name occurs twice")
    return unique


def write_safetensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    metadata: Mapping[str, str],
    overwrite: bool = False,
    dtype: str = "float32",
) -> None:
    """Write tensors, one in memory at a time; the file appears whole or not at all.

    ``shapes`` gives names and order, ``dtype`` is "float32" or "bfloat16". StoreError if ``path``
    exists and ``overwrite`` is False, or if it cannot be written; InputError for another dtype.
    """
    one_of("dtype", dtype, _WRITERS)
    code, item, encode = _WRITERS[dtype]
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + item * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)  # values then start 8 bytes past a multiple of 64: aligned
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    _refuse_existing(path, overwrite)
    try:
        f = partial.open("xb")
        try:
            with f:
                f.write(len(text).to_bytes(8, "little") + text)
                for name in shapes:
                    f.write(encode(tensors[name]).data)
                f.flush()
                os.fsync(f.fileno())
            _refuse_existing(path, overwrite)  # it may have appeared meanwhile
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from error


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, "<f4")


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of finite float32 values, rounded to nearest even."""
    bits = _float32(values).view("<u4")
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    return (rounded >> np.uint32(16)).astype("<u2")


_WRITERS = {"float32": ("F32", 4, _float32), "bfloat16": ("BF16", 2, _bfloat16)}


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise StoreError(f"{path}: exists; pass overwrite=True to replace it")
