"""Chunk files of a local Zarr cube that are not there.

Zarr reads an absent chunk as fill values and says nothing: a writer leaves out chunks that hold
nothing else, and a copy that was cut short has lost them. So where a chunk of Sentinel-2 is absent
there are no data, which is an error where the mask is clear. Looking for a file takes microseconds,
reading its chunk hundreds of them.
"""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import InputError
from ..untrusted.readers import Unreadable, plain_name, read_json
from .arrays import ALL, Picks, RowArray

AXES = 3  # of time, y and x


class StreamVariables(Protocol):
    """Variables of a cube that hold one stream (`DatasetArray`)."""

    shape: tuple[int, ...]
    names: list[str]
    variables: list[Any]

    @property
    def time(self) -> str: ...


class ChunkGrid(NamedTuple):
    """The chunk files of one variable: of a shard, where chunks lie in shards."""

    folder: str
    prefix: str  # of a file's name
    separator: str
    sizes: tuple[int, ...]  # of a chunk
    counts: tuple[int, ...]  # of chunks
    places: tuple[int, ...]  # of time, y and x among its dimensions


class LostChunks(RowArray):
    """True where a chunk of a variable is absent, (T, H, W) bool."""

    def __init__(self, shape: tuple[int, ...], grids: Sequence[ChunkGrid]) -> None:
        self.shape = shape[:AXES]
        self.dtype = np.dtype(bool)
        self._grids = tuple(grids)

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        picks = [np.arange(n)[p] for n, p in zip(self.shape, (dates, rows, columns), strict=True)]
        lost = np.zeros([len(p) for p in picks], bool)
        for grid in self._grids:
            within = [p // grid.sizes[at] for p, at in zip(picks, grid.places, strict=True)]
            absent = _absent(grid, [np.unique(w).tolist() for w in within])
            for chunk in absent:
                lost |= np.logical_and.outer(
                    np.logical_and.outer(within[0] == chunk[0], within[1] == chunk[1]),
                    within[2] == chunk[2],
                )
        return lost

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        found = [
            self.read(slice(t, t + 1), slice(y, y + 1), columns)[0, 0]
            for t, y in zip(dates.tolist(), rows.tolist(), strict=True)
        ]
        return np.array(found).reshape(len(found), -1)


def _absent(grid: ChunkGrid, chunks: Sequence[list[int]]) -> set[tuple[int, ...]]:
    """Those of the ``chunks`` over time, y and x that lack a file, whatever the band."""
    indices: list[Sequence[int]] = [range(n) for n in grid.counts]
    for at, wanted in zip(grid.places, chunks, strict=True):
        indices[at] = wanted
    found = set()
    for index in itertools.product(*indices):
        name = grid.prefix + grid.separator.join(map(str, index))
        if not os.path.exists(os.path.join(grid.folder, name)):
            found.add(tuple(index[at] for at in grid.places))
    return found


def lost_chunks(path: str, held: StreamVariables) -> LostChunks | None:
    """Where chunks of the variables ``held`` are absent; None if their files cannot be told."""
    grids = []
    for name, variable in zip(held.names, held.variables, strict=True):
        places = tuple(variable.dims.index(d) for d in (held.time, "y", "x"))
        folder = Path(os.path.abspath(path)) / name
        grid = _grid(folder, variable.shape, places) if plain_name(name) else None
        if grid is None:
            return None
        grids.append(grid)
    return LostChunks(held.shape, grids)


def _grid(folder: Path, shape: tuple[int, ...], places: tuple[int, ...]) -> ChunkGrid | None:
    try:
        if (folder / ".zarray").is_file():
            known = read_json(folder / ".zarray", constants=True)
            sizes, prefix = known.get("chunks"), ""
            separator = known.get("dimension_separator", ".")
        elif (folder / "zarr.json").is_file():
            known = read_json(folder / "zarr.json", constants=True)
            sizes = _of(known, "chunk_grid").get("chunk_shape")
            keys = _of(known, "chunk_key_encoding")
            encoding = known.get("chunk_key_encoding")
            default = isinstance(encoding, dict) and encoding.get("name") == "default"
            separator = keys.get("separator", "/" if default else ".")
            prefix = f"c{separator}" if default else ""
        else:
            return None
    except (OSError, Unreadable) as error:  # xarray has just read it
        raise InputError(f"{folder}: cannot be read ({error}); write the cube again") from error
    if separator not in (".", "/") or not isinstance(sizes, list) or len(sizes) != len(shape):
        return None
    if not all(type(n) is int and n > 0 for n in sizes):
        return None
    counts = tuple(math.ceil(n / size) for n, size in zip(shape, sizes, strict=True))
    return ChunkGrid(str(folder), prefix, separator, tuple(sizes), counts, places)


def _of(known: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration of an extension of Zarr v3; empty where there is none."""
    found = known.get(name)
    inner = found.get("configuration") if isinstance(found, dict) else None
    return inner if isinstance(inner, dict) else {}
