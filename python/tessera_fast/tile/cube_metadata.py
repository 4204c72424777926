"""What the metadata of a cube claims, checked before anything of that size is allocated."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..untrusted.readers import MAX_DIMS, MAX_SIZE, Unreadable, read_json, read_start, shown, take

_GROUP = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
_ARRAY = ("zarr.json", ".zarray", ".zattrs")
# Bytes of a chunk: of any, and of one that is no larger than its array, as in a cube of one chunk.
# Blosc, the compressor of most stores, ends at 2 GiB.
_CHUNK, _WHOLE_CHUNK = 64 << 20, 2 << 30
_COORDINATE = 1 << 20  # values of an array with one axis, which xarray loads at once


def check_zarr(store: Path) -> None:
    """InputError where the metadata of a Zarr store on disk is damaged or asks for too much."""
    try:
        with os.scandir(store) as found:
            folders = sorted(entry.name for entry in found if entry.is_dir())
    except OSError as error:
        raise InputError(f"{store}: cannot be read ({error}); check the disk") from error
    for name in (*_GROUP, *(f"{folder}/{file}" for folder in folders for file in _ARRAY)):
        path = store / name
        try:
            for array, claims in _arrays(read_json(path, constants=True)):
                _check_array(array, claims)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, Unreadable) as error:
            raise InputError(
                f"{path}: expected the metadata of a cube, got {error}; write the cube again"
            ) from error


def check_netcdf(path: Path) -> None:
    """InputError where a file does not begin as netCDF does, in any of its formats."""
    try:
        start = read_start(path, 8)
        if start[:3] != b"CDF" and start != b"\x89HDF\r\n\x1a\n":
            raise Unreadable("a file that does not begin as netCDF does")
    except (OSError, Unreadable) as error:
        raise InputError(f"{path}: expected a cube that xarray opens, got {error}") from error


def check_chunks(shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> None:
    """Unreadable where one chunk takes more memory than any cube of tiles needs."""
    size = math.prod(chunks) * itemsize
    most = _WHOLE_CHUNK if all(c <= n for c, n in zip(chunks, shape, strict=True)) else _CHUNK
    if size > most:
        raise Unreadable(
            f"chunks {shown(tuple(chunks))}, {shown(size)} bytes, of an array {shown(tuple(shape))}"
        )


def _arrays(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every array that a document describes: itself, or those that a group lists."""
    if "shape" in document:
        yield "", document
    listed = document.get("consolidated_metadata") or document  # of Zarr 3, and of .zmetadata
    members = listed.get("metadata") if isinstance(listed, dict) else None
    if isinstance(members, dict):
        for name, member in members.items():
            if isinstance(member, dict) and "shape" in member:
                yield name, member


def _check_array(name: str, claims: Mapping[str, Any]) -> None:
    try:
        shape = _sizes(claims, "shape", 0)
        if len(shape) == 1 and shape[0] > _COORDINATE:
            raise Unreadable(
                f"shape: {shape[0]} values on one axis, expected at most {_COORDINATE}"
            )
        if "chunks" in claims:
            chunks = _sizes(claims, "chunks", 1)
        else:
            grid = take(claims, "chunk_grid", dict)
            if grid.get("name") != "regular":
                raise Unreadable(f"chunk_grid: expected a regular one, got {shown(grid)}")
            chunks = _sizes(take(grid, "configuration", dict), "chunk_shape", 1)
        if len(chunks) != len(shape):
            raise Unreadable(f"{len(chunks)} axes of chunks and {len(shape)} of the array")
        check_chunks(shape, chunks, _itemsize(claims.get("dtype", claims.get("data_type"))))
    except Unreadable as error:
        raise Unreadable(f"{name}: {error}" if name else str(error)) from error


def _sizes(record: Mapping[str, Any], name: str, least: int) -> list[int]:
    found = take(record, name, list)
    if len(found) > MAX_DIMS or not all(type(n) is int and least <= n <= MAX_SIZE for n in found):
        raise Unreadable(f"{name}: expected at most {MAX_DIMS} sizes, got {shown(found)}")
    return found


def _itemsize(dtype: Any) -> int:
    """Bytes of a value, 8 where only a library can tell."""
    try:
        return np.dtype(dtype).itemsize if isinstance(dtype, str) else 8
    except (TypeError, ValueError, SyntaxError):
        return 8
