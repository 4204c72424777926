"""What a commit finds in a shard: files, whether they are as recorded, where a tile meets it."""

from __future__ import annotations

from pathlib import Path

from .records import ShardRecord, Stamp
from .shards import Window
from .state import new_identity
from .zone import Grid


def continued(
    known: ShardRecord | None, places: dict[str, Path], data: dict[str, bytes]
) -> tuple[dict[str, Stamp], str]:
    """The stamps of a shard's files as they were read, and the lineage that they continue.

    A new lineage where they are not those that were recorded: whatever markers of the old one
    promise has to be made again.
    """
    recorded = dict(known.files) if known else {}
    quick = {k: stamp for k, stamp in recorded.items() if k in data and stamp.fits(places[k])}
    stamps = {k: quick[k] if k in quick else Stamp.of(places[k], data[k]) for k in data}
    if known is None:
        return stamps, new_identity() if stamps else ""
    return (
        stamps,
        known.lineage if quick.keys() == recorded.keys() == stamps.keys() else new_identity(),
    )


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
