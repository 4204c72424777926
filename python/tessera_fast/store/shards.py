"""The arrays of one zone, shard by shard: what a store holds, and what a tile makes of it.

E embedding width, h, w rows and columns of the part of a shard that a tile covers.
"""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import Unreadable, read_bytes
from .base import COUNT_NAMES
from .zone import shard_path

Window = tuple[slice, slice]  # rows and columns
_FULL = (*COUNT_NAMES, "scales", "embeddings")  # the others are prefixes of the last


class Awaiting:
    """A thread that runs what zarr does for many arrays at once. Use ``contextlib.closing``.

    zarr's own calls hand every single array to a thread and wait for it, which takes longer than
    the work on a small tile. This thread is apart from the caller's, which may run a loop itself.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "zarr")  # no thread before the first use
        self._runner: asyncio.Runner | None = None

    def results(self, calls: Iterable[Awaitable[Any]]) -> list[Any]:
        """What every call returns or raises."""
        return self._thread.submit(self._run, list(calls)).result()

    def _run(self, calls: list[Awaitable[Any]]) -> list[Any]:
        async def gathered() -> list[Any]:
            return await asyncio.gather(*calls, return_exceptions=True)

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(gathered())

    def close(self) -> None:
        if self._runner is not None:
            self._thread.submit(self._runner.close).result()
            self._runner = None
        self._thread.shutdown()


class Shards:
    """The pixel arrays of the zarr group in ``folder``, opened once and used for many tiles.

    A shard is changed in memory, in an array that is like the store's and as large, and comes out
    as the file that the store is to have. Of its chunks only those with new pixels are decoded and
    encoded. One shard at a time: `read`, then `encode`.
    """

    def __init__(
        self, zarr: Any, group: Any, folder: Path, names: list[str], awaiting: Awaiting
    ) -> None:
        self._folder, self._awaiting = folder, awaiting
        self._files: dict[str, Any] = {}  # of the shard, by path in the group
        self.read_files: dict[str, bytes] = {}  # of the shard as `read` found it, by array
        create = importlib.import_module("zarr.api.asynchronous").create_array
        made: list[dict[str, Any]] = []
        for empty in (False, True):
            memory = zarr.storage.MemoryStore(self._files)
            likes = [group[name] for name in names]
            arrays = self._awaiting.results(
                create(
                    memory,
                    name=name,
                    shape=like.shape,
                    dtype=like.dtype,
                    chunks=like.chunks,
                    shards=like.shards,
                    compressors=like.compressors,
                    filters=like.filters,
                    fill_value=like.fill_value,
                    config={"write_empty_chunks": empty},
                    overwrite=True,
                )
                for name, like in zip(names, likes, strict=True)
            )
            for array in arrays:
                if isinstance(array, BaseException):
                    raise array
            made.append(dict(zip(names, arrays, strict=True)))
        # The second likewise, but chunks without data are encoded too.
        self._arrays, self._whole = made
        self._buffer = type(next(iter(self._files.values())))  # what a store in memory holds

    def file(self, name: str, t: int, shard: Window) -> Path:
        """Where the store has the shard of year number ``t``, or will have it."""
        return self._folder / shard_path(name, t, *(s.start for s in shard))

    def read(self, t: int, shard: Window, part: Window) -> dict[str, np.ndarray]:
        """``part`` of a shard, of all arrays but prefixes: (h, w), embeddings (E, h, w)."""
        self._files.clear()
        self.read_files.clear()
        for name, array in self._arrays.items():
            file = self.file(name, t, shard)
            data = self._bytes(file, array)
            if data is not None:
                self.read_files[name] = data
                self._files[self._key(file)] = self._buffer.from_bytes(data)
        names = [name for name in _FULL if name in self.read_files]
        found = self._awaiting.results(self._arrays[n].getitem((t, ..., *part)) for n in names)
        pixels = {name: _blank(self._arrays[name], part) for name in _FULL}
        for name, result in zip(names, found, strict=True):
            pixels[name] = _sound(result, self.file(name, t, shard))
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
        self, t: int, shard: Window, part: Window, merged: Mapping[str, np.ndarray]
    ) -> dict[str, bytes]:
        """The file of each array of a shard with what is ``merged``, as `read` gives it. None of
        an array that has no data, and never had."""
        where = (t, ..., *part)
        files = {name: self.file(name, t, shard) for name in self._arrays}
        keys = {name: self._key(file) for name, file in files.items()}
        values = {
            name: merged[name] if name in merged else merged["embeddings"][: array.shape[1]]
            for name, array in self._arrays.items()
        }
        results = self._awaiting.results(
            array.setitem(where, values[name]) for name, array in self._arrays.items()
        )
        # Chunks that were there may be damaged. Files that were there are not left out.
        emptied = [n for n in self.read_files if keys[n] not in self._files]
        results += self._awaiting.results(
            self._whole[name].setitem(where, values[name]) for name in emptied
        )
        for name, result in zip([*self._arrays, *emptied], results, strict=True):
            _sound(result, files[name])
        encoded = {name: self._files.pop(key, None) for name, key in keys.items()}
        return {name: file.to_bytes() for name, file in encoded.items() if file is not None}

    def _key(self, file: Path) -> str:
        return file.relative_to(self._folder).as_posix()


def _sound(result: Any, file: Path) -> Any:
    """What zarr returned for the shard in ``file``; StoreError if it raised for damaged bytes."""
    if isinstance(result, BaseException):
        try:
            raise result
        except damaged() as error:
            raise _damaged(file, error) from error
    return result


def _blank(array: Any, part: Window) -> np.ndarray:
    size = (*array.shape[1:-2], *(s.stop - s.start for s in part))
    return np.full(size, array.metadata.fill_value, array.dtype)


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
