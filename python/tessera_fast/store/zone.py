"""One UTM zone of a store: where its tiles lie, and which arrays and attributes it has.

The layout is the one that geotessera 0.11 reads: https://github.com/ucam-eo/geotessera. A zone is
one group /utmNN in the northern CRS EPSG:326NN; southern tiles take negative northings there, so
that a zone which crosses the equator is one grid.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..packages import require
from ..untrusted.readers import shown, take_numbers
from . import disk
from .base import COUNT_NAMES, TileKey

PIXEL = 10.0  # metres
SHARD = 256  # pixels; 8 MiB of codes at E = 128: what a commit reads, merges and writes at once
CHUNK = 32  # pixels; 128 KiB at E = 128: what a point query reads
LATTICE_SLACK = 1e-3  # metres: rounding of a corner that went through text or float32 offsets
SOUTH_OFFSET = 10_000_000.0  # false northing of EPSG:327NN
# Metres. UTM has eastings of 100 to 900 km and northings of -10,000 to 10,000 km in a store. A
# corner that lies much farther out is damaged: no memory holds a grid that reaches it.
FARTHEST_EAST, FARTHEST_NORTH = 2e6, 2e7

_GEO = "https://github.com/zarr-conventions"
_RAW = "https://raw.githubusercontent.com/zarr-conventions"
_PROJ = ("f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system of spatial arrays")
_SPATIAL = ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Affine transform and extent in the CRS")


@dataclass(frozen=True)
class Grid:
    """A north-up 10 m grid in EPSG:326NN. ``x0``, ``y0``: outer corner of the first pixel."""

    zone: int
    x0: float
    y0: float
    height: int
    width: int
    years: tuple[int, ...]

    @property
    def group(self) -> str:
        return f"utm{self.zone:02d}"

    @property
    def epsg(self) -> int:
        return 32600 + self.zone

    def offset(self, other: Grid) -> tuple[int, int]:
        """Row and column of ``other``'s first pixel in this grid; may be negative."""
        row, col = (self.y0 - other.y0) / PIXEL, (other.x0 - self.x0) / PIXEL
        if any(abs(v - round(v)) * PIXEL > LATTICE_SLACK for v in (row, col)):
            raise StoreError(
                f"UTM zone {self.zone}: the store's pixels have corners at ({self.x0:.3f}, "
                f"{self.y0:.3f}) + multiples of 10 m, the tile's corner is ({other.x0:.3f}, "
                f"{other.y0:.3f}). Tiles are not resampled: align them, write to another store, "
                "or write .npy files (an output name without .zarr)"
            )
        return round(row), round(col)

    def holds(self, other: Grid) -> bool:
        row, col = self.offset(other)
        inside = 0 <= row <= self.height - other.height and 0 <= col <= self.width - other.width
        return inside and set(other.years) <= set(self.years)

    def grown(self, tiles: Sequence[Grid], years: tuple[int, ...]) -> Grid:
        """This grid enlarged to hold ``tiles``: exactly to the south and east, and by whole shards
        to the north and west, where the shards that are there change their index."""
        top = left = 0
        bottom, right = self.height, self.width
        for tile in tiles:
            row, col = self.offset(tile)
            top, left = min(top, row), min(left, col)
            bottom, right = max(bottom, row + tile.height), max(right, col + tile.width)
        top, left = (SHARD * math.floor(v / SHARD) for v in (top, left))
        return replace(
            self,
            x0=self.x0 + left * PIXEL,
            y0=self.y0 - top * PIXEL,
            height=bottom - top,
            width=right - left,
            years=years,
        )


def union(tiles: Sequence[Grid]) -> Grid:
    """The smallest grid that holds ``tiles`` of one zone, of all their years."""
    x0, y0 = min(t.x0 for t in tiles), max(t.y0 for t in tiles)
    years = tuple(sorted({y for t in tiles for y in t.years}))
    return replace(tiles[0], x0=x0, y0=y0).grown(tiles, years)


def extent(tiles: Iterable[TileKey]) -> dict[int, Grid]:
    """The union of ``tiles`` in every zone."""
    found: dict[int, Grid] = {}
    for tile in tiles:
        grid = place(tile)
        known = found.get(grid.zone)
        found[grid.zone] = grid if known is None else union([known, grid])
    return found


def shards(grid: Grid, tile: Grid) -> Iterator[tuple[int, int]]:
    """Row and column of the first pixel of every shard of ``grid`` that ``tile`` touches."""
    row, col = grid.offset(tile)
    for top in range(row // SHARD * SHARD, row + tile.height, SHARD):
        for left in range(col // SHARD * SHARD, col + tile.width, SHARD):
            yield top, left


def shard_name(grid: Grid, year: int, top: int, left: int) -> str:
    """Name of a shard by the place of its first pixel in millimetres, which growth leaves."""
    x, y = grid.x0 + left * PIXEL, grid.y0 - top * PIXEL
    return f"{grid.group}.{year}.{round(1000 * x)}.{round(1000 * y)}"


def shard_path(array: str, t: int, top: int, left: int) -> str:
    """The file of a shard of year number ``t`` in the folder of its zone."""
    band = "/0" if array.startswith("embeddings") else ""
    return f"{array}/c/{t}{band}/{top // SHARD}/{left // SHARD}"


def place(tile: TileKey) -> Grid:
    """Where a tile lies; StoreError if a UTM store cannot hold it."""
    instead = "Write .npy files instead (an output name without .zarr)"
    if tile.year is None:
        raise StoreError(
            f"tile {tile.name}: its year is not known, and a store has a time axis. "
            f"Give the year. {instead}"
        )
    if tile.crs is None or tile.transform is None:
        raise StoreError(f"tile {tile.name}: it has no CRS and transform. {instead}")
    epsg = _epsg(tile.crs)
    zone = epsg % 100 if epsg is not None else 0
    if epsg not in (32600 + zone, 32700 + zone) or not 1 <= zone <= 60:
        raise StoreError(
            f"tile {tile.name}: a store holds WGS 84 UTM tiles (EPSG:326NN or 327NN), got "
            f"{tile.crs}. {instead}"
        )
    a, b, c, d, e, f = tile.transform
    drift = max(abs(a - PIXEL), abs(b), abs(d), abs(e + PIXEL)) * max(tile.height, tile.width)
    if not drift <= LATTICE_SLACK:
        raise StoreError(
            f"tile {tile.name}: a store holds north-up 10 m tiles, transform (10, 0, x, 0, -10, "
            f"y), got {tuple(tile.transform)}. {instead}"
        )
    northing = f - SOUTH_OFFSET if epsg >= 32700 else f
    if not _on_earth(c, northing):
        raise StoreError(
            f"tile {tile.name}: expected a corner within UTM, at most {FARTHEST_EAST:,.0f} m east "
            f"and {FARTHEST_NORTH:,.0f} m north, got ({c:g}, {f:g}); check its transform. {instead}"
        )
    return Grid(zone, c, northing, tile.height, tile.width, (tile.year,))


def _on_earth(x: float, y: float) -> bool:
    return abs(x) <= FARTHEST_EAST and abs(y) <= FARTHEST_NORTH


def marked(tile: TileKey, grid: Grid) -> dict[str, Any]:
    """What a marker says of the inputs and the place of a tile; another value: to be made again."""
    return {
        "fingerprint": tile.fingerprint,
        "crs": f"EPSG:{grid.epsg}",
        "transform": [PIXEL, 0.0, grid.x0, 0.0, -PIXEL, grid.y0],
        "height": grid.height,
        "width": grid.width,
    }


def _epsg(crs: str) -> int | None:
    match = re.fullmatch(r"EPSG:(\d+)", crs.strip(), re.IGNORECASE)
    if match:
        return int(match[1])
    pyproj = _pyproj()
    try:
        return pyproj.CRS.from_user_input(crs).to_epsg()
    except pyproj.exceptions.CRSError:
        return None


def _pyproj() -> Any:
    require("pyproj.exceptions", "a .zarr store", instead=", or write .npy files")
    return require("pyproj", "a .zarr store")


def array_names(prefixes: Sequence[int]) -> list[str]:
    """The arrays with pixels, in the order in which a tile's shards appear."""
    return [*(f"embeddings_d{k}" for k in prefixes), *COUNT_NAMES, "scales", "embeddings"]


def create_group(parent: Any, grid: Grid, dims: int, prefixes: Sequence[int]) -> None:
    """Create /utmNN without pixels under the zarr group ``parent``."""
    from zarr.codecs import ZstdCodec

    geo = _geo_attributes(grid)
    group = parent.create_group(grid.group, attributes=geo)
    t, h, w = len(grid.years), grid.height, grid.width
    compressors = ZstdCodec(level=3)
    # xarray makes spatial_ref a coordinate of each array by these two, and rioxarray reads it.
    attributes = {**geo, "grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
    depths = {f"embeddings_d{k}": k for k in prefixes}
    for name, k in {**depths, "embeddings": dims}.items():
        side = _chunk_side(k)
        group.create_array(
            name,
            shape=(t, k, h, w),
            dtype="int8",
            fill_value=0,
            chunks=(1, k, side, side),
            shards=(1, k, SHARD, SHARD),
            compressors=compressors,
            attributes=attributes,
            dimension_names=["time", _band_name(name), "y", "x"],
        )
    for name in (*COUNT_NAMES, "scales"):
        dtype, fill = ("float32", np.inf) if name == "scales" else ("uint16", 0)
        group.create_array(
            name,
            shape=(t, h, w),
            dtype=dtype,
            fill_value=fill,
            chunks=(1, CHUNK, CHUNK),
            shards=(1, SHARD, SHARD),
            compressors=compressors,
            attributes=attributes,
            dimension_names=["time", "y", "x"],
        )
    for name, values in _coordinates(grid, {**depths, "embeddings": dims}).items():
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=values.shape,
            fill_value=0,
            compressors=compressors,
            dimension_names=[name] if values.ndim else [],
            attributes=_spatial_ref(grid) if name == "spatial_ref" else {},
        )
        array[...] = values


def read_grid(group: Any, zone: int) -> Grid:
    """The grid of an existing /utmNN; StoreError if its layout is not ``create_group``'s."""
    shards = group["embeddings"].shards
    if group.attrs.get("proj:code") != f"EPSG:{32600 + zone}" or (
        shards is None or shards[-2:] != (SHARD, SHARD)
    ):
        raise StoreError(
            f"{group.store_path}: expected {SHARD} pixel shards in EPSG:{32600 + zone}, got "
            f"{shards} in {group.attrs.get('proj:code')}; write to another store"
        )
    attributes = dict(group.attrs)
    _, _, x0, _, _, y0 = take_numbers(attributes, "spatial:transform", 6)
    if not _on_earth(x0, y0):
        raise StoreError(
            f"{group.store_path}: expected a corner within UTM, got ({x0:g}, {y0:g}) m in "
            "spatial:transform; restore its zarr.json from a copy, or write to another store"
        )
    h, w = group["embeddings"].shape[-2:]
    if attributes.get("spatial:shape") != [h, w]:
        raise StoreError(
            f"{group.store_path}: expected spatial:shape {[h, w]}, that of the arrays, got "
            f"{shown(attributes.get('spatial:shape'))}; write to another store"
        )
    return Grid(zone, x0, y0, h, w, tuple(int(y) for y in group["time"][:]))


def link_shards(old: Path, new: Path, names: Sequence[str], was: Grid, now: Grid) -> None:
    """Give the shards of the group folder ``old`` to ``new``, a group of the larger grid ``now``.

    Hard links where the file system has them, so that nothing is copied and ``old`` stays whole.
    """
    row, col = (n // SHARD for n in now.offset(was))
    times = [now.years.index(y) for y in was.years]
    for name in names:
        chunks = old / name / "c"
        for folder, _, files in os.walk(chunks):
            for file in (Path(folder, f) for f in files if f.isdigit()):
                t, *middle, y, x = (int(p) for p in file.relative_to(chunks).parts)
                index = (times[t], *middle, y + row, x + col)
                target = (new / name / "c").joinpath(*map(str, index))
                target.parent.mkdir(parents=True, exist_ok=True)
                disk.link(file, target)


def _band_name(array: str) -> str:
    return "band" if array == "embeddings" else array.replace("embeddings", "band")


def _chunk_side(dims: int) -> int:
    """A prefix has fewer bytes per pixel: wider chunks keep them near the full one's size."""
    side = CHUNK
    while side < SHARD and dims * (2 * side) ** 2 <= 128 * CHUNK**2:
        side *= 2
    return side


def _coordinates(grid: Grid, bands: dict[str, int]) -> dict[str, np.ndarray]:
    coordinates = {
        "time": np.array(grid.years, np.int32),
        "x": grid.x0 + (np.arange(grid.width) + 0.5) * PIXEL,  # pixel centres
        "y": grid.y0 - (np.arange(grid.height) + 0.5) * PIXEL,
        "spatial_ref": np.array(0, np.int32),
    }
    return coordinates | {_band_name(a): np.arange(k, dtype=np.int32) for a, k in bands.items()}


def _spatial_ref(grid: Grid) -> dict[str, Any]:
    pyproj = _pyproj()
    try:
        cf = pyproj.CRS.from_epsg(grid.epsg).to_cf()
    except pyproj.exceptions.CRSError as error:
        raise StoreError(
            f"pyproj does not find EPSG:{grid.epsg} in its database ({error}); check where that is "
            "(PROJ_DATA) and that the process has enough memory"
        ) from error
    transform = f"{grid.x0} {PIXEL} 0.0 {grid.y0} 0.0 {-PIXEL}"  # GDAL's order
    return {**cf, "spatial_ref": cf["crs_wkt"], "GeoTransform": transform}


def _geo_attributes(grid: Grid) -> dict[str, Any]:
    h, w = grid.height, grid.width
    return {
        # Readers look for either name: the v0.1 one without a colon, or the later one with it.
        "zarr_conventions": [
            _convention(name + colon, uuid, text, tag)
            for colon, tag in (("", "v0.1"), (":", "v1"))
            for name, (uuid, text) in (("proj", _PROJ), ("spatial", _SPATIAL))
        ],
        "proj:code": f"EPSG:{grid.epsg}",
        "spatial:dimensions": ["y", "x"],
        "spatial:transform_type": "affine",
        "spatial:transform": [PIXEL, 0.0, grid.x0, 0.0, -PIXEL, grid.y0],  # pixel corner
        "spatial:shape": [h, w],
        "spatial:bbox": [grid.x0, grid.y0 - h * PIXEL, grid.x0 + w * PIXEL, grid.y0],
        "spatial:registration": "pixel",
    }


def _convention(name: str, uuid: str, text: str, tag: str) -> dict[str, str]:
    repository = "geo-proj" if name == "proj:" else name.rstrip(":")
    return {
        "uuid": uuid,
        "name": name,
        "description": text,
        "spec_url": f"{_GEO}/{repository}/blob/{tag}/README.md",
        "schema_url": f"{_RAW}/{repository}/refs/tags/{tag}/schema.json",
    }
