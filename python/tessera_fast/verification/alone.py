"""What one of two outputs holds and the other does not: whole layers, pixels, arrays.

h, w are the rows and columns of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..store.reader import Embeddings, Layer
from .compare import Reader
from .pairs import Pair
from .places import is_store


@dataclass(frozen=True)
class Alone:
    """The part of a layer for which the other output has no layer at the same place."""

    side: str  # "a" or "b"
    layer: str
    whole: bool  # the layer meets nothing of the other output
    pixels: int  # with data
    first: tuple[tuple[int, int], ...]  # row and column of the first of them
    tile: bool  # of a folder: a file, which counts although it may hold no data

    @property
    def differs(self) -> bool:
        """Whether something is missing on the other side: a year without data is not."""
        return self.pixels > 0 or (self.whole and self.tile)

    def __str__(self) -> str:
        held = f"{self.pixels:,} pixels with data" if self.pixels else "no pixel with data"
        return f"{self.layer} ({held}{'' if self.whole else ', beyond what both cover'})"


def alone(
    readers: tuple[Reader, Reader],
    outputs: tuple[Embeddings, Embeddings],
    pairs: Sequence[Pair],
    keep: int,
) -> list[Alone]:
    """Every layer of either output that is not, or not wholly, covered by ``pairs``.

    ``keep`` pixels of each are named. Reads the scales of what is not covered, by windows.
    """
    found = []
    for number, (reader, output) in enumerate(zip(readers, outputs, strict=True)):
        side = "ab"[number]
        boxes: dict[str, list[tuple[int, int, int, int]]] = {}
        for pair in pairs:
            (row, column) = (pair.a_start, pair.b_start)[number]
            box = (row, row + pair.height, column, column + pair.width)
            boxes.setdefault(getattr(pair, side).name, []).append(box)
        for layer in output.layers:
            covered = np.array(boxes.get(layer.name, []), np.int64).reshape(-1, 4)
            pixels, first = _uncovered(reader, layer, covered, keep)
            if pixels or not len(covered):
                tile = not is_store(output.path)
                found.append(Alone(side, layer.name, not len(covered), pixels, first, tile))
    return found


def _uncovered(
    reader: Reader, layer: Layer, boxes: np.ndarray, keep: int
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Pixels with data outside ``boxes`` (n, 4: first row, stop, column, stop): how many, where."""
    count = 0
    first: list[tuple[int, int]] = []
    for rows, columns in layer.stored():
        near = boxes[
            (boxes[:, 0] < rows.stop)
            & (boxes[:, 1] > rows.start)
            & (boxes[:, 2] < columns.stop)
            & (boxes[:, 3] > columns.start)
        ]
        left = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        for top, bottom, west, east in near.tolist():
            left[
                max(top - rows.start, 0) : bottom - rows.start,
                max(west - columns.start, 0) : east - columns.start,
            ] = False
        if not left.any():
            continue
        left &= reader.valid(layer, rows, columns)
        count += int(left.sum())
        for row, column in np.argwhere(left)[: keep - len(first)].tolist():
            first.append((rows.start + row, columns.start + column))
    return count, tuple(first)


def lone_arrays(a: Embeddings, b: Embeddings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of arrays with pixels ("utm31/scales") that one store alone has, in zones of both.

    Only of two stores with a record of their run: a folder of .npy files and a store of another
    program hold neither prefixes nor counts.
    """
    if not all(is_store(side.path) and side.provenance for side in (a, b)):
        return (), ()
    first, second = _arrays(a), _arrays(b)
    names: tuple[list[str], list[str]] = ([], [])
    for zone in sorted(first.keys() & second.keys()):
        names[0].extend(f"{zone}/{name}" for name in sorted(first[zone] - second[zone]))
        names[1].extend(f"{zone}/{name}" for name in sorted(second[zone] - first[zone]))
    return tuple(names[0]), tuple(names[1])


def _arrays(output: Embeddings) -> dict[str, frozenset[str]]:
    return {layer.name.split("/")[0]: layer.rasters for layer in output.layers}
