"""Pixels of one layer at the places of another grid, reading only the window that is needed.

n is a number of places, E the embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..quantization import dequantize
from ..store.reader import Layer
from .parts import BLOCK, placed

RESAMPLING = ("nearest", "bilinear")
_MOST = 4 * BLOCK * BLOCK  # pixels of a source window: 32 MiB of codes at E = 128


class Places:
    """Places in a layer's CRS as fractional rows and columns of the layer, (n,) float64 each."""

    def __init__(self, layer: Layer, x: np.ndarray, y: np.ndarray) -> None:
        a, b, c, d, e, f = placed(layer)[1]
        det = a * e - b * d
        self.layer = layer
        with np.errstate(invalid="ignore"):  # infinite: a place that the CRS does not have
            self.columns = (e * (x - c) - b * (y - f)) / det
            self.rows = (a * (y - f) - d * (x - c)) / det
        finite = np.isfinite(self.rows) & np.isfinite(self.columns)
        within = finite & (self.rows >= 0) & (self.rows < layer.height)
        self.within = within & (self.columns >= 0) & (self.columns < layer.width)


def nearest_codes(places: Places) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Indices of places with data, their codes (k, E) int8 and scales (k,) float32.

    The pixel that a place lies in is the nearest.
    """
    layer = places.layer
    for index, rows, columns in _windows(places, 0):
        r, c = _indices(places, index, rows, columns)
        valid = layer.valid(rows, columns)[r, c]
        if valid.any():
            codes, scales = layer.codes(rows, columns)
            r, c = r[valid], c[valid]
            yield index[valid], codes[r, c], scales[r, c]


def nearest_values(places: Places) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of places with data, and their values (k, E) float32."""
    if places.layer.quantized:
        for index, codes, scales in nearest_codes(places):
            yield index, dequantize(codes, scales)
        return
    for index, rows, columns in _windows(places, 0):
        r, c = _indices(places, index, rows, columns)
        values = places.layer.values(rows, columns)[r, c]
        valid = np.isfinite(values).all(axis=-1)
        yield index[valid], values[valid]


def bilinear_values(places: Places) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Like `nearest_values`, from the four pixels around a place by their distance.

    There is data where the pixel has data in which the place lies; of its neighbours, those without
    count for nothing.
    """
    for index, rows, columns in _windows(places, 1):
        values = places.layer.values(rows, columns)
        r, c = _indices(places, index, rows, columns)
        valid = np.isfinite(values[r, c]).all(axis=-1)
        index = index[valid]
        y, x = places.rows[index] - 0.5 - rows.start, places.columns[index] - 0.5 - columns.start
        top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        out = np.zeros((len(index), values.shape[-1]), np.float32)
        total = np.zeros((len(index), 1), np.float32)
        for down in (0, 1):
            for right in (0, 1):
                weight = np.abs(1 - down - (y - top)) * np.abs(1 - right - (x - left))
                near = values[
                    (top + down).clip(0, values.shape[0] - 1),
                    (left + right).clip(0, values.shape[1] - 1),
                ]
                known = np.isfinite(near).all(axis=-1, keepdims=True)
                factor = np.where(known, weight[:, None], 0).astype(np.float32)
                out += factor * np.where(known, near, np.float32(0))
                total += factor
        yield index, out / total


def _windows(places: Places, margin: int) -> Iterator[tuple[np.ndarray, slice, slice]]:
    """Indices of places within the layer in groups, with the window that holds each group's.

    A window has at most ``_MOST`` pixels, so a coarse grid is done in small parts.
    """
    groups = [np.flatnonzero(places.within)]
    while groups:
        index = groups.pop()
        if not index.size:
            continue
        sides = []
        for at, size in (
            (places.rows[index], places.layer.height),
            (places.columns[index], places.layer.width),
        ):
            low, high = int(at.min()) - margin, int(at.max()) + 1 + margin
            sides.append(slice(max(low, 0), min(high, size)))
        rows, columns = sides
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if height * width > _MOST and index.size > 1:
            at = places.rows[index] if height >= width else places.columns[index]
            first = at <= (at.min() + at.max()) / 2
            groups += [index[~first], index[first]]
            continue
        yield index, rows, columns


def _indices(
    places: Places, index: np.ndarray, rows: slice, columns: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column within the window of the pixels that the places lie in."""
    r, c = np.floor(places.rows[index]), np.floor(places.columns[index])
    return r.astype(np.int64) - rows.start, c.astype(np.int64) - columns.start
