"""The shards of one zone: each is decoded, and its pixels are held against the rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..store.base import COUNT_NAMES
from ..store.zone import PIXEL, Grid
from ..untrusted.damage import damaged
from .findings import Check
from .value_rules import Fault, count_faults, quantized_faults

_SIDE = 256  # rows and columns read at once: 8 MiB of codes at E = 128


class Window(NamedTuple):
    """A part of a zone in one year."""

    time: int  # index of the year
    rows: slice
    columns: slice

    @property
    def pixels(self) -> int:
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


class ShardArrays:
    """The arrays with pixels of one zone, by name."""

    def __init__(
        self,
        out: Check,
        zone: str,
        arrays: dict[str, Any],
        grid: Grid | None,
        tiles: list[tuple[str, Grid]] | None,
    ) -> None:
        """``tiles``: markers and places of finished tiles; None where another program wrote it."""
        self._out, self._zone, self._grid, self._tiles = out, zone, grid, tiles
        self._ours = tiles is not None
        self._years = arrays["time"][:].tolist()
        self._arrays = {
            k: a
            for k, a in arrays.items()
            if k.startswith("embeddings") or k == "scales" or k in COUNT_NAMES
        }
        self._bad: set[Path] = set()

    def windows(self) -> Iterator[Window]:
        """Those that a file of any array touches."""
        side = min(file_side(self._arrays["embeddings"]), _SIDE)
        side *= _SIDE // side
        times, _, h, w = self._arrays["embeddings"].shape
        for time in range(times):
            for top in range(0, h, side):
                for left in range(0, w, side):
                    window = Window(
                        time, slice(top, min(top + side, h)), slice(left, min(left + side, w))
                    )
                    if any(self._files(k, window) for k in self._arrays):
                        yield window

    def look(self, window: Window) -> None:
        """Decode a window of every array, and name what is wrong with it."""
        before = len(self._out.problems)
        self._look(window)
        if len(self._out.problems) > before:
            places = (self._places(key, window) for key in self._arrays)
            self._out.faulty.update(file for of_array in places for file in of_array)

    def _look(self, window: Window) -> None:
        files = {k: self._files(k, window) for k in self._arrays}
        for key, found in files.items():
            side = file_side(self._arrays[key])
            first = window.rows.start % side == 0 == window.columns.start % side
            self._out.count("shards", len(found) if first or side < _SIDE else 0)
        pixels = {k: self._read(k, window, files[k]) for k in self._arrays}
        scales = pixels["scales"]
        if scales is None:
            return
        valid = np.isfinite(scales)
        self._out.count("pixels with data", int(valid.sum()))
        missing = []
        if valid.any():
            missing = [k for k in files if k.startswith("embeddings") and not files[k]]
        elif files["embeddings"] and not files["scales"]:
            missing = ["scales"]
        for key in missing:
            other = "embeddings" if key == "scales" else "scales"
            self._out.problem(
                file_of(self._arrays[key], window.time, window.rows.start, window.columns.start),
                f"is missing, while {other} have data there",
                self._fix(window),
            )
            pixels[key] = None
        for where, what in self._faults(pixels):
            if where.any():
                row, column = (int(v) for v in np.argwhere(where)[0])
                self._out.problem(
                    f"{self._out.path / self._zone}, year {self._years[window.time]}, row "
                    f"{window.rows.start + row} column {window.columns.start + column}",
                    f"{what} ({int(where.sum()):,} such pixels in these "
                    f"{where.shape[0]} x {where.shape[1]})",
                    self._fix(window),
                )

    def _faults(self, pixels: dict[str, np.ndarray | None]) -> Iterator[Fault]:
        scales, codes = pixels["scales"], pixels["embeddings"]
        if scales is None:
            return
        if codes is not None:
            yield from quantized_faults(np.moveaxis(codes, 0, -1), scales, ours=self._ours)
            for key, prefix in pixels.items():
                if key.startswith("embeddings_d") and prefix is not None:
                    differs = (prefix != codes[: len(prefix)]).any(axis=0)
                    yield differs, f"{key} is not the first {len(prefix)} of embeddings"
        counts = [pixels.get(name) for name in COUNT_NAMES]
        if all(c is not None for c in counts):
            yield from count_faults(np.stack([c for c in counts if c is not None], axis=-1), scales)

    def _fix(self, window: Window) -> str:
        """How to have the pixels of a window made again, and nothing else."""
        if self._tiles is None:
            return "Fetch or write it again"
        names = [name for name, place in self._tiles if self._touches(place, window)]
        if not names:
            return "Write the tiles to another store: which of them lie here is not recorded"
        side = file_side(self._arrays["embeddings"])
        index = f"{window.rows.start // side}/{window.columns.start // side}"
        zone = self._out.path / self._zone
        return (
            f"Remove {zone}/*/c/{window.time}/{index} and {zone}/*/c/{window.time}/0/{index}; then "
            "run the same `tessera-fast embed` again, which makes the tiles of "
            f"{', '.join(names)} anew"
        )

    def _touches(self, tile: Grid, window: Window) -> bool:
        grid = self._grid
        if grid is None or (tile.zone, tile.years) != (grid.zone, (grid.years[window.time],)):
            return False
        row, col = (grid.y0 - tile.y0) / PIXEL, (tile.x0 - grid.x0) / PIXEL
        rows, columns = window.rows, window.columns
        return (
            rows.start - tile.height < row < rows.stop
            and columns.start - tile.width < col < columns.stop
        )

    def _files(self, key: str, window: Window) -> list[Path]:
        """The files of an array that hold pixels of a window, of those that exist."""
        return [file for file in self._places(key, window) if file.exists()]

    def _places(self, key: str, window: Window) -> list[Path]:
        """Where an array has, or would have, the pixels of a window."""
        array = self._arrays[key]
        side = file_side(array)
        return [
            file_of(array, window.time, top, left)
            for top in range(window.rows.start // side * side, window.rows.stop, side)
            for left in range(window.columns.start // side * side, window.columns.stop, side)
        ]

    def _read(self, key: str, window: Window, files: list[Path]) -> np.ndarray | None:
        """(..., h, w); None where a file cannot be decoded."""
        if self._bad.intersection(files):
            return None
        try:
            return self._arrays[key][window.time, ..., window.rows, window.columns]
        except damaged() as error:
            self._bad.update(files)
            sizes = " and ".join(f"{file.stat().st_size:,}" for file in files)
            self._out.problem(
                " and ".join(map(str, files)),
                f"cannot be decoded ({sizes} bytes, {type(error).__name__}: {error})",
                self._fix(window),
            )
            return None


def file_side(array: Any) -> int:
    """Rows and columns that one file of an array holds."""
    return int((array.shards or array.chunks)[-1])


def file_of(array: Any, time: int, row: int, column: int) -> Path:
    """The file that holds a pixel of an array of (time, ..., y, x)."""
    side = file_side(array)
    key = array.metadata.encode_chunk_key(
        (time, *[0] * (array.ndim - 3), row // side, column // side)
    )
    return Path(str(array.store.root), array.path, key)
