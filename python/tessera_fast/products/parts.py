"""The rasters that an output consists of: its finished tiles, or what lies around its pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, StoreError
from ..store.reader import Embeddings, Layer, TileRecord, tiles_of
from ..untrusted.readers import local_path
from ..untrusted.suggest import closest

BLOCK = 256  # rows and columns read at once: 32 MiB of float32 at E = 128
Window = tuple[slice, slice]


def is_output(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a store, or a folder of .npy files."""
    place = local_path(path, "store")
    return (place / "zarr.json").exists() or (place.is_dir() and any(place.glob("*.npy")))


@dataclass(frozen=True)
class OutputPart:
    """A window of a layer. ``tile``: it is a finished tile, else all data of the layer."""

    name: str
    layer: Layer
    rows: slice
    columns: slice
    tile: bool

    @property
    def height(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    @property
    def place(self) -> tuple[str, tuple[float, ...]]:
        """CRS and (a, b, c, d, e, f) of the window; StoreError where the layer has none."""
        return placed(self.layer, self.rows.start, self.columns.start)

    def blocks(self) -> Iterator[tuple[int, int, Window]]:
        """Row and column within the part, and the window of the layer, in blocks of ``BLOCK``."""
        for top in range(0, self.height, BLOCK):
            for left in range(0, self.width, BLOCK):
                y, x = self.rows.start + top, self.columns.start + left
                rows = slice(y, min(y + BLOCK, self.rows.stop))
                yield top, left, (rows, slice(x, min(x + BLOCK, self.columns.stop)))


def placed(layer: Layer, row: int = 0, column: int = 0) -> tuple[str, tuple[float, ...]]:
    """CRS and transform of the part of ``layer`` that begins at ``row`` and ``column``."""
    if layer.crs is None or layer.transform is None:
        raise StoreError(
            f"{layer.name}: its CRS and transform are not recorded, so it cannot be placed on a "
            "map; embed it from a tile that has them (roi.tiff), or export it as npy"
        )
    a, b, c, d, e, f = layer.transform
    return layer.crs, (a, b, c + a * column + b * row, d, e, f + d * column + e * row)


def parts(
    output: Embeddings,
    *,
    tiles: Sequence[str] | None = None,
    years: Sequence[int] | None = None,
) -> list[OutputPart]:
    """The finished tiles of an output, or those asked for.

    Of a store without its state, which lists them, one part a zone and year: the rectangle around
    the stored pixels. StoreError if nothing is there, InputError for tiles or years that are not.
    """
    found = _all(output)
    if not found:
        raise StoreError(f"{output.path}: holds no embeddings; embed a tile into it")
    for what, asked, known in (
        ("tile", tiles, {p.name for p in found}),
        ("year", years, {p.layer.year for p in found}),
    ):
        missing = [v for v in asked or () if v not in known]
        if missing:
            there = ", ".join(sorted(map(str, known))[:20])
            near = closest(missing[0], map(str, known))
            raise InputError(f"{output.path}: no {what} {missing[0]!r}; it has {there}.{near}")
    return [
        p
        for p in found
        if (tiles is None or p.name in tiles) and (years is None or p.layer.year in years)
    ]


def _all(output: Embeddings) -> list[OutputPart]:
    if not (output.path / "zarr.json").exists():
        return [
            OutputPart(v.name, v, slice(0, v.height), slice(0, v.width), True)
            for v in output.layers
        ]
    records = tiles_of(output.path)
    if records:
        layers = {(v.crs, v.year): v for v in output.layers}
        return [_marked(record, layers) for record in records]
    found = []
    for layer in output.layers:
        windows = layer.stored()
        if windows:
            rows, columns = around(windows)
            found.append(OutputPart(layer.name.replace("/", "_"), layer, rows, columns, False))
    return found


def _marked(record: TileRecord, layers: dict[tuple[str | None, int | None], Layer]) -> OutputPart:
    layer = layers.get((record.crs, record.year))
    if layer is None or layer.transform is None or record.transform is None:
        raise StoreError(
            f"tile {record.name}: its marker says {record.crs} in {record.year}, where the store "
            "has nothing; `tessera-fast verify` tells more"
        )
    row = round((record.transform[5] - layer.transform[5]) / layer.transform[4])
    column = round((record.transform[2] - layer.transform[2]) / layer.transform[0])
    rows, columns = slice(row, row + record.height), slice(column, column + record.width)
    if row < 0 or column < 0 or rows.stop > layer.height or columns.stop > layer.width:
        raise StoreError(
            f"tile {record.name}: its marker says rows {row}..{rows.stop} and columns "
            f"{column}..{columns.stop} of {layer.height} x {layer.width}; `tessera-fast verify` "
            "tells more"
        )
    return OutputPart(record.name, layer, rows, columns, True)


def around(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all."""
    rows, columns = zip(*windows, strict=True)
    return (
        slice(min(r.start for r in rows), max(r.stop for r in rows)),
        slice(min(c.start for c in columns), max(c.stop for c in columns)),
    )


def clusters(windows: Sequence[Window]) -> list[Window]:
    """Rectangles around windows that touch or overlap; no two of the result do.

    In the order of their corners: north to south, then west to east.
    """
    boxes = np.array([(r.start, r.stop, c.start, c.stop) for r, c in windows]).reshape(-1, 4)
    at = 0
    while at < len(boxes):
        top, bottom, left, right = boxes[at]
        meets = (boxes[:, 0] <= bottom) & (boxes[:, 1] >= top)
        meets &= (boxes[:, 2] <= right) & (boxes[:, 3] >= left)
        if meets.sum() == 1:
            at += 1
            continue
        joined = boxes[meets]
        box = (joined[:, 0].min(), joined[:, 1].max(), joined[:, 2].min(), joined[:, 3].max())
        before, after = boxes[:at][~meets[:at]], boxes[at:][~meets[at:]]
        boxes = np.concatenate([before, [box], after])
        at = len(before)
    order = np.lexsort((boxes[:, 2], boxes[:, 0]))
    return [(slice(int(t), int(b)), slice(int(x), int(r))) for t, b, x, r in boxes[order]]
