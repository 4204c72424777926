"""The Zarr v3 store: one group per UTM zone, in the layout that geotessera and xarray read.

A tile is merged shard by shard into staged copies, which then replace the store's files: prefixes,
counts, scales, embeddings, and the marker last. See docs/design/0003-store.md.
"""

from __future__ import annotations

import shutil
import threading
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from . import zone
from .output import COUNT_NAMES, Provenance, SpooledTile, TileKey, TileWriter, check_names
from .state import BuildState, remove_tree
from .zone import SHARD, Grid

PROVENANCE = "tessera_fast:provenance"
STORE_ID = "tessera_fast:store_id"


class ZarrOutput:
    """Output into a store; see :class:`tessera_fast.store.Output`. int8 only."""

    def __init__(self, path: Path, tiles: Iterable[TileKey], provenance: Provenance) -> None:
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
        self._id = ""  # of the store that is there; markers of another one do not count
        self._zones: dict[int, Grid] = {}
        self._job: dict[int, dict[Grid, None]] = {}  # tiles by zone, in order
        tiles = list(tiles)
        check_names(path, (_key(t) for t in tiles))
        places = [zone.place(t) for t in tiles]
        state = path.with_name(path.name + ".state")
        self._state = BuildState(state, path.parent, self._consolidate)
        try:
            self._read_store()
            for place in places:
                self._accept(place)
        except BaseException:
            self.close()
            raise

    def is_done(self, tile: TileKey) -> bool:
        marker = self._state.marker(_key(tile))
        grid = zone.place(tile)
        return (
            marker is not None
            and marker["store_id"] == self._id
            and marker["fingerprint"] == tile.fingerprint
            and grid.zone in self._zones
            and self._zones[grid.zone].holds(grid)
        )

    def begin(self, tile: TileKey) -> TileWriter:
        check_names(self.path, [_key(tile)])
        self._accept(zone.place(tile))
        return SpooledTile(tile, self._provenance, self._state.spool(_key(tile)), self._publish)

    def close(self) -> None:
        if self._created and all(m["store_id"] != self._id for m in self._state.markers()):
            self._state.drop()  # the disk was full, say: an empty store would not be nothing
            remove_tree(self.path)
        self._state.close()

    @property
    def _arrays(self) -> list[str]:
        return zone.array_names(self._provenance.prefixes)

    def _root(self, mode: str) -> Any:
        return self._zarr.open_group(str(self.path), mode=mode, use_consolidated=False)

    def _read_store(self) -> None:
        """Learn what is there; StoreError if it is not ours or holds other embeddings."""
        if not self.path.exists():
            return
        if not (self.path / "zarr.json").exists():
            raise StoreError(f"{self.path}: exists and is no Zarr v3 store; move it away")
        root = self._root("r")
        if PROVENANCE not in root.attrs:
            raise StoreError(
                f"{self.path}: this store was not written by tessera_fast, so what its embeddings "
                "are is not known; write to another one"
            )
        self._provenance.refuse_mixing(self.path, dict(root.attrs[PROVENANCE]))
        self._id = str(root.attrs[STORE_ID])
        for name in root.group_keys():
            if name.startswith("utm"):
                number = int(name[3:])
                self._zones[number] = zone.read_grid(root[name], number)

    def _accept(self, place: Grid) -> None:
        """Add a tile to the job; StoreError if it is off the zone's lattice."""
        tiles = self._job.setdefault(place.zone, {place: None})
        (self._zones.get(place.zone) or next(iter(tiles))).offset(place)
        tiles[place] = None

    def _publish(self, spooled: SpooledTile) -> None:
        tile = spooled.tile
        grid = zone.place(tile)
        with self._guard:
            self._state.finish(self._consolidate)
            if grid.zone not in self._zones or not self._zones[grid.zone].holds(grid):
                self._make_room()
            with self._state.staging() as staging:
                moves = self._merge(spooled, self._zones[grid.zone], grid, staging)
                record = {
                    "tile": tile.name,
                    "year": tile.year,
                    "fingerprint": tile.fingerprint,
                    "zone": grid.zone,
                    "store_id": self._id,
                    "provenance": self._provenance.to_json(),
                }
                moves.append(self._state.stage_marker(staging, _key(tile), record))
                self._state.promote(moves, lambda: None)

    def _make_room(self) -> None:
        """Create or enlarge the zones so that they hold every tile of the job.

        All zones share one time axis: readers take the years of the first zone for the store's.
        """
        tiles = {number: list(grids) for number, grids in self._job.items()}
        known = [*self._zones.values(), *(g for grids in tiles.values() for g in grids)]
        years = tuple(sorted({y for g in known for y in g.years}))
        wanted: dict[int, Grid] = {}
        for number in sorted({g.zone for g in known}):
            old, grids = self._zones.get(number), tiles.get(number, [])
            wanted[number] = old.grown(grids, years) if old else zone.union(grids, years)
        changed = {n: g for n, g in wanted.items() if self._zones.get(n) != g}
        if not self._id:
            self._create_root()
        with self._state.staging() as staging:
            parent = self._zarr.open_group(str(staging), mode="a", zarr_format=3)
            for number, grid in changed.items():
                zone.create_group(parent, grid, self._provenance.dims, self._provenance.prefixes)
                if number in self._zones:
                    self._carry_over(self._zones[number], grid, staging)
            moves = [(staging / g.group, self.path / g.group) for g in changed.values()]
            self._state.promote(moves, self._consolidate)
        self._zones = wanted

    def _carry_over(self, was: Grid, now: Grid, staging: Path) -> None:
        old, new = self.path / was.group, staging / now.group
        foreign = {p.name for p in old.iterdir()} - {p.name for p in new.iterdir()}
        if foreign:
            raise StoreError(
                f"{old}: cannot grow, because it also holds {', '.join(sorted(foreign))}; remove "
                "them or write to another store"
            )
        zone.link_shards(old, new, self._arrays, was, now)

    def _create_root(self) -> None:
        self._id = uuid.uuid4().hex
        self._created = True
        attributes = _root_attributes(self._provenance) | {STORE_ID: self._id}
        self._zarr.create_group(str(self.path), zarr_format=3, attributes=attributes)

    def _consolidate(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            self._zarr.consolidate_metadata(str(self.path))

    def _merge(
        self, spooled: SpooledTile, grid: Grid, tile: Grid, staging: Path
    ) -> list[tuple[Path, Path]]:
        """Write the shards that the tile touches, merged with what they hold, into ``staging``.

        Pixels with data replace what is there; pixels without leave a neighbour's data alone.
        """
        source = self._root("r")[grid.group]
        arrays = {name: (source[name], self._staged(name, grid, staging)) for name in self._arrays}
        t = grid.years.index(tile.years[0])
        row, col = grid.offset(tile)
        codes, scales, counts = (
            np.load(spooled.file(n), mmap_mode="r") for n in ("embeddings", "scales", "counts")
        )
        for top in range(row // SHARD * SHARD, row + tile.height, SHARD):
            for left in range(col // SHARD * SHARD, col + tile.width, SHARD):
                y = slice(top, min(top + SHARD, grid.height))
                x = slice(left, min(left + SHARD, grid.width))
                inner = _overlap(y, row, tile.height), _overlap(x, col, tile.width)
                (y_in, y_tile), (x_in, x_tile) = inner
                given = scales[y_tile, x_tile]
                bands_first = np.ascontiguousarray(np.moveaxis(codes[y_tile, x_tile], 2, 0))
                valid = np.isfinite(given)
                free = valid | ~np.isfinite(source["scales"][t, y, x][y_in, x_in])
                for name, (old, new) in arrays.items():
                    merged = old[t, ..., y, x]
                    part = merged[..., y_in, x_in]
                    if name in COUNT_NAMES:
                        fresh = counts[y_tile, x_tile, COUNT_NAMES.index(name)]
                        np.copyto(part, fresh, where=free)
                    elif name == "scales":
                        np.copyto(part, given, where=valid)
                    else:
                        np.copyto(part, bands_first[: part.shape[0]], where=valid)
                    new[t, ..., y, x] = merged
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
