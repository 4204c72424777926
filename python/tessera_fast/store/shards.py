"""The arrays of one zone, shard by shard: what a store holds, and what a tile makes of it.

E embedding width, h, w rows and columns of the part of a shard that a tile covers.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..damage import damaged, first_line
from ..errors import StoreError
from ..untrusted import Unreadable, read_bytes
from .output import COUNT_NAMES
from .zone import shard_path

Window = tuple[slice, slice]  # rows and columns
_FULL = (*COUNT_NAMES, "scales", "embeddings")  # the others are prefixes of the last


class Shards:
    """The pixel arrays of the zarr group in ``folder``, opened once and used for many tiles.

    A shard is changed in memory, in an array that is like the store's and as large, and comes out
    as the file that the store is to have. Of its chunks only those with new pixels are decoded and
    encoded. One shard at a time: `read`, then `encode` for each array.
    """

    def __init__(self, zarr: Any, group: Any, folder: Path, names: list[str]) -> None:
        self._folder = folder
        self._files: dict[str, Any] = {}  # of the shard, by path in the group
        self.read_files: dict[str, bytes] = {}  # of the shard as `read` found it, by array
        self._arrays: dict[str, Any] = {}
        self._whole: dict[str, Any] = {}  # likewise, but chunks without data are encoded too
        for arrays, empty in ((self._arrays, False), (self._whole, True)):
            memory = zarr.storage.MemoryStore(self._files)
            for name in names:
                like = group[name]
                arrays[name] = zarr.create_array(
                    memory, name=name, shape=like.shape, dtype=like.dtype, chunks=like.chunks,
                    shards=like.shards, compressors=like.compressors, filters=like.filters,
                    fill_value=like.fill_value, config={"write_empty_chunks": empty},
                    overwrite=True,
                )  # fmt: skip
        self._buffer = type(next(iter(self._files.values())))  # what a store in memory holds

    def file(self, name: str, t: int, shard: Window) -> Path:
        """Where the store has the shard of year number ``t``, or will have it."""
        return self._folder / shard_path(name, t, *(s.start for s in shard))

    def read(self, t: int, shard: Window, part: Window) -> dict[str, np.ndarray]:
        """``part`` of a shard, of all arrays but prefixes: (h, w), embeddings (E, h, w)."""
        self._files.clear()
        self.read_files.clear()
        pixels = {}
        for name, array in self._arrays.items():
            file = self.file(name, t, shard)
            data = self._bytes(file, array)
            if data is not None:
                self.read_files[name] = data
                self._files[self._key(file)] = self._buffer.from_bytes(data)
            if name not in _FULL:
                continue
            if data is None:
                pixels[name] = _blank(array, part)
                continue
            try:
                pixels[name] = array[(t, ..., *part)]
            except damaged() as error:
                raise _damaged(file, error) from error
        return pixels

    def blank(self, part: Window) -> dict[str, np.ndarray]:
        """Go on as if the shard that was read last had no data; ``part`` of it, as `read` does."""
        self._files.clear()
        return {name: _blank(a, part) for name, a in self._arrays.items() if name in _FULL}

    def _bytes(self, file: Path, array: Any) -> bytes | None:
        """The content of a shard's file; None where there is none."""
        plain = math.prod(array.shards) * array.dtype.itemsize
        try:
            return read_bytes(file, 2 * plain + (1 << 20), links=False)  # with its index
        except FileNotFoundError:
            return None
        except Unreadable as error:
            raise _damaged(file, error) from error

    def encode(
        self, name: str, t: int, shard: Window, part: Window, merged: Mapping[str, np.ndarray]
    ) -> bytes | None:
        """The file of a shard with what is ``merged``, as `read` gives it; None if it has no data,
        and never had."""
        values = merged.get(name)
        if values is None:
            values = merged["embeddings"][: self._arrays[name].shape[1]]
        key = self._key(self.file(name, t, shard))
        had = name in self.read_files
        try:
            self._arrays[name][(t, ..., *part)] = values
        except damaged() as error:  # of the chunks that were there
            raise _damaged(self.file(name, t, shard), error) from error
        if had and key not in self._files:  # not left out, as the one that is there would stay
            self._whole[name][(t, ..., *part)] = values
        file = self._files.pop(key, None)
        return None if file is None else file.to_bytes()

    def _key(self, file: Path) -> str:
        return file.relative_to(self._folder).as_posix()


def _blank(array: Any, part: Window) -> np.ndarray:
    size = (*array.shape[1:-2], *(s.stop - s.start for s in part))
    return np.full(size, array.fill_value, array.dtype)


def _damaged(file: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{file}: expected a shard of this store, got one that cannot be decoded "
        f"({first_line(error)}). Restore it from a copy; or remove it and run again: "
        "the tiles that lie in it are then made again"
    )


def outranks(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where pixels of ``new`` take the place of ``old``'s, (h, w) bool.

    By an order of pixels, not of tiles, so that the result does not depend on which tile came
    first: data before no data, more observations, then whatever differs.
    """
    valid = np.isfinite(new["scales"])
    better = valid & ~np.isfinite(old["scales"])
    tied = valid & ~better
    for a, b in zip(_ranks(new), _ranks(old), strict=True):
        if not tied.any():
            break
        better |= tied & (a > b)
        tied &= a == b
    return better


def _ranks(pixels: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """(h, w) each, the most important first."""
    counts = [pixels[name].astype(np.int64) for name in COUNT_NAMES]
    yield from (counts[0] + counts[1] + counts[2], *counts, pixels["scales"])
    yield from pixels["embeddings"]
