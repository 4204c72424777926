"""Checkpoint files, without torch: what is in a .pt or .safetensors file, and writing the latter.

A torch archive is a zip (archive.py) with a pickle, data.pkl, that says which slices of which raw
entries are which tensors; unpickle.py reads it as data. Tensors are views on a memory map of the
file, and nothing is allocated that a header asks for before the file is known to hold it.
"""

import hashlib
import json
import math
import mmap
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import StoreError, WeightsError
from ..untrusted.readers import (
    MAX_DIMS,
    MAX_SIZE,
    Unreadable,
    named,
    open_file,
    parse_json,
    shown,
    take,
)
from ..untrusted.suggest import one_of
from .archive import entries
from .unpickle import TensorRecord, unpickle
from .wrappers import config_of, state_of

_TORCH_DTYPES = {
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bf16",
    "torch.DoubleStorage": "<f8",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "|i1",
    "torch.ByteStorage": "|u1",
    "torch.BoolStorage": "|b1",
}
_SAFETENSORS_DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bf16",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
}
_FLOATS = ("<f4", "<f2", "bf16", "<f8")
_MAX_HEADER = 10_000_000  # bytes; the format allows ten times that, v2-teacher takes 22,000
_MAX_TENSORS = 20_000  # in a header: v2-teacher has 199
Layout = tuple[int, int, tuple[int, ...], tuple[int, ...], str]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: where its values lie. Nothing is read before :meth:`read`."""

    dtype: str  # a numpy dtype, "bf16", or the name of one that is not supported
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    offset: int  # of the first element, in elements
    raw: np.ndarray | None  # uint8, the bytes of the storage; None: not in the file

    def check(self) -> None:
        """ValueError says what is wrong with the record."""
        if self.dtype not in _FLOATS:
            raise ValueError(f"expected float32, float16, bfloat16 or float64, got {self.dtype}")
        if self.raw is None:
            raise ValueError("its storage is not in the file")
        # values may lie apart, not coincide: a few bytes could otherwise stand for any number
        end = max(self.offset + self._reach() + 1, math.prod(self.shape)) * _itemsize(self.dtype)
        if end > self.raw.size:
            raise ValueError(f"needs {end} bytes of a storage of {self.raw.size}")
        if self._coincides():
            raise ValueError(f"its strides {self.strides} put values of {self.shape} on each other")

    def read(self) -> np.ndarray:
        """The values as float32, C-contiguous and aligned: a view of the file where they are so.

        ValueError as from :meth:`check`.
        """
        self.check()
        assert self.raw is not None
        item = _itemsize(self.dtype)
        end = self.offset + self._reach() + 1
        values = self.raw[self.offset * item : end * item]
        values = values.view("<u2" if self.dtype == "bf16" else self.dtype)
        steps = tuple(s * item for s in self._strides())
        view = np.lib.stride_tricks.as_strided(values, self.shape, steps, writeable=False)
        if self.dtype == "bf16":  # the upper half of a float32
            return (view.astype(np.uint32) << np.uint32(16)).view(np.float32)
        # a float64 beyond float32 becomes inf: the caller checks
        with np.errstate(over="ignore", invalid="ignore"):
            return np.require(view, np.float32, ["C", "A"])

    def _strides(self) -> tuple[int, ...]:
        """In elements; 0 along axes of one value, where a file may say anything."""
        return tuple(s if n > 1 else 0 for n, s in zip(self.shape, self.strides, strict=True))

    def _reach(self) -> int:
        """Elements from the first value to the last; -1 where there is none."""
        return (
            -1
            if 0 in self.shape
            else sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        )

    def _coincides(self) -> bool:
        """Whether an axis steps over less than the axes within it fill, as no tensor of torch's."""
        reach = 0
        for stride, n in sorted(zip(self.strides, self.shape, strict=True)):
            if n > 1 and stride <= reach:
                return True
            reach += (n - 1) * stride
        return False

    @property
    def layout(self) -> Layout:
        """Addresses of the first and the last byte, shape, strides and dtype; after `check`."""
        assert self.raw is not None
        item = _itemsize(self.dtype)
        start = self.raw.__array_interface__["data"][0] + self.offset * item
        return start, start + (self._reach() + 1) * item, self.shape, self._strides(), self.dtype


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, unjudged."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, Any] = field(default_factory=dict)  # "args", "arch" or "config"
    metadata: Mapping[str, str] = field(default_factory=dict)  # of a safetensors file


def share(tensors: Mapping[str, StoredTensor]) -> str | None:
    """A tensor that shares a part of its values with another, or None; all were checked before.

    Two that are equal in place, shape and type are one tensor by two names, which is allowed.
    """
    places = {t.layout: name for name, t in tensors.items() if 0 not in t.shape}
    for group in _overlapping(sorted(places.items())):
        first, last = group[0][0][0], max(layout[1] for layout, _ in group)
        used = np.zeros(last - first, bool)  # bytes: columns of one matrix may interleave
        for (start, _, shape, strides, dtype), name in group:
            item = _itemsize(dtype)
            steps = (*(s * item for s in strides), 1)
            mine = np.lib.stride_tricks.as_strided(used[start - first :], (*shape, item), steps)
            if mine.any():
                return name
            mine[...] = True
    return None


def _overlapping(places: list[tuple[Layout, str]]) -> Iterator[list[tuple[Layout, str]]]:
    """Runs of two or more whose ranges of bytes overlap, of places in order."""
    group: list[tuple[Layout, str]] = []
    end = 0
    for place in places:
        if place[0][0] >= end:
            if len(group) > 1:
                yield group
            group = []
        group.append(place)
        end = max(end, place[0][1])
    if len(group) > 1:
        yield group


def digest(path: Path) -> str:
    """sha256 of a file's bytes, read in blocks; WeightsError if it cannot be read."""
    state = hashlib.sha256()
    with _opened(path) as (f, _):
        while block := f.read(1 << 20):
            state.update(block)
    return state.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size; WeightsError if it cannot be opened or read."""
    try:
        f, size = open_file(path)
        with f:
            yield f, size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # Unreadable, and names that no file can have
        raise WeightsError(f"{path}: cannot be read: {error}") from error


def read(path: Path) -> Checkpoint:
    """Map a checkpoint file; its first bytes decide the format, not its name.

    WeightsError for a file that is absent, unsafe, truncated or of another format.
    """
    with _opened(path) as (f, size):
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    start = bytes(data[:24])
    raw = np.frombuffer(data, np.uint8)
    try:
        if start.startswith(b"PK"):
            return _read_torch(path, raw)
        if len(start) > 8 and start[8:9] == b"{":
            return _read_safetensors(path, raw)
    except (Unreadable, WeightsError) as error:
        raise WeightsError(f"{path}: {error}") from error
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
    found = entries(raw)
    roots = [name[: -len("data.pkl")] for name in found if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Unreadable(f"expected one data.pkl in the archive, got {len(roots)}")
    root = roots[0]
    if f"{root}byteorder" in found and found[f"{root}byteorder"].tobytes() != b"little":
        raise Unreadable("expected little-endian values; save it on such a machine")
    content = unpickle(found[f"{root}data.pkl"].data)
    tensors = {
        name: StoredTensor(
            _TORCH_DTYPES.get(t.storage.kind, named(t.storage.kind)),
            t.shape,
            t.strides,
            t.offset,
            found.get(f"{root}data/{t.storage.key}"),
        )
        for name, t in state_of(content).items()
        if isinstance(name, str) and isinstance(t, TensorRecord)
    }
    return Checkpoint(path, tensors, config_of(content))


# ---- safetensors: 8 bytes of header length, a JSON header, the values


def _read_safetensors(path: Path, raw: np.ndarray) -> Checkpoint:
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if length > _MAX_HEADER:
        raise Unreadable(f"a header of {length} bytes, expected at most {_MAX_HEADER}")
    if length > raw.size - 8:
        raise Unreadable(f"truncated: the header needs {length} bytes of {raw.size}")
    values = raw[8 + length :]
    text = raw[8 : 8 + length].tobytes()
    objects = text.count(b"[") + text.count(b"{")  # each takes 100 bytes and more when it is read
    if objects > 3 * _MAX_TENSORS or text.count(b",") > 10 * _MAX_TENSORS:
        raise Unreadable(f"a header of more than {_MAX_TENSORS} tensors")
    try:
        header = parse_json(text, _MAX_HEADER)
        metadata = take(header, "__metadata__", dict) if "__metadata__" in header else {}
        for name in metadata:
            take(metadata, name, str)
        header.pop("__metadata__", None)
        extents = {name: _extent(entry) for name, entry in header.items()}
    except Unreadable as error:
        raise Unreadable(f"the safetensors header is malformed: {error}") from error
    end = 0
    for start, stop, name in sorted((*extents[name][2], name) for name in extents):
        if start != end:
            what = "overlap those" if start < end else "leave a gap to those"
            raise Unreadable(f"the values of {named(name)} {what} of another tensor")
        end = stop
    if end != values.size:
        raise Unreadable(f"expected {end} bytes of values, got {values.size}; truncated?")
    tensors = {
        name: StoredTensor(dtype, shape, _contiguous(shape), 0, values[start:stop])
        for name, (dtype, shape, (start, stop)) in extents.items()
    }
    return Checkpoint(path, tensors, metadata=metadata)


def _extent(entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Dtype, shape, and first and last byte of one tensor of a header."""
    if not isinstance(entry, dict):
        raise Unreadable(f"expected an object for a tensor, got {shown(entry)}")
    code, sizes, offsets = (
        take(entry, "dtype", str),
        take(entry, "shape", list),
        take(entry, "data_offsets", list),
    )
    if code not in _SAFETENSORS_DTYPES:
        known = ", ".join(_SAFETENSORS_DTYPES)
        raise Unreadable(f"dtype: expected one of {known}, got {shown(code)}")
    if len(sizes) > MAX_DIMS or len(offsets) != 2:
        raise Unreadable(f"bad shape {shown(sizes)} or data_offsets {shown(offsets)}")
    if not all(type(n) is int and 0 <= n <= MAX_SIZE for n in (*sizes, *offsets)):
        raise Unreadable(f"bad shape {shown(sizes)} or data_offsets {shown(offsets)}")
    dtype, (start, stop) = _SAFETENSORS_DTYPES[code], offsets
    if stop - start != math.prod(sizes) * _itemsize(dtype):
        raise Unreadable(f"{stop - start} bytes do not hold {dtype} of shape {shown(sizes)}")
    return dtype, tuple(sizes), (start, stop)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


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
