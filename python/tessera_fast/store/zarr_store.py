"""The Zarr v3 store: one group per UTM zone, in the layout that geotessera and xarray read.

A tile is merged shard by shard into staged copies, which then replace the store's files: prefixes,
counts, scales, embeddings, and the marker last. See docs/design/0003-store.md.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from . import zone
from .output import COUNT_NAMES, Provenance, SpooledTile, TileKey, TileWriter, check_names
from .state import BuildState, remove_tree
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
        self._guard = threading.Lock()
        self._created = False  # by this run
        self._seen: tuple[int, ...] = ()  # which layout `_zones` is of
        self._zones: dict[int, Grid] = {}
        self._job = dict(extent or {})  # what all tiles of the job need
        places: list[Grid] = []

        def place(tile: TileKey) -> str:
            places.append(zone.place(tile))
            return _key(tile)

        check_names(path, map(place, tiles))
        state = path.with_name(path.name + ".state")
        self._state = BuildState(state, path.parent, self._consolidate)
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
        marker = self._state.marker(_key(tile))
        if marker is None or marker["fingerprint"] != tile.fingerprint:
            return False
        grid = zone.place(tile)
        if not self._holds(grid):
            with self._state.layout():
                self._read_store()  # another process may have enlarged it
        return self._holds(grid)

    def begin(self, tile: TileKey) -> TileWriter | None:
        key = _key(tile)
        check_names(self.path, [key])
        self._accept(zone.place(tile))
        if not self._state.claim(key):
            return None
        folder = self._state.spool(key)
        release = partial(self._state.release, key)
        return SpooledTile(tile, self._provenance, folder, self._publish, release)

    def close(self) -> None:
        if self._created:
            with self._state.layout(change=True):
                if not self._state.has_markers():
                    remove_tree(self.path)  # the disk was full, say: an empty store is not nothing
        self._state.close()

    @property
    def _arrays(self) -> list[str]:
        return zone.array_names(self._provenance.prefixes)

    def _root(self, mode: str) -> Any:
        return self._zarr.open_group(str(self.path), mode=mode, use_consolidated=False)

    def _holds(self, place: Grid) -> bool:
        return place.zone in self._zones and self._zones[place.zone].holds(place)

    def _read_store(self) -> None:
        """Learn what is there; StoreError if it is not ours or holds other embeddings.

        Needs the layout. Its metadata is consolidated after every change, which writes this file.
        """
        try:
            found = os.stat(self.path / "zarr.json")
        except FileNotFoundError:
            if self.path.exists():
                raise StoreError(
                    f"{self.path}: exists and is no Zarr v3 store; move it away"
                ) from None
            self._zones, self._seen = {}, ()
            return
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return
        root = self._root("r")
        if PROVENANCE not in root.attrs:
            raise StoreError(
                f"{self.path}: this store was not written by tessera_fast, so what its embeddings "
                "are is not known; write to another one"
            )
        self._provenance.refuse_mixing(self.path, dict(root.attrs[PROVENANCE]))
        numbers = [int(name[3:]) for name in root.group_keys() if name.startswith("utm")]
        self._zones = {n: zone.read_grid(root[f"utm{n:02d}"], n) for n in numbers}
        self._seen = seen

    def _accept(self, place: Grid) -> None:
        """Add a tile to the job; StoreError if it is off the zone's lattice."""
        number = place.zone
        if number in self._zones:
            self._zones[number].offset(place)
        job = self._job.get(number)
        self._job[number] = place if job is None else zone.union([job, place])

    def _publish(self, spooled: SpooledTile) -> None:
        grid = zone.place(spooled.tile)
        with self._guard:
            while not self._merged(spooled, grid):
                with self._state.layout(change=True):
                    self._read_store()
                    if not self._holds(grid):
                        self._make_room()

    def _merged(self, spooled: SpooledTile, tile: Grid) -> bool:
        """Merge a tile into the store and record it. False: there is no room for it yet."""
        with self._state.layout():
            self._read_store()
            if not self._holds(tile):
                return False
            grid = self._zones[tile.zone]
            shards = zone.shards(grid, tile)
            with self._state.locks.held(f"{tile.group} {tile.years} {s}" for s in shards):
                self._state.finish()  # of processes that died with these shards
                with self._state.staging(spooled.folder) as staging:
                    moves = self._merge(spooled, grid, tile, staging)
                    record = {
                        "tile": spooled.tile.name,
                        "year": spooled.tile.year,
                        "fingerprint": spooled.tile.fingerprint,
                        "crs": f"EPSG:{tile.epsg}",
                        "transform": [zone.PIXEL, 0.0, tile.x0, 0.0, -zone.PIXEL, tile.y0],
                        "height": tile.height,
                        "width": tile.width,
                        "provenance": self._provenance.to_json(),
                    }
                    moves.append(self._state.stage_marker(staging, _key(spooled.tile), record))
                    self._state.promote(staging, moves)
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
        with self._state.staging() as staging:
            moves = []
            parent = self._zarr.create_group(
                str(staging), zarr_format=3, attributes=_root_attributes(self._provenance)
            )
            if not self.path.exists():
                self._state.forget_markers()  # of a store that was deleted
                self._created = True
                moves.append((staging / "zarr.json", self.path / "zarr.json"))
            for number, grid in changed.items():
                zone.create_group(parent, grid, self._provenance.dims, self._provenance.prefixes)
                if number in self._zones:
                    self._carry_over(self._zones[number], grid, staging)
            moves += [(staging / g.group, self.path / g.group) for g in changed.values()]
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

    def _consolidate(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            self._zarr.consolidate_metadata(str(self.path))

    def _merge(
        self, spooled: SpooledTile, grid: Grid, tile: Grid, staging: Path
    ) -> list[tuple[Path, Path]]:
        """Write the shards that the tile touches, merged with what they hold, into ``staging``.

        Where tiles overlap the pixel with more observations stays, whichever tile came first. A
        tile that is made again replaces what is there. Pixels without data replace nothing.
        """
        again = self._state.marker(_key(spooled.tile)) is not None
        source = self._root("r")[grid.group]
        arrays = {name: (source[name], self._staged(name, grid, staging)) for name in self._arrays}
        t = grid.years.index(tile.years[0])
        row, col = grid.offset(tile)
        codes, scales, counts = (
            np.load(spooled.file(n), mmap_mode="r") for n in ("embeddings", "scales", "counts")
        )
        for top, left in zone.shards(grid, tile):
            y = slice(top, min(top + SHARD, grid.height))
            x = slice(left, min(left + SHARD, grid.width))
            (y_in, y_tile), (x_in, x_tile) = (
                _overlap(y, row, tile.height), _overlap(x, col, tile.width)
            )  # fmt: skip
            merged = {name: old[t, ..., y, x] for name, (old, _) in arrays.items()}
            parts = {name: whole[..., y_in, x_in] for name, whole in merged.items()}
            fresh = {"scales": scales[y_tile, x_tile]}
            fresh["embeddings"] = np.ascontiguousarray(np.moveaxis(codes[y_tile, x_tile], 2, 0))
            for n, name in enumerate(COUNT_NAMES):
                fresh[name] = counts[y_tile, x_tile, n]
            wins = _outranks(fresh, parts, again)
            for name, part in parts.items():
                values = fresh[name] if name in fresh else fresh["embeddings"][: len(part)]
                np.copyto(part, values, where=wins)
                arrays[name][1][t, ..., y, x] = merged[name]
        return [
            (file, self.path / file.relative_to(staging))
            for name in self._arrays
            for file in sorted((staging / grid.group / name / "c").rglob("*"))
            if file.is_file()
        ]

    def _staged(self, name: str, grid: Grid, staging: Path) -> Any:
        """An array in ``staging`` with the metadata of the store's, and no shards."""
        folder = staging / grid.group / name
        folder.mkdir(parents=True)
        shutil.copyfile(self.path / grid.group / name / "zarr.json", folder / "zarr.json")
        return self._zarr.open_array(str(folder), mode="r+")


def _outranks(new: dict[str, np.ndarray], old: dict[str, np.ndarray], again: bool) -> np.ndarray:
    """Where pixels of ``new`` take the place of ``old``'s, (h, w) bool.

    By an order of pixels, not of tiles, so that the result does not depend on which tile came
    first: data before no data, more observations, then whatever differs. ``again``: all with data.
    """
    valid = np.isfinite(new["scales"])
    if again:
        return valid
    better = valid & ~np.isfinite(old["scales"])
    tied = valid & ~better
    for a, b in zip(_ranks(new), _ranks(old), strict=True):
        if not tied.any():
            break
        better |= tied & (a > b)
        tied &= a == b
    return better


def _ranks(pixels: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """(h, w) each, the most important first."""
    counts = [pixels[name].astype(np.int64) for name in COUNT_NAMES]
    yield from (counts[0] + counts[1] + counts[2], *counts, pixels["scales"])
    yield from pixels["embeddings"]


def _key(tile: TileKey) -> str:
    return f"{tile.name}.{tile.year}"


def _overlap(window: slice, start: int, size: int) -> tuple[slice, slice]:
    """Where ``window`` and ``start .. start + size`` meet: within the window, within the tile."""
    lo, hi = max(window.start, start), min(window.stop, start + size)
    return slice(lo - window.start, hi - window.start), slice(lo - start, hi - start)


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
