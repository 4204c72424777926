"""What a commit finds in a shard: files, whether they are as recorded, where a tile meets it."""

from __future__ import annotations

import os
from pathlib import Path

from .records import ShardRecord, Stamp
from .shards import Window
from .state import new_identity
from .zone import Grid


def changed(known: ShardRecord | None, places: dict[str, Path]) -> Path | None:
    """A file of a shard, by array, that is there and is not the one that was recorded.

    Lost files are another matter, see `is_broken`. None too where nothing was recorded.
    """
    if known is None:
        return None
    for name, file in places.items():
        stamp = known.files.get(name)
        if (stamp is None or not stamp.fits(file)) and os.path.lexists(file):
            return file
    return None


def why_changed(file: Path) -> str:
    """Why a tile is not written over such a file: it may be precious, or half of a mixture."""
    return (
        f"{file}: is not the file that the last commit left (something else changed it, or the "
        "output was copied while a job wrote to it). Nothing was overwritten. Restore it from a "
        "copy; or remove it and run again: the tiles that lie in it are then made again"
    )


def continued(
    known: ShardRecord | None, places: dict[str, Path], data: dict[str, bytes]
) -> tuple[dict[str, Stamp], str]:
    """The stamps of a shard's files as they were read, and the lineage that they continue.

    A new lineage where files were lost, or nothing was recorded: whatever markers of another one
    promise has to be made again.
    """
    if known is None:
        return {k: Stamp.of(places[k], data[k]) for k in data}, new_identity()
    stamps = {k: known.files[k] for k in data}
    return stamps, known.lineage if stamps.keys() == known.files.keys() else new_identity()


def is_broken(known: ShardRecord | None, found: dict[str, Stamp]) -> bool:
    """Whether files of a shard were lost, so that the others tell of pixels that are not there."""
    if known is None:
        return ("embeddings" in found) != ("scales" in found)
    return not known.files.keys() <= found.keys()


def overlap(shard: Window, start: tuple[int, int], tile: Grid) -> tuple[Window, Window]:
    """Where a shard and a tile at row and column ``start`` meet: in the zone, and in the tile."""
    both = [
        slice(max(s.start, first), min(s.stop, first + size))
        for s, first, size in zip(shard, start, (tile.height, tile.width), strict=True)
    ]
    y, x = (slice(s.start - first, s.stop - first) for s, first in zip(both, start, strict=True))
    return (both[0], both[1]), (y, x)
