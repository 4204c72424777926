"""The arrays of one zone, shard by shard: what a store holds, and what a tile makes of it.

E embedding width, h, w rows and columns of a shard, which are fewer at the edges of a zone.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .output import COUNT_NAMES

Window = tuple[slice, slice]  # rows and columns


class Shards:
    """The pixel arrays of the group ``folder``, opened once and used for many tiles.

    A shard is encoded in memory, by an array that is like the store's and as large, so that it
    comes out as if it had been written into the store.
    """

    def __init__(self, zarr: Any, group: Any, folder: Path, names: list[str]) -> None:
        self._zarr = zarr
        self._folder = folder
        self._arrays = {name: group[name] for name in names}
        self._encoded: dict[str, Any] = {}
        self._encoders: dict[tuple[str, bool], Any] = {}

    def file(self, name: str, t: int, window: Window) -> Path:
        """Where the store has a shard, or will have it."""
        array = self._arrays[name]
        y, x = (s.start // n for s, n in zip(window, array.shards[-2:], strict=True))
        middle = [0] * (array.ndim - 3)
        return self._folder.joinpath(name, "c", *map(str, (t, *middle, y, x)))

    def read(self, t: int, window: Window) -> dict[str, np.ndarray]:
        """All arrays of a shard of year number ``t``, (h, w) or (E, h, w)."""
        return {name: self._read(name, t, window) for name in self._arrays}

    def _read(self, name: str, t: int, window: Window) -> np.ndarray:
        array = self._arrays[name]
        if self.file(name, t, window).exists():
            return array[(t, ..., *window)]
        shape = (*array.shape[1:-2], *(s.stop - s.start for s in window))
        return np.full(shape, array.fill_value, array.dtype)

    def encode(self, name: str, t: int, window: Window, values: np.ndarray) -> bytes | None:
        """The file of a shard; None if it holds nothing, and the store has none."""
        encoded = self._encode(name, t, window, values, empty=False)
        if encoded is None and self.file(name, t, window).exists():
            return self._encode(name, t, window, values, empty=True)
        return encoded

    def _encode(
        self, name: str, t: int, window: Window, values: np.ndarray, *, empty: bool
    ) -> bytes | None:
        """``empty``: chunks without data are encoded too."""
        like = self._arrays[name]
        if (name, empty) not in self._encoders:
            self._encoders[name, empty] = self._zarr.create_array(
                self._zarr.storage.MemoryStore(self._encoded), name=name, shape=like.shape,
                dtype=like.dtype, chunks=like.chunks, shards=like.shards,
                compressors=like.compressors, filters=like.filters, fill_value=like.fill_value,
                overwrite=True, config={"write_empty_chunks": empty},
            )  # fmt: skip
        self._encoded.clear()
        self._encoders[name, empty][(t, ..., *window)] = values
        return next((shard.to_bytes() for shard in self._encoded.values()), None)


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
