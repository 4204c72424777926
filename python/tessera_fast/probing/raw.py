"""What an embedding has to beat: statistics and monthly means of the observations themselves, and
the same architecture with weights that nobody trained.

T dates, h rows, W columns, C bands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from ..errors import InputError
from ..model.model import Model
from ..packing import Observations
from ..spec import S2_BANDS
from ..tile import Tile
from .images import Image

PERCENTILES = (10, 25, 50, 75, 90)
_MONTH_ENDS = np.array([31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335, 366])
_RED, _NIR = S2_BANDS.index("B04"), S2_BANDS.index("B08")


def statistics(tile: Tile) -> Image:
    """Percentiles 10, 25, 50, 75 and 90 over the observed dates of every Sentinel-2 band, of NDVI,
    and of VV and VH of every orbit: 55 features, and 10 an orbit."""
    dims = len(PERCENTILES) * (len(S2_BANDS) + 1 + 2 * len(tile.orbits))
    return _image(tile, dims, lambda seen: _streams(seen, lambda v, k, _: percentiles(v, k)))


def months(tile: Tile) -> Image:
    """Means of the observed dates of each month of the same series; months without one are between
    their neighbours: 132 features, and 24 an orbit."""
    dims = len(_MONTH_ENDS) * (len(S2_BANDS) + 1 + 2 * len(tile.orbits))
    return _image(tile, dims, lambda seen: _streams(seen, monthly))


def embedded(tile: Tile, model: Model) -> Image:
    """Embeddings of a tile, encoded when they are read."""

    def read(start: int, stop: int) -> np.ndarray:
        out = np.empty(((stop - start) * tile.width, model.repr_dim), np.float32)
        model.encode(tile.rows(start, stop), out, row0=start)
        return out.reshape(stop - start, tile.width, -1)

    return Image(
        tile.name,
        tile.height,
        tile.width,
        model.repr_dim,
        read,
        tile.crs,
        tile.transform,
        4 * tile.bytes_per_row,
    )


def in_memory(image: Image) -> Image:
    """The same image, read once: what is costly to make is needed more than once."""
    values = np.concatenate([image.read(*rows) for rows in image.blocks()])
    return Image(
        image.name,
        image.height,
        image.width,
        image.dims,
        lambda a, b: values[a:b],
        image.crs,
        image.transform,
    )


def percentiles(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(h, W, 5 C) float32 of (T, h, W, C) where ``known`` (T, h, W), linear between the dates; NaN
    where none is known."""
    count = known.sum(axis=0)
    ordered = np.sort(np.where(known[..., None], values, np.inf), axis=0)
    found = []
    for q in PERCENTILES:
        place = np.maximum(count - 1, 0) * (q / 100)
        lower = np.floor(place).astype(np.int64)
        upper = np.minimum(lower + 1, np.maximum(count - 1, 0))
        low, high = (np.take_along_axis(ordered, i[None, ..., None], 0)[0] for i in (lower, upper))
        known_low, known_high = (np.where(count[..., None] > 0, v, np.nan) for v in (low, high))
        found.append(known_low + (known_high - known_low) * (place - lower)[..., None])
    return np.concatenate(found, axis=-1).astype(np.float32)


def monthly(values: np.ndarray, known: np.ndarray, days: np.ndarray) -> np.ndarray:
    """(h, W, 12 C) float32 of (T, h, W, C) where ``known`` (T, h, W); ``days`` (T,) of the year.

    Months without a date are linear between those before and after, or as the first or last; NaN
    where no date is known.
    """
    month = np.searchsorted(_MONTH_ENDS, days)
    sums = np.zeros((12, *values.shape[1:]), np.float64)
    count = np.zeros((12, *values.shape[1:3]), np.int64)
    for t, m in enumerate(month):
        sums[m] += np.where(known[t][..., None], values[t], 0)
        count[m] += known[t]
    there = count > 0
    means = sums / np.maximum(count, 1)[..., None]
    index = np.arange(12)[:, None, None]
    before = np.maximum.accumulate(np.where(there, index, -1), axis=0)
    after = np.minimum.accumulate(np.where(there, index, 12)[::-1], axis=0)[::-1]
    first, last = np.where(before < 0, after, before), np.where(after > 11, before, after)
    never = ~there.any(axis=0)
    low, high = (
        np.take_along_axis(means, np.where(never, 0, v)[..., None], axis=0) for v in (first, last)
    )
    share = (index - first) / np.maximum(last - first, 1)
    filled = low + (high - low) * np.clip(share, 0, 1)[..., None]
    filled[:, never] = np.nan
    return np.moveaxis(filled, 0, 2).reshape(*filled.shape[1:3], -1).astype(np.float32)


Reduce = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _streams(seen: Observations, reduce: Reduce) -> np.ndarray:
    """``reduce`` of (values, known, days) of Sentinel-2 with NDVI, and of every orbit, joined."""
    bands = seen.s2_bands.astype(np.float32)
    red, nir = bands[..., _RED], bands[..., _NIR]
    ndvi = (nir - red) / np.maximum(nir + red, 1)
    clear = np.ones(bands.shape[:3], bool) if seen.s2_masks is None else seen.s2_masks != 0
    series = [(np.concatenate([bands, ndvi[..., None]], axis=-1), clear, seen.s2_doys)]
    for orbit in seen.orbits:
        values = orbit.bands.astype(np.float32)
        series.append((values, (values != 0).any(axis=-1), orbit.doys))
    return np.concatenate([reduce(*s) for s in series], axis=-1)


def _image(tile: Tile, dims: int, features: Callable[[Observations], np.ndarray]) -> Image:
    def read(start: int, stop: int) -> np.ndarray:
        return features(tile.rows(start, stop))

    # raw values become float32, and are sorted in a copy
    return Image(
        tile.name,
        tile.height,
        tile.width,
        dims,
        read,
        tile.crs,
        tile.transform,
        6 * tile.bytes_per_row,
    )


def matched(tiles: list[Tile], images: list[Image]) -> list[Tile]:
    """The tile of every image, by name, or the only one; InputError if one is missing or two have
    its name."""
    named = {tile.name: tile for tile in tiles}
    if len(tiles) == len(images) == 1:
        named = {images[0].name: tiles[0]}
    elif twice := [name for name, n in Counter(t.name for t in tiles).items() if n > 1]:
        raise InputError(f"tiles: expected one of each name, got two of {twice[0]!r}")
    names = [image.name.rpartition("/")[2] for image in images]
    if twice := [
        image.name for image, name in zip(images, names, strict=True) if names.count(name) > 1
    ]:
        raise InputError(
            f"tiles: expected embeddings with one image a tile, got {', '.join(twice)}; probe each "
            "year by itself, or leave the tiles out"
        )
    found = []
    for image in images:
        tile = named.get(image.name.rpartition("/")[2])
        if tile is None:
            raise InputError(
                f"tiles: expected that of embeddings {image.name!r}, got {', '.join(named)}"
            )
        if (tile.height, tile.width) != (image.height, image.width):
            raise InputError(
                f"tile {tile.name}: expected {image.height} x {image.width} pixels as the "
                f"embeddings have, got {tile.height} x {tile.width}"
            )
        found.append(tile)
    return found
