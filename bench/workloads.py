"""What the model-only benchmarks run on: fixed lengths, or pixels of a tile."""

from pathlib import Path
from typing import Any

import numpy as np

import tessera_fast as tf
from tessera_fast.packing import Observations, Orbit, pack
from tessera_fast.spec import MAX_DOY, ModelSpec

S2_DATES, ORBIT_DATES = 32, 60  # multiples of 8 in both streams: no fillers


def choose(spec: ModelSpec, tile: Path | None, pixels: int) -> tuple[str, Observations]:
    """(name, window) of a tile's folder, or of fixed lengths."""
    if tile is not None:
        return tile.name, tile_pixels(spec, tile, pixels)
    return f"{S2_DATES} + {2 * ORBIT_DATES} dates", fixed_lengths(spec, pixels)


def fixed_lengths(spec: ModelSpec, pixels: int) -> Observations:
    """Seeded raw values spread as the model's statistics say, on distinct days, all clear."""
    r = np.random.RandomState(0)
    stats = spec.statistics

    def draw(dates: int, mean: Any, std: Any, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        values = r.normal(mean, std, (dates, pixels, 1, len(mean)))
        days = np.stack([np.sort(r.permutation(MAX_DOY)[:dates]) + 1 for _ in range(pixels)], 1)
        return np.clip(values, 1, 16_000).astype(dtype), days[:, :, None].astype(np.int32)

    s2, s2_days = draw(S2_DATES, stats.s2_mean, stats.s2_std, np.uint16)
    orbits = tuple(
        Orbit(i, *draw(ORBIT_DATES, stats.s1_mean[i], stats.s1_std[i], np.int16)) for i in (0, 1)
    )
    return Observations(s2, None, s2_days, orbits)


def tile_pixels(spec: ModelSpec, folder: Path, pixels: int) -> Observations:
    """At most ``pixels`` pixels spread evenly over a tile, those without any date left out."""
    tile = tf.open_tile(folder, allow_missing_s1=True)
    window = tile.rows(0, tile.height)
    size = tile.height * tile.width

    def pick(a: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a[:, at // tile.width, at % tile.width][:, :, None])

    def cut(at: np.ndarray) -> Observations:
        orbits = tuple(Orbit(o.index, pick(o.bands, at), o.doys) for o in window.orbits)
        masks = pick(np.asarray(window.s2_masks), at)
        return Observations(pick(window.s2_bands, at), masks, window.s2_doys, orbits)

    at = np.unique(np.linspace(0, size - 1, min(pixels, size)).astype(np.int64))
    counts = pack(cut(at), spec)[2]
    return cut(at[counts.any(axis=1)])
