"""The Zarr v3 store: one group per UTM zone, in the layout that geotessera and xarray read.

A tile is merged shard by shard into new files, which then replace the store's: prefixes, counts,
scales, embeddings, and the marker last. See docs/design/0003-store.md.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from . import zone
from .output import (
    COUNT_NAMES,
    Provenance,
    SpooledTile,
    TileKey,
    TileWriter,
    check_names,
    open_state,
    store_key,
)
from .shards import Shards, Window, outranks
from .zone import SHARD, Grid

PROVENANCE = "tessera_fast:provenance"


class ZarrOutput:
    """Output into a store; see :class:`tessera_fast.store.Output`. int8 only."""

    def __init__(
        self,
        path: Path,
        tiles: Iterable[TileKey],
        provenance: Provenance,
        extent: dict[int, Grid] | None = None,
    ) -> None:
        if provenance.dtype != "int8":
            raise StoreError(
                f"{path}: a store holds int8 codes and scales, got {provenance.dtype}; write .npy "
                "files (an output name without .zarr) to keep float32"
            )
        self.path = path
        self._zarr = _import_zarr()
        self._provenance = provenance
        self._seen: tuple[int, ...] = ()  # which layout `_zones` and `_shards` are of
        self._zones: dict[int, Grid] = {}
        self._shards: dict[int, Shards] = {}
        self._job = dict(extent or {})  # what all tiles of the job need
        places: list[Grid] = []

        def place(tile: TileKey) -> str:
            places.append(zone.place(tile))
            return store_key(tile)

        check_names(path, map(place, tiles))
        self._state = open_state(path)
        try:
            with self._state.layout():
                self._read_store()
            for grid in (*self._job.values(), *places):
                self._accept(grid)
        except BaseException:
            self.close()
            raise

    @property
    def extent(self) -> dict[int, Grid]:
        return self._job

    def is_done(self, tile: TileKey) -> bool:
        marker = self._state.marker(store_key(tile))
        grid = zone.place(tile)
        if marker is None or any(marker.get(k) != v for k, v in _identity(tile, grid).items()):
            return False
        if not self._holds(grid):
            with self._state.layout():
                self._read_store()  # another process may have enlarged it
        return self._holds(grid)

    def begin(self, tile: TileKey) -> TileWriter | None:
        key = store_key(tile)
        check_names(self.path, [key])
        self._accept(zone.place(tile))
        if not self._state.claim(key):
            return None
        kept = ("embeddings", "scales", "counts")
        return SpooledTile(tile, self._provenance, self._state, key, kept, self._publish)

    def close(self) -> None:
        self._state.close()

    @property
    def _arrays(self) -> list[str]:
        return zone.array_names(self._provenance.prefixes)

    def _root(self) -> Any:
        return self._zarr.open_group(str(self.path), mode="r", use_consolidated=False)

    def _holds(self, place: Grid) -> bool:
        return place.zone in self._zones and self._zones[place.zone].holds(place)

    def _read_store(self) -> None:
        """Learn what is there; StoreError if it is not ours or holds other embeddings.

        Needs the layout. The file that is looked at holds the metadata of all arrays, so it is
        replaced whenever the layout changes.
        """
        try:
            found = os.stat(self.path / "zarr.json")
        except FileNotFoundError:
            if self.path.exists():
                raise StoreError(
                    f"{self.path}: exists and is no Zarr v3 store; move it away"
                ) from None
            self._zones, self._shards, self._seen = {}, {}, ()
            return
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return
        root = self._root()
        if PROVENANCE not in root.attrs:
            raise StoreError(
                f"{self.path}: this store was not written by tessera_fast, so what its embeddings "
                "are is not known; write to another one"
            )
        self._provenance.refuse_mixing(self.path, dict(root.attrs[PROVENANCE]))
        numbers = [int(name[3:]) for name in root.group_keys() if name.startswith("utm")]
        self._zones = {n: zone.read_grid(root[f"utm{n:02d}"], n) for n in numbers}
        self._shards, self._seen = {}, seen

    def _accept(self, place: Grid) -> None:
        """Add a tile to the job; StoreError if it is off the zone's lattice."""
        number, zones, job = place.zone, self._zones, self._job
        if number in zones:
            zones[number].offset(place)
        grown = zone.union([job[number], place]) if number in job else place
        self._job = {**job, number: grown}  # anew, as a commit in another thread may read it

    def _publish(self, spooled: SpooledTile) -> None:
        grid = zone.place(spooled.tile)
        while not self._merged(spooled, grid):
            with self._state.layout(change=True):
                self._read_store()
                if not self._holds(grid):
                    self._make_room()

    def _merged(self, spooled: SpooledTile, tile: Grid) -> bool:
        """Merge a tile into the store and record it. False: there is no room for it yet."""
        key = store_key(spooled.tile)
        with self._state.layout():
            self._read_store()
            if not self._holds(tile):
                return False
            shards = list(zone.shards(self._zones[tile.zone], tile))
            with self._state.locks.held(f"{tile.group} {tile.years} {s}" for s in shards):
                self._state.finish()  # of processes that died with these shards
                moves = self._merge(spooled, tile, shards)
                record = {
                    "tile": spooled.tile.name,
                    "year": spooled.tile.year,
                    **_identity(spooled.tile, tile),
                    "provenance": self._provenance.to_json(),
                }
                moves.append(self._state.stage_marker(spooled.folder, key, record))
                self._state.promote(spooled.folder, moves)
        return True

    def _make_room(self) -> None:
        """Create or enlarge the zones so that they hold every tile of the job.

        All zones share one time axis: readers take the years of the first zone for the store's.
        """
        known = [*self._zones.values(), *self._job.values()]
        years = tuple(sorted({y for g in known for y in g.years}))
        wanted: dict[int, Grid] = {}
        for number in sorted({g.zone for g in known}):
            old, job = self._zones.get(number), self._job.get(number)
            if old is None:
                assert job is not None
                wanted[number] = replace(job, years=years)
            else:
                wanted[number] = old.grown([job] if job else [], years)
        changed = {n: g for n, g in wanted.items() if self._zones.get(n) != g}
        born = not self.path.exists()
        if born:
            self._state.forget_markers()  # of a store that was deleted
        with self._state.staging() as staging:
            attributes = _root_attributes(self._provenance) if born else dict(self._root().attrs)
            parent = self._zarr.create_group(str(staging), zarr_format=3, attributes=attributes)
            for number, grid in changed.items():
                zone.create_group(parent, grid, self._provenance.dims, self._provenance.prefixes)
                if number in self._zones:
                    self._carry_over(self._zones[number], grid, staging)
            _copy_metadata(self.path, staging)  # of the zones that stay
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Consolidated metadata")
                self._zarr.consolidate_metadata(str(staging))
            moves = [(grid.group, self.path / grid.group) for grid in changed.values()]
            moves.append(("zarr.json", self.path / "zarr.json"))
            if born:
                moves.insert(0, self._state.stage_birth(staging, self.path))
            self._state.promote(staging, moves, layout=True)
        self._read_store()

    def _carry_over(self, was: Grid, now: Grid, staging: Path) -> None:
        old, new = self.path / was.group, staging / now.group
        foreign = {p.name for p in old.iterdir()} - {p.name for p in new.iterdir()}
        if foreign:
            raise StoreError(
                f"{old}: cannot grow, because it also holds {', '.join(sorted(foreign))}; remove "
                "them or write to another store"
            )
        zone.link_shards(old, new, self._arrays, was, now)

    def _merge(
        self, spooled: SpooledTile, tile: Grid, shards: list[tuple[int, int]]
    ) -> list[tuple[str, Path]]:
        """Write the ``shards`` that the tile touches, merged with what they hold, into its spool.

        Where tiles overlap the pixel with more observations stays, whichever tile came first. A
        tile that is made again replaces what is there. Pixels without data replace nothing.
        """
        again = self._state.has_marker(store_key(spooled.tile))
        grid = self._zones[tile.zone]
        if tile.zone not in self._shards:
            folder = self.path / grid.group
            self._shards[tile.zone] = Shards(
                self._zarr, self._root()[grid.group], folder, self._arrays
            )
        store = self._shards[tile.zone]
        t = grid.years.index(tile.years[0])
        row, col = grid.offset(tile)
        codes, scales, counts = (
            np.load(spooled.file(n), mmap_mode="r") for n in ("embeddings", "scales", "counts")
        )
        moves: dict[str, list[tuple[str, Path]]] = {name: [] for name in self._arrays}
        for top, left in shards:
            shard = slice(top, top + SHARD), slice(left, left + SHARD)
            part, (y, x) = _overlap(shard, (row, col), tile)
            merged = store.read(t, shard, part)
            fresh = {"scales": scales[y, x]}
            fresh["embeddings"] = np.ascontiguousarray(np.moveaxis(codes[y, x], 2, 0))
            for n, name in enumerate(COUNT_NAMES):
                fresh[name] = counts[y, x, n]
            wins = np.isfinite(fresh["scales"]) if again else outranks(fresh, merged)
            if not wins.any():
                continue
            for name, values in merged.items():
                np.copyto(values, fresh[name], where=wins)
            for name in self._arrays:
                encoded = store.encode(name, t, shard, part, merged)
                if encoded is not None:
                    file = f"{name}.{top}.{left}"
                    (spooled.folder / file).write_bytes(encoded)
                    moves[name].append((file, store.file(name, t, shard)))
        return [move for of_array in moves.values() for move in of_array]


def _identity(tile: TileKey, grid: Grid) -> dict[str, Any]:
    """What a marker says of the inputs and the place of a tile; another value: to be made again."""
    return {
        "fingerprint": tile.fingerprint,
        "crs": f"EPSG:{grid.epsg}",
        "transform": [zone.PIXEL, 0.0, grid.x0, 0.0, -zone.PIXEL, grid.y0],
        "height": grid.height,
        "width": grid.width,
    }


def _copy_metadata(store: Path, staging: Path) -> None:
    """Copy what ``store`` says of its groups and arrays, where ``staging`` says nothing of them."""
    for folder, inside, files in os.walk(store):
        there = staging / Path(folder).relative_to(store)
        inside[:] = [name for name in inside if name != "c" and not (there / name).exists()]
        if "zarr.json" in files and there != staging:
            there.mkdir(parents=True)
            shutil.copyfile(Path(folder, "zarr.json"), there / "zarr.json")


def _overlap(shard: Window, start: tuple[int, int], tile: Grid) -> tuple[Window, Window]:
    """Where a shard and a tile at row and column ``start`` meet: in the zone, and in the tile."""
    both = [
        slice(max(s.start, first), min(s.stop, first + size))
        for s, first, size in zip(shard, start, (tile.height, tile.width), strict=True)
    ]
    y, x = (slice(s.start - first, s.stop - first) for s, first in zip(both, start, strict=True))
    return (both[0], both[1]), (y, x)


def _import_zarr() -> Any:
    needed = "a .zarr store needs zarr >= 3 (Python >= 3.11): pip install 'zarr>=3', or write .npy "
    needed += "files (an output name without .zarr)"
    try:
        import zarr
    except ImportError as error:
        raise StoreError(needed) from error
    if int(zarr.__version__.split(".")[0]) < 3:
        raise StoreError(f"{needed}; found zarr {zarr.__version__}")
    return zarr


def _root_attributes(p: Provenance) -> dict[str, Any]:
    depths = [{"dimensions": k, "array": f"embeddings_d{k}"} for k in p.prefixes]
    state = "" if p.trained else "untrained:"
    geoemb = "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md"
    schema = "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention"
    missions = "https://sentinel.esa.int/web/sentinel/missions"
    return {
        "zarr_conventions": [
            {
                "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
                "name": "geoemb:",
                "description": "Arrays of geospatial embeddings and what made them",
                "spec_url": geoemb,
                "schema_url": f"{schema}/refs/tags/v1/schema.json",
            }
        ],
        "geoemb:type": "pixel",
        "geoemb:dimensions": p.dims,
        # A name of our own, by the weights that ran: not the name of a published data set.
        "geoemb:model": f"urn:tessera-fast:{state}{p.model}:sha256:{p.weights_sha256}",
        "geoemb:source_data": [f"{missions}/sentinel-1", f"{missions}/sentinel-2"],
        "geoemb:data_type": "int8",
        "geoemb:gsd": zone.PIXEL,
        "geoemb:spatial_layout": "utm_zones",
        "geoemb:build_version": f"tessera_fast {p.package_version}",
        "geoemb:landmask": False,
        "geoemb:quantization": {
            "method": "per_pixel_scale",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": {"type": "array", "array_name": "scales", "nodata": "+inf"},
        },
        **(
            {"geoemb:depths": [*depths, {"dimensions": p.dims, "array": "embeddings"}]}
            if depths
            else {}
        ),
        PROVENANCE: p.to_json(),
        "tessera_fast:untrained": not p.trained,
    }
