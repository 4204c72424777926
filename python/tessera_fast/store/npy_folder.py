"""A folder of official-style .npy files: ``<tile>.npy``, and ``<tile>_scales.npy`` with int8.

float32 (H, W, E) with NaN where there is no data; or int8 (H, W, E) and float32 scales (H, W),
value = code x scale, code 0 and scale +inf where there is no data. Observation counts are not
part of that layout and are not kept: the Zarr store keeps them. The state of the build is in
``.tessera_fast`` within the folder, on the same file system, so that files appear by renaming.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import StoreError
from ..untrusted.readers import Unreadable, read_json
from .base import Provenance, TileKey, TileWriter, check_names, npy_files, other_tile
from .disk import remove_empty
from .merging import why_changed
from .records import Stamp, parse_stamps
from .spool import SpooledTile
from .state import STATE, new_identity, open_state
from .transactions import Move


class NpyFolder:
    """Output into a folder; see :class:`tessera_fast.store.Output`."""

    def __init__(self, path: Path, tiles: Iterable[TileKey], provenance: Provenance) -> None:
        self.path = path
        self._provenance = provenance
        tiles = list(tiles)
        check_names(path, (f for t in tiles for f in self._files(t).values()))
        if path.is_file():
            raise StoreError(f"{path}: expected a folder or a name ending in .zarr, got a file")
        self._record = path / STATE / "provenance.json"
        self._state = open_state(path)
        try:
            self._check(tiles)
        except BaseException:
            self.close()
            raise

    def is_done(self, tile: TileKey) -> bool:
        marker = self._state.marker(tile.name)
        if marker is None or marker["fingerprint"] != tile.fingerprint:
            return False
        stamps = parse_stamps(marker.get("files", {}))
        if stamps.keys() != set(self._files(tile).values()):
            return False
        return all(stamp.fits(self.path / file) for file, stamp in stamps.items())

    def refusal(self, tile: TileKey) -> str | None:
        place = {name: getattr(tile, name) for name in ("year", "crs", "height", "width")}
        place["transform"] = tile.transform and list(tile.transform)
        marker = self._state.marker(tile.name)
        if reason := other_tile(self.path, tile, marker, place):
            return reason
        stamps = parse_stamps(marker.get("files", {})) if marker else {}
        if self._changed(stamps):
            with self._state.layout():  # a commit may be under way
                self._state.finish()
            stamps = parse_stamps((self._state.marker(tile.name) or {}).get("files", {}))
        file = self._changed(stamps)
        return None if file is None else why_changed(file)

    def _changed(self, stamps: dict[str, Stamp]) -> Path | None:
        """A file of a finished tile that is there and is not the one that was written."""
        files = ((self.path / name, stamp) for name, stamp in stamps.items())
        return next((f for f, stamp in files if not stamp.fits(f) and os.path.lexists(f)), None)

    @property
    def extent(self) -> None:
        return None

    def begin(self, tile: TileKey) -> TileWriter | None:
        if not self._state.claim(tile.name):
            return None
        try:
            self._check([tile])
            if why := self.refusal(tile):
                raise StoreError(why)
        except BaseException:
            self._state.release(tile.name)
            raise
        kept = list(self._files(tile))
        return SpooledTile(tile, self._provenance, self._state, tile.name, kept, self._publish)

    def holders(self) -> str:
        return self._state.holders()

    def close(self) -> None:
        self._state.close()
        remove_empty(self.path)

    def _files(self, tile: TileKey) -> dict[str, str]:
        return npy_files(tile.name, self._provenance.dtype == "int8")

    def _check_record(self) -> None:
        try:
            recorded = read_json(self._record, links=False)
        except FileNotFoundError:
            return
        except Unreadable as error:
            raise StoreError(
                f"{self._record}: expected what the embeddings in this folder are, got {error}; "
                "write to another folder"
            ) from error
        self._provenance.refuse_mixing(self.path, recorded)

    def _check(self, tiles: list[TileKey]) -> None:
        self._check_record()
        for tile in tiles:
            check_names(self.path, [tile.name])
            if self._foreign(tile):
                with self._state.layout(change=True):  # a commit on its way ends first
                    foreign = self._foreign(tile)
                if foreign:
                    raise StoreError(
                        f"{foreign[0]}: exists and was not written by tessera_fast as tile "
                        f"{tile.name}; move it away or write to another folder"
                    )

    def _foreign(self, tile: TileKey) -> list[Path]:
        """Files at the tile's places that are not its own."""
        files = [self.path / file for file in self._files(tile).values()]
        files = [file for file in files if os.path.lexists(file)]
        return [] if self._state.has_marker(tile.name) else files

    def _publish(self, spooled: SpooledTile) -> None:
        tile = spooled.tile
        # The first tile writes the record, and no other process's may come in between.
        with self._state.layout(change=not self._record.exists()):
            self._check_record()
            identity = self._state.identity or new_identity()
            moves, stamps = [], {}
            if not self._record.exists():
                record = self._provenance.to_json()
                place = "state/provenance.json"
                moves.append(self._state.stage(spooled.folder, "provenance.json", place, record))
            for array, file in self._files(tile).items():
                staged = spooled.file(array)
                stamps[file], there = Stamp.of(staged), self.path / file
                replaces = Stamp.of(there) if there.is_file() else None
                moves.append(Move(staged.name, f"output/{file}", stamps[file], replaces))
            marker = {
                "tile": tile.name,
                "source": tile.source,
                "year": tile.year,
                "fingerprint": tile.fingerprint,
                "crs": tile.crs,
                "transform": tile.transform if np.isfinite(tile.transform or 0).all() else None,
                "height": tile.height,
                "width": tile.width,
                "provenance": self._provenance.to_json(),
                "files": {file: list(stamp) for file, stamp in stamps.items()},
            }
            moves.append(self._state.stage_marker(spooled.folder, tile.name, identity, marker))
            self._state.promote(spooled.folder, moves, identity)
