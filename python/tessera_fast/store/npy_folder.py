"""A folder of official-style .npy files: ``<tile>.npy``, and ``<tile>_scales.npy`` with int8.

float32 (H, W, E) with NaN where there is no data; or int8 (H, W, E) and float32 scales (H, W),
value = code x scale, code 0 and scale +inf where there is no data. Observation counts are not
part of that layout and are not kept: the Zarr store keeps them. The state of the build is in
``.tessera_fast`` within the folder, on the same file system, so that files appear by renaming.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import StoreError
from .output import (
    STATE,
    Provenance,
    SpooledTile,
    TileKey,
    TileWriter,
    check_names,
    npy_files,
    open_state,
    remove_empty,
)

__all__ = ["STATE", "NpyFolder"]


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
        return (
            marker is not None
            and marker["fingerprint"] == tile.fingerprint
            and all((self.path / f).exists() for f in self._files(tile).values())
        )

    @property
    def extent(self) -> None:
        return None

    def begin(self, tile: TileKey) -> TileWriter | None:
        if not self._state.claim(tile.name):
            return None
        try:
            self._check([tile])
        except BaseException:
            self._state.release(tile.name)
            raise
        kept = list(self._files(tile))
        return SpooledTile(tile, self._provenance, self._state, tile.name, kept, self._publish)

    def close(self) -> None:
        self._state.close()
        remove_empty(self.path)

    def _files(self, tile: TileKey) -> dict[str, str]:
        return npy_files(tile.name, self._provenance.dtype == "int8")

    def _check_record(self) -> None:
        if self._record.exists():
            self._provenance.refuse_mixing(self.path, json.loads(self._record.read_text()))

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
        files = [p for f in self._files(tile).values() if (p := self.path / f).exists()]
        return [] if self._state.has_marker(tile.name) else files

    def _publish(self, spooled: SpooledTile) -> None:
        tile = spooled.tile
        # The first tile writes the record, and no other process's may come in between.
        with self._state.layout(change=not self._record.exists()):
            self._check_record()
            moves = []
            if not self._record.exists():
                text = json.dumps(self._provenance.to_json(), indent=1)
                (spooled.folder / "provenance.json").write_text(text)
                moves.append(("provenance.json", self._record))
            for array, file in self._files(tile).items():
                moves.append((spooled.file(array).name, self.path / file))
            record = {
                "tile": tile.name,
                "year": tile.year,
                "fingerprint": tile.fingerprint,
                "crs": tile.crs,
                "transform": tile.transform,
                "height": tile.height,
                "width": tile.width,
                "provenance": self._provenance.to_json(),
            }
            moves.append(self._state.stage_marker(spooled.folder, tile.name, record))
            self._state.promote(spooled.folder, moves)
