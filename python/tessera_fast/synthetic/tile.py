"""A synthetic tile that looks like farmland in Flanders, for the demo, tests and benchmarks.

Nothing here was measured: the spectra, calendars and backscatter are plausible round numbers. What
is kept from reality is what decides how a model behaves: fields with the calendar of their crop,
clouds that are correlated in space and hide half of the dates, speckle, swath edges, missing data.
H rows, W columns of 10 m, T dates. Randomness is numpy's frozen RandomState, keyed by (seed, part).
"""

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import InputError, StoreError
from ..packages import why_not
from ..spec import S1_BANDS, S2_BANDS
from ..tile import Tile, open_tile
from ..tile.fields import DAYS, ORBITS
from ..tile.geotiff import plain, write_plain
from ..untrusted.readers import local_path, shown
from .landscape import CLASSES, Landscape, landscape, rng, smooth_noise

__all__ = ["CLASSES", "EDGE_PIXELS", "synthetic_classes", "synthetic_tile", "write_tile"]

_log = logging.getLogger("tessera_fast")

CRS = "EPSG:32631"
_WRITE_BYTES = 256 << 20  # of observations held while a tile is written
TRANSFORM = (10.0, 0.0, 501_000.0, 0.0, -10.0, 5_630_000.0)

# Pixels of the top row, by column, that every synthetic tile has. What they lack is 0.
EDGE_PIXELS = (
    "no Sentinel-2 observation, Sentinel-1 present",
    "no Sentinel-1 observation, Sentinel-2 present",
    "no observation at all",
    "one Sentinel-2 and one Sentinel-1 observation",
    "Sentinel-1 ascending only",
    "Sentinel-1 rows where VV is 0 but VH is not: they count as observed",
)

# Reflectance in percent, by wavelength: B02 B03 B04 B05 B06 B07 B08 B8A B11 B12.
_WAVELENGTHS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_SPECTRA = {
    "crop": (2.5, 5.6, 2.6, 9.0, 31, 41, 44, 46, 20, 9),
    "straw": (7, 11, 15, 19, 23, 26, 29, 31, 34, 24),
    "soil": (6, 8.5, 11.5, 14, 16, 18, 20, 22, 27, 22),
    "grass": (3, 6.2, 3.6, 10, 28, 35, 37, 39, 22, 11),
    "leaves": (2, 4, 2, 7, 28, 36, 38, 40, 17, 7),
    "twigs": (4, 5.5, 6, 9, 14, 16, 18, 20, 20, 13),
    "needles": (1.6, 3, 1.9, 4.6, 14, 18, 20, 21, 9, 4),
    "water": (3.6, 4, 2.4, 1.9, 1.5, 1.4, 1.2, 1.1, 0.6, 0.4),
    "roofs": (9, 10.5, 12, 13.5, 15, 16, 18, 19, 21, 18),
    "asphalt": (8, 9, 10, 11, 12, 12.5, 13, 14, 16, 15),
}
# What a class shows where it is (green, dry, bare).
_COVER = {
    "winter wheat": ("crop", "straw", "soil"),
    "winter barley": ("crop", "straw", "soil"),
    "maize": ("crop", "straw", "soil"),
    "sugar beet": ("crop", "straw", "soil"),
    "potato": ("crop", "straw", "soil"),
    "grassland": ("grass", "straw", "soil"),
    "deciduous forest": ("leaves", "twigs", "twigs"),
    "coniferous forest": ("needles", "twigs", "twigs"),
    "water": ("grass", "straw", "water"),
    "built-up": ("grass", "straw", "roofs"),
    "road": ("grass", "straw", "asphalt"),
}
# (day of year, green cover, dry cover), linear between the rows.
_CALENDARS = {
    "winter wheat": (
        (1, 0.25, 0),
        (60, 0.35, 0),
        (90, 0.6, 0),
        (125, 0.95, 0),
        (160, 0.9, 0.05),
        (185, 0.3, 0.7),
        (203, 0.05, 0.9),
        (210, 0.03, 0.5),
        (250, 0.1, 0.1),
        (300, 0.08, 0),
        (366, 0.25, 0),
    ),
    "winter barley": (
        (1, 0.35, 0),
        (60, 0.45, 0),
        (85, 0.75, 0),
        (115, 0.97, 0),
        (145, 0.75, 0.2),
        (168, 0.1, 0.9),
        (178, 0.04, 0.5),
        (220, 0.2, 0.1),
        (260, 0.75, 0),
        (320, 0.65, 0),
        (366, 0.4, 0),
    ),
    "maize": (
        (1, 0.05, 0.05),
        (115, 0.12, 0),
        (122, 0.02, 0),
        (150, 0.08, 0),
        (175, 0.5, 0),
        (200, 0.95, 0),
        (240, 0.9, 0.05),
        (265, 0.5, 0.45),
        (276, 0.1, 0.5),
        (285, 0.03, 0.2),
        (366, 0.05, 0.05),
    ),
    "sugar beet": (
        (1, 0.03, 0.02),
        (95, 0.02, 0),
        (125, 0.06, 0),
        (150, 0.4, 0),
        (172, 0.9, 0),
        (250, 0.95, 0),
        (295, 0.85, 0.05),
        (305, 0.1, 0.1),
        (312, 0.02, 0),
        (366, 0.03, 0.02),
    ),
    "potato": (
        (1, 0.1, 0),
        (90, 0.15, 0),
        (105, 0.01, 0),
        (140, 0.05, 0),
        (165, 0.8, 0),
        (195, 0.95, 0),
        (230, 0.75, 0.1),
        (248, 0.1, 0.5),
        (262, 0.02, 0.1),
        (290, 0.1, 0),
        (366, 0.15, 0),
    ),
    "grassland": (
        (1, 0.55, 0.1),
        (70, 0.6, 0.1),
        (120, 0.92, 0),
        (133, 0.95, 0),
        (138, 0.5, 0.2),
        (165, 0.88, 0),
        (170, 0.5, 0.2),
        (205, 0.8, 0.1),
        (230, 0.7, 0.15),
        (280, 0.8, 0.05),
        (366, 0.58, 0.1),
    ),
    "deciduous forest": (
        (1, 0.05, 0.6),
        (100, 0.08, 0.6),
        (130, 0.9, 0.1),
        (180, 0.97, 0),
        (270, 0.8, 0.1),
        (305, 0.3, 0.5),
        (325, 0.06, 0.6),
        (366, 0.05, 0.6),
    ),
    "coniferous forest": ((1, 0.85, 0.1), (140, 0.88, 0.1), (200, 0.95, 0.05), (366, 0.85, 0.1)),
    "water": ((1, 0, 0), (366, 0, 0)),
    "built-up": (
        (1, 0.12, 0.05),
        (120, 0.25, 0),
        (210, 0.28, 0.04),
        (300, 0.2, 0.05),
        (366, 0.12, 0.05),
    ),
    "road": ((1, 0.04, 0.03), (150, 0.12, 0.02), (366, 0.04, 0.03)),
}
# Sentinel-1 gamma0 in dB: VV and VH where nothing grows, and what full green cover adds.
_BACKSCATTER = {
    "winter wheat": (-10, -17.5, -4.5, -3.5),
    "winter barley": (-10, -17.5, -3.5, -1),
    "maize": (-10.5, -18, 1.5, 4.5),
    "sugar beet": (-10.5, -18, 2, 5),
    "potato": (-9, -16.5, 2, 4),
    "grassland": (-10.5, -17.5, -1.5, -0.5),
    "deciduous forest": (-8.5, -13.5, -0.5, 0.3),
    "coniferous forest": (-9, -14.5, 0, 0),
    "water": (-19, -26.5, 0, 0),
    "built-up": (-4, -11.5, -1, -1),
    "road": (-13, -20, 0.5, 0.5),
}


def synthetic_classes(
    height: int = 128, width: int = 128, *, seed: int = 0, year: int = 2024
) -> np.ndarray:
    """True class of every pixel of :func:`synthetic_tile`, (H, W) uint8 into ``CLASSES``."""
    return landscape(height, width, seed, year).classes


def synthetic_tile(height: int = 128, width: int = 128, *, seed: int = 0, year: int = 2024) -> Tile:
    """An in-memory tile "synthetic_<seed>_<year>", the same for the same arguments.

    About 70 Sentinel-2 and 30 + 30 Sentinel-1 dates in official units (bands uint16, masks uint8,
    SAR int16). The fields depend on ``seed``, crops and weather on ``seed`` and ``year``. Raises
    InputError for a tile narrower than the edge pixels.
    """
    if height < 1 or width < len(EDGE_PIXELS):
        raise InputError(
            f"synthetic tile: expected at least 1 x {len(EDGE_PIXELS)} pixels, got {height} x "
            f"{width}"
        )
    land = landscape(height, width, seed, year)
    arrays = _sentinel2(land, seed, year)
    for i, orbit in enumerate(ORBITS):
        arrays[orbit], arrays[DAYS[orbit]] = _sentinel1(land, i, seed, year)
    _set_edges(arrays)
    name = f"synthetic_{seed}_{year}"
    return open_tile(arrays, name=name, year=year, crs=CRS, transform=TRANSFORM)


def _cover(land: Landscape, doy: int) -> tuple[np.ndarray, np.ndarray]:
    """Green and dry cover of every pixel on a day, (H, W) each, together at most 1."""
    green, dry = np.zeros(land.classes.shape), np.zeros(land.classes.shape)
    for i, name in enumerate(CLASSES):
        at = land.classes == i
        days, g, d = np.array(_CALENDARS[name], float).T
        when = np.clip(doy - land.delay[at], 1, 366)
        green[at] = np.interp(when, days, g) * land.vigour[at]
        dry[at] = np.interp(when, days, d)
    green = np.clip(green, 0, 1)
    return green, np.clip(dry, 0, 1 - green)


def _sentinel2(land: Landscape, seed: int, year: int) -> dict[str, np.ndarray]:
    r = rng(seed, f"sentinel-2 {year}")
    days = r.randint(1, 5) + np.cumsum(np.r_[0, r.choice([2, 3, 5], 120, p=[0.06, 0.06, 0.88])])
    days = days[days <= 365]
    days = np.sort(r.permutation(days)[: max(1, len(days) - 6)])  # acquisitions that failed
    shape = land.classes.shape
    columns = [_WAVELENGTHS.index(band) for band in S2_BANDS]
    spectra = {name: np.array(s)[columns] / 100 for name, s in _SPECTRA.items()}
    cover = np.array([[spectra[s] for s in _COVER[name]] for name in CLASSES])  # (class, 3, 10)
    bands = np.empty((len(days), *shape, len(S2_BANDS)), np.uint16)
    masks = np.empty((len(days), *shape), np.uint8)
    for t, doy in enumerate(days):
        green, dry = _cover(land, int(doy))
        moisture = r.uniform(0.75, 1.05)
        bare = (1 - green - dry) * land.brightness * moisture
        parts = np.stack([green, dry, bare], axis=-1)
        surface = np.einsum("hwk,hwkc->hwc", parts, cover[land.classes])
        # Canopies are darker in winter's low sun, and no two atmospheres are alike.
        sun = 1 - 0.1 * _winter(int(doy))
        haze = r.exponential(0.004) * np.array([1.6, 1.3, 1, 0.8, 0.5, 0.4, 0.3, 0.3, 0.1, 0.05])
        surface = surface * sun * r.normal(1, 0.02) + haze[columns]
        surface *= land.texture[..., None] * r.normal(1, 0.025, surface.shape)
        cloud, shadow = _clouds(r, shape, int(doy))
        surface *= 1 - 0.6 * shadow[..., None]
        white = np.array([0.62, 0.6, 0.6, 0.61, 0.62, 0.63, 0.64, 0.64, 0.42, 0.33])[columns]
        white = white * (0.75 + 0.5 * smooth_noise(r, shape, 24)[..., None].clip(0, 1))
        surface += cloud[..., None] * (white - surface)
        bands[t] = np.clip(surface * 10_000, 1, 16_000)
        masks[t] = (cloud < 0.08) & (shadow < 0.25)
    return {"bands": bands, "masks": masks, "doys": days.astype(np.int32)}


def _winter(doy: int) -> float:
    """1 in early January, 0 in early July."""
    return float(0.5 + 0.5 * np.cos(2 * np.pi * (doy - 10) / 365))


def _clouds(
    r: np.random.RandomState, shape: tuple[int, int], doy: int
) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of clouds and of their shadows, 0..1, for one date."""
    winter = _winter(doy)
    kind, part = r.uniform(), r.beta(0.8, 0.8)
    fraction = 1.0 if kind < 0.14 + 0.22 * winter else 0.0 if kind > 0.8 - 0.1 * winter else part
    field = smooth_noise(r, shape, 60) + 0.15 * smooth_noise(r, shape, 10)
    shift = (r.randint(4, 14), r.randint(-8, 9))
    if fraction in (0.0, 1.0):
        return np.full(shape, fraction), np.zeros(shape)
    cloud = np.clip((field - np.quantile(field, 1 - fraction)) / 0.3 + 0.1, 0, 1)
    return cloud, np.roll(cloud, shift, (0, 1)) * (1 - cloud)


def _sentinel1(land: Landscape, orbit: int, seed: int, year: int) -> tuple[np.ndarray, np.ndarray]:
    """One orbit as int16 (T, H, W, 2) and its days: two tracks, the second with a swath edge."""
    r = rng(seed, f"sentinel-1 {orbit} {year}")
    height, width = shape = land.classes.shape
    first = 2 + 5 * orbit + r.randint(0, 4)
    tracks = [(first, 12, 0.03), (first + 5, 24, 0.5)]
    passes = sorted((d, p) for start, step, p in tracks for d in range(start, 366, step))
    kept = [p for p in passes if r.uniform() > 0.3]
    days = np.array([d for d, _ in kept] or [first], np.int32)
    table = np.array([_BACKSCATTER[name] for name in CLASSES])[land.classes]  # (H, W, 4)
    y, x = np.mgrid[:height, :width]
    edge = x / width + 0.25 * y / height < (0.85 if orbit else 0.45)
    out = np.empty((len(days), *shape, len(S1_BANDS)), np.int16)
    for t, doy in enumerate(days):
        green, _ = _cover(land, int(doy))
        wet = r.normal(0, 0.7) * (1 - green)[..., None]  # moist soil scatters more
        decibel = table[..., :2] + table[..., 2:] * green[..., None] + wet + 0.5 * orbit
        decibel = decibel + land.roughness[..., None]
        looks = 5.0  # of a ground-range product at 10 m
        power = 10 ** (decibel / 10) * r.gamma(looks, 1 / looks, decibel.shape)
        out[t] = np.clip((20 * np.log10(power) + 50) * 200, 0, 32767)
        off_swath = bool(kept) and kept[t][1] > 0.1
        unobserved = (r.uniform(size=shape) < 0.002) | (off_swath & edge)
        out[t][unobserved] = 0
    return out, days


def _set_edges(arrays: dict[str, np.ndarray]) -> None:
    masks = arrays["masks"]
    ascending, descending = (arrays[orbit] for orbit in ORBITS)
    masks[:, 0, [0, 2, 3]] = 0
    masks[len(masks) // 2, 0, 3] = 1
    for sar in (ascending, descending):
        one = sar[0, 0, 3].clip(1)
        sar[:, 0, [1, 2, 3]] = 0
        if sar is ascending:
            sar[0, 0, 3] = one
    descending[:, 0, 4] = 0
    ascending[:, 0, 4] = ascending[:, 0, 4].clip(1)
    for sar in (ascending, descending):
        sar[:, 0, 5, 0] = 0
        sar[:, 0, 5, 1] = sar[:, 0, 5, 1].clip(1)


def write_tile(source: Tile | Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write a tile in the official layout and return its folder, which must not exist yet.

    ``roi.tiff`` is written if the tile has a georeference. One that is not north-up in WGS 84 /
    UTM needs rasterio: without it there is a warning, and the folder embeds to arrays, but not to a
    store. The folder appears whole or not at all. Raises InputError for a bad tile or an existing
    folder, StoreError if it cannot be written.
    """
    tile = open_tile(source, allow_missing_s1=True)
    folder = local_path(folder, "folder")
    if folder.exists():
        raise InputError(f"{folder}: expected a folder that does not exist yet; remove it first")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write_arrays(tile, partial)
        _write_roi(tile, partial / "roi.tiff")
        partial.rename(folder)
    except OSError as error:
        raise StoreError(f"{folder}: the tile could not be written ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _write_arrays(tile: Tile, folder: Path) -> None:
    np.save(folder / "doys.npy", tile.s2_doys)
    for orbit in tile.orbits:
        np.save(folder / f"{DAYS[ORBITS[orbit.index]]}.npy", orbit.doys)
    names = ["bands", "masks", *(ORBITS[orbit.index] for orbit in tile.orbits)]
    step = max(1, _WRITE_BYTES // tile.bytes_per_row)
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in names]
        starts: list[int] = []
        for start in range(0, tile.height, step):
            band = tile.rows(start, min(start + step, tile.height))
            masks = np.asarray(band.s2_masks)
            parts = [band.s2_bands, masks, *(orbit.bands for orbit in band.orbits)]
            for i, (file, part) in enumerate(zip(files, parts, strict=True)):
                if start == 0:
                    starts.append(_write_header(file, part, tile.height))
                _write_band(file, starts[i], part, start, tile.height)


def _write_header(file: BinaryIO, part: np.ndarray, height: int) -> int:
    """Begin a .npy file of ``height`` rows; return where its values start."""
    shape = (part.shape[0], height, *part.shape[2:])
    header = {"descr": part.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _write_band(file: BinaryIO, values: int, part: np.ndarray, first: int, height: int) -> None:
    """Write rows first.. of every date. Not through a memory map: on a full disk that is a signal
    that ends the process, where write() is an error."""
    row = part[0, 0].nbytes
    for t, rows in enumerate(part):
        file.seek(values + (t * height + first) * row)
        file.write(np.ascontiguousarray(rows).data)


def _write_roi(tile: Tile, path: Path) -> None:
    """An all-ones image that carries the CRS and the transform."""
    crs, transform = tile.georeference.crs, tile.georeference.transform
    if crs is None or transform is None:
        return
    simple = plain((tile.height, tile.width), crs, transform)
    if simple is not None:
        path.write_bytes(write_plain(simple))
        return
    try:
        import rasterio
    except ImportError as error:
        _log.warning(
            "%s is not written: its CRS or transform needs %s, or pass crs= and transform= when "
            "the tile is opened",
            path.name,
            why_not("rasterio", error),
        )
        return
    try:
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=tile.height,
            width=tile.width,
            count=1,
            dtype="uint8",
            crs=crs,
            transform=rasterio.Affine(*transform),
        ) as roi:
            roi.write(np.ones((tile.height, tile.width), np.uint8), 1)
    except rasterio.errors.CRSError as error:
        raise InputError(
            f"crs: expected one that rasterio knows, got {shown(crs)} ({error}); pass crs= when "
            "the tile is opened"
        ) from error
    except rasterio.errors.RasterioError as error:
        raise StoreError(f"{path}: cannot be written ({error})") from error
