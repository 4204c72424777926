"""The Zarr v3 store: one group per UTM zone, in the layout that geotessera and xarray read.

A tile is merged shard by shard into new files, which then replace the store's: prefixes, counts,
scales, embeddings, and the marker last. See docs/design/0003-store.md.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..untrusted.readers import map_npy
from . import disk, zone
from .attributes import root_attributes
from .base import COUNT_NAMES, Provenance, TileKey, TileWriter, check_names, other_tile, store_key
from .merging import changed, continued, is_broken, overlap, why_changed
from .metadata import (
    IDENTITY,
    PROVENANCE,
    carried_identity,
    copy_metadata,
    decoding,
    import_zarr,
    open_store,
)
from .records import ShardRecord, Stamp
from .shards import Awaiting, Shards, outranks
from .spool import SpooledTile
from .state import new_identity, open_state
from .transactions import Move
from .zone import SHARD, Grid

_log = logging.getLogger(__name__)


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
        self._zarr = import_zarr()
        self._provenance = provenance
        self._seen: tuple[int, ...] = ()  # which layout `_zones` and `_shards` are of
        self._zones: dict[int, Grid] = {}
        self._shards: dict[int, Shards] = {}
        self._awaiting = Awaiting()
        # Shards that were found as recorded, with the lineage, or without where none was asked for.
        self._sound: set[tuple[str, str]] = set()
        self._identity = ""  # that the store carries; empty before there is one
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
        if marker is None or any(marker.get(k) != v for k, v in zone.marked(tile, grid).items()):
            return False
        if not self._holds(grid):
            with self._state.layout():
                self._read_store()  # another process may have enlarged it
        if not self._holds(grid):
            return False
        lineages = marker.get("shards", {})
        if self._are_sound(grid, lineages):
            return True
        # A commit may be under way, or another process may have enlarged the store meanwhile.
        with self._state.layout():
            self._read_store()
            with self._state.locks.held(map(_lock_of, self._named(grid))):
                self._state.finish()
                return self._are_sound(grid, lineages)

    def _are_sound(self, tile: Grid, lineages: dict[str, str]) -> bool:
        """Whether the shards of a tile are those that commits of these lineages left.

        Each shard is looked at once: while the output is open only commits change it.
        """
        for name, top, left in self._named(tile):
            lineage = lineages.get(name)
            if (name, lineage) in self._sound:
                continue
            record = self._state.shard(name)
            if lineage is None or record is None or record.lineage != lineage:
                return False
            files = self._files(tile, top, left)
            if any(f.exists() != (k in record.files) for k, f in files.items()):
                return False
            if not all(stamp.fits(files[k]) for k, stamp in record.files.items() if k in files):
                return False
            self._sound.add((name, lineage))
        return True

    def _named(self, tile: Grid) -> list[tuple[str, int, int]]:
        """Name, row and column of each shard that a tile of this store touches."""
        grid, year = self._zones[tile.zone], tile.years[0]
        return [
            (zone.shard_name(grid, year, top, left), top, left)
            for top, left in zone.shards(grid, tile)
        ]

    def _files(self, tile: Grid, top: int, left: int) -> dict[str, Path]:
        """The files of one shard in the year of ``tile``, by array."""
        grid = self._zones[tile.zone]
        t = grid.years.index(tile.years[0])
        folder = self.path / grid.group
        return {name: folder / zone.shard_path(name, t, top, left) for name in self._arrays}

    def refusal(self, tile: TileKey) -> str | None:
        grid = zone.place(tile)
        place = {k: v for k, v in zone.marked(tile, grid).items() if k != "fingerprint"}
        reason = other_tile(self.path, tile, self._state.marker(store_key(tile)), place)
        if reason or not self._holds(grid) or not self._changed(grid):
            return reason
        with self._state.layout():  # a commit may be under way
            self._read_store()
            shards = self._named(grid)
            with self._state.locks.held(map(_lock_of, shards)):
                self._state.finish()
                file = self._changed(grid)
        return None if file is None else why_changed(file)

    def _changed(self, tile: Grid) -> Path | None:
        """A file of the tile's shards that is not the one that the last commit left."""
        for name, top, left in self._named(tile):
            if (name, "") not in self._sound:
                file = changed(self._state.shard(name), self._files(tile, top, left))
                if file is not None:
                    return file
                self._sound.add((name, ""))
        return None

    def begin(self, tile: TileKey) -> TileWriter | None:
        key = store_key(tile)
        check_names(self.path, [key])
        self._accept(zone.place(tile))
        if not self._state.claim(key):
            return None
        if why := self.refusal(tile):
            self._state.release(key)
            raise StoreError(why)
        kept = ("embeddings", "scales", "counts")
        return SpooledTile(tile, self._provenance, self._state, key, kept, self._publish)

    def holders(self) -> str:
        return self._state.holders()

    def close(self) -> None:
        self._awaiting.close()
        self._state.close()

    @property
    def _arrays(self) -> list[str]:
        return zone.array_names(self._provenance.prefixes)

    def _root(self) -> Any:
        return open_store(self._zarr, self.path)

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
        with decoding(self.path):
            self._read_zones(self._root())
        self._shards, self._seen = {}, seen

    def _read_zones(self, root: Any) -> None:
        recorded = root.attrs.get(PROVENANCE)
        if not isinstance(recorded, dict):
            raise StoreError(
                f"{self.path}: this store was not written by tessera_fast, so what its embeddings "
                "are is not known; write to another one"
            )
        self._provenance.refuse_mixing(self.path, recorded)
        identity = carried_identity(self.path)
        if identity is None:
            raise StoreError(
                f"{self.path}: an earlier version wrote this store, without the identity that "
                "binds a store to the record of its tiles. It can be read; write to another one"
            )
        numbers = [int(name[3:]) for name in root.group_keys() if re.fullmatch(r"utm\d\d", name)]
        self._zones = {n: zone.read_grid(root[f"utm{n:02d}"], n) for n in numbers}
        self._identity = identity

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
            shards = self._named(tile)
            with self._state.locks.held(map(_lock_of, shards)):
                self._state.finish()  # of processes that died with these shards
                moves, lineages = self._merge(spooled, tile, shards)
                marker = {
                    "tile": spooled.tile.name,
                    "source": spooled.tile.source,
                    "year": spooled.tile.year,
                    **zone.marked(spooled.tile, tile),
                    "provenance": self._provenance.to_json(),
                    "shards": lineages,
                }
                folder, identity = spooled.folder, self._identity
                moves.append(self._state.stage_marker(folder, key, identity, marker))
                self._state.promote(folder, moves, identity)
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
        identity = new_identity() if born else self._identity
        if born:
            self._state.forget()  # of a store that was deleted
        with self._state.staging() as staging:
            attributes = (
                dict(self._root().attrs)
                if not born
                else {**root_attributes(self._provenance), IDENTITY: identity}
            )
            parent = self._zarr.create_group(str(staging), zarr_format=3, attributes=attributes)
            for number, grid in changed.items():
                zone.create_group(parent, grid, self._provenance.dims, self._provenance.prefixes)
                if number in self._zones:
                    self._carry_over(self._zones[number], grid, staging)
            copy_metadata(self.path, staging)  # of the zones that stay
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Consolidated metadata")
                self._zarr.consolidate_metadata(str(staging))
            moves = [
                Move(name, f"output/{name}", Stamp.of(staging / name / "zarr.json"))
                for name in (grid.group for grid in changed.values())
            ]
            moves.append(Move("zarr.json", "output/zarr.json", Stamp.of(staging / "zarr.json")))
            if born:
                before = self._state.stage_identity(staging, identity)
                moves = [before, self._state.stage_birth(staging), *moves]
            self._state.promote(staging, moves, identity, layout=True)
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
        self, spooled: SpooledTile, tile: Grid, shards: list[tuple[str, int, int]]
    ) -> tuple[list[Move], dict[str, str]]:
        """Write the ``shards`` that the tile touches, merged with what they hold, into its spool.

        Where tiles overlap the pixel with more observations stays, whichever tile came first. A
        tile that is made again from other inputs replaces what is there. Pixels without data
        replace nothing. Returns the moves, and the lineage of each shard.
        """
        before = self._state.marker(store_key(spooled.tile))
        now = zone.marked(spooled.tile, tile)
        again = before is not None and any(before.get(k) != v for k, v in now.items())
        grid = self._zones[tile.zone]
        if tile.zone not in self._shards:
            folder = self.path / grid.group
            with decoding(folder):
                self._shards[tile.zone] = Shards(
                    self._zarr, self._root()[grid.group], folder, self._arrays, self._awaiting
                )
        store = self._shards[tile.zone]
        t = grid.years.index(tile.years[0])
        row, col = grid.offset(tile)
        codes, scales, counts = (
            map_npy(spooled.file(n)) for n in ("embeddings", "scales", "counts")
        )
        moves: dict[str, list[Move]] = {name: [] for name in (*self._arrays, "")}
        lineages = {}
        for shard_name, top, left in shards:
            shard = slice(top, top + SHARD), slice(left, left + SHARD)
            part, (y, x) = overlap(shard, (row, col), tile)
            merged = store.read(t, shard, part)
            places = self._files(tile, top, left)
            known = self._state.shard(shard_name)
            if (other := changed(known, places)) is not None:
                raise StoreError(why_changed(other))
            was, lineage = continued(known, places, store.read_files)
            broken = is_broken(known, was)
            if broken:
                _log.warning(
                    "%s: parts of the shard at row %d and column %d are missing; the tiles that "
                    "lie in it are made again",
                    places["scales"],
                    top,
                    left,
                )
                merged = store.blank(part)
            fresh = {"scales": scales[y, x]}
            fresh["embeddings"] = np.ascontiguousarray(np.moveaxis(codes[y, x], 2, 0))
            for n, name in enumerate(COUNT_NAMES):
                fresh[name] = counts[y, x, n]
            wins = np.isfinite(fresh["scales"]) if again else outranks(fresh, merged)
            stamps = dict(was)
            if broken or wins.any():
                for name, values in merged.items():
                    np.copyto(values, fresh[name], where=wins)
                for name, encoded in store.encode(t, shard, part, merged).items():
                    file = f"{name}.{top}.{left}"
                    disk.write(spooled.folder / file, encoded)
                    stamps[name] = Stamp.of(spooled.folder / file, encoded)
                    place = f"output/{places[name].relative_to(self.path).as_posix()}"
                    moves[name].append(Move(file, place, stamps[name], was.get(name)))
            lineages[shard_name] = lineage
            record = ShardRecord(lineage, stamps)
            if record != known:
                moves[""].append(
                    self._state.stage_shard(spooled.folder, shard_name, self._identity, record)
                )
        return [move for of_array in moves.values() for move in of_array], lineages


def _lock_of(shard: tuple[str, int, int]) -> str:
    """Name of the lock of a shard."""
    return f"shard {shard[0]}"
