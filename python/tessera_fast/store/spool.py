"""One tile on its way: rows are spooled to disk, and appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from .base import (
    COUNT_NAMES,
    Provenance,
    TileKey,
)
from .disk import RowFile
from .state import BuildState


class SpooledTile:
    """The TileWriter of both outputs: rows go to .npy files, ``publish`` makes them appear.

    ``key``: of the tile, claimed in ``state``. ``kept``: the arrays that ``publish`` needs.
    """

    def __init__(
        self,
        tile: TileKey,
        provenance: Provenance,
        state: BuildState,
        key: str,
        kept: Sequence[str],
        publish: Callable[[SpooledTile], None],
    ) -> None:
        self.tile = tile
        self._state, self._key, self._publish = state, key, publish
        h, w = tile.height, tile.width
        dtype = np.dtype(provenance.dtype)
        self._shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "embeddings": ((h, w, provenance.dims), dtype),
            "counts": ((h, w, len(COUNT_NAMES)), np.dtype(np.uint16)),
        }
        if dtype == np.int8:
            self._shapes["scales"] = ((h, w), np.dtype(np.float32))
        self._written = np.zeros(h, bool)
        self._open = True
        self._files: dict[str, RowFile] = {}
        try:
            self.folder = state.spool(key)  # all that is in it goes with the tile
            for name in kept:
                self._files[name] = RowFile(self.file(name), *self._shapes[name])
        except OSError as error:
            self._fail(error)

    def file(self, name: str) -> Path:
        """Spool file of ``embeddings``, ``scales`` or ``counts``."""
        return self.folder / f"{name}.npy"

    def write_rows(
        self, start: int, values: np.ndarray, scales: np.ndarray | None, counts: np.ndarray
    ) -> None:
        self._check_open()
        rows = {"embeddings": values, "counts": counts}
        if scales is not None:
            rows["scales"] = scales
        if rows.keys() != self._shapes.keys():
            raise StoreError(
                f"tile {self.tile.name}: {self._shapes['embeddings'][1]} rows come "
                f"{'with' if 'scales' in self._shapes else 'without'} scales"
            )
        stop = start + len(values)
        if not 0 <= start <= stop <= self.tile.height:
            raise StoreError(
                f"tile {self.tile.name}: rows {start}..{stop} are outside 0..{self.tile.height}"
            )
        for name, array in rows.items():
            shape, dtype = self._shapes[name]
            expected = (stop - start, *shape[1:])
            if array.shape != expected or array.dtype != dtype:
                raise StoreError(
                    f"tile {self.tile.name}, rows {start}..{stop}: expected {name} {expected} "
                    f"{dtype}, got {array.shape} {array.dtype}"
                )
        try:
            for name, file in self._files.items():
                file.write(start, rows[name])
        except OSError as error:
            self._fail(error)
        self._written[start:stop] = True

    def commit(self) -> None:
        self._check_open()
        if not self._written.all():
            missing = int(np.flatnonzero(~self._written)[0])
            self.abort()
            raise StoreError(
                f"tile {self.tile.name}: row {missing} of {self.tile.height} was never written"
            )
        try:
            for file in self._files.values():
                file.close()
            self._publish(self)
        except OSError as error:
            self._fail(error)
        finally:
            self.abort()

    def abort(self) -> None:
        if self._open:
            self._open = False
            for file in self._files.values():
                file.discard()
            self._state.release(self._key)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"tile {self.tile.name}: already committed or aborted")

    def _fail(self, error: OSError) -> None:
        self.abort()
        raise StoreError(
            f"tile {self.tile.name}: could not be written: {error} (spooled in "
            f"{self._state.folder}). Its temporary files were removed and finished tiles are "
            "intact; make room and run again"
        ) from error
