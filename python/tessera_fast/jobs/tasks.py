"""What a job has to do: its sources, or the rows of its plan, as tasks; and the part of a shard.

Every source has a number that does not depend on what can be read, and window w of source k belongs
to shard (k + w) modulo the number of shards. So a tile that one shard cannot open changes nothing
for the others.
"""

from __future__ import annotations

import logging
import tempfile
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, StoreError, TesseraError
from ..planning.rows import MOST_WORKERS, PlanRow
from ..planning.sources import Source, listed
from ..planning.table import Plan
from ..store import TileKey, zone
from ..store.base import npy_files, store_key
from ..tile import Tile, open_tile, open_windows, unplaced
from ..tile.sources import source_path
from ..untrusted.numbers import whole_number
from ..untrusted.readers import MAX_NAME, plain_name, printable, shown
from .runner import Task, TileReport

_MAX_WINDOW = 1_000_000  # pixels a side
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """The part ``index`` of ``count`` parts of a job."""

    index: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Whether the source or window of this number belongs to the shard."""
        return number % self.count == self.index


def checked_shard(shard: Any) -> Shard:
    """(index, count) as a Shard; the whole job for None; InputError for anything else."""
    if shard is None:
        return Shard()
    try:
        index, count = shard if isinstance(shard, tuple | list) else (None, None)
        count = whole_number("n", count, 1, MOST_WORKERS)
        return Shard(whole_number("i", index, 0, count - 1), count)
    except ValueError as error:  # of two or of a number
        raise InputError(
            f"shard: expected (i, n) with 0 <= i < n <= {MOST_WORKERS:,}, got {shown(shard)}"
        ) from error


@dataclass(frozen=True)
class _Row(Source):
    """A row of a plan, or a tile that the plan could not use."""

    row: PlanRow | None = None


@dataclass
class JobTasks:
    """The tasks of a job, filled by `open`. ``options`` are those of `open_tile`."""

    tiles: Any  # sources of `open_tile`, or a Plan
    out: Path
    options: dict[str, Any]
    window: int | None
    int8: bool
    shard: Shard
    tasks: list[Task] = field(default_factory=list)  # of this shard
    keys: list[TileKey] = field(default_factory=list)  # of all shards; fingerprints of this one's
    _unopened: deque[Source] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.window is not None:
            whole_number("window", self.window, 1, _MAX_WINDOW)
            if isinstance(self.tiles, Plan):
                raise InputError("window: a plan is of whole tiles; give the tiles themselves")
        self._extent: dict[int, zone.Grid] = {}  # of the tiles of every UTM zone
        self._several = True  # a source that is not listed may stand for several tiles

    def open(self, failed: Callable[[TileReport], None]) -> None:
        """Open every source. What cannot be opened or placed is given to ``failed``.

        All shards open all sources, as the extent of a new store is that of all tiles; each
        reports its own failures. Raises StoreError if two tiles would write one file.
        """
        self._unopened.extend(_sources(self.tiles))
        given = self.tiles if isinstance(self.tiles, list | tuple) else [self.tiles]
        self._several = len(given) == 1 or len(self._unopened) > len(given)
        while self._unopened:
            source = self._unopened[0]
            try:
                parts = self._parts(source)
            except TesseraError as error:
                self._unopened.popleft()
                self._not_opened(source, error, failed)
                continue
            self._unopened.popleft()
            for number, part in enumerate(parts, source.number):
                self._add(part, len(parts) > 1, source, self.shard.has(number), failed)
        self._refuse_collisions()

    def pending(self, reported: Iterable[TileReport]) -> Iterator[TileReport]:
        """The tiles of this shard that are not among those ``reported``."""
        known = {(tile.name, tile.year) for tile in reported}
        for task in self.tasks:
            if (task.key.name, task.key.year) not in known:
                yield task.report(state="pending")
        for source in self._unopened:
            if self.shard.has(source.number):
                yield _report(source, "pending")

    def _parts(self, source: Source) -> list[Any]:
        """The source as tiles: one, or windows of one, or the row of a plan."""
        if source.error is not None:
            raise source.error
        if isinstance(source, _Row) and source.row is not None:
            return [source.row]
        tile = open_tile(source.given, **self.options)
        if self.window is None or self.window >= max(tile.height, tile.width):
            return [tile]
        return list(open_windows(tile, self.window))

    def _add(
        self,
        part: Tile | PlanRow,
        cut: bool,
        source: Source,
        own: bool,
        failed: Callable[[TileReport], None],
    ) -> None:
        in_store = self.out.suffix == ".zarr"
        try:
            if isinstance(part, PlanRow):
                key = _planned(part)
            else:
                key = tile_key(part, georeferenced=in_store, fingerprint=own)
            self._check_names(key)
            if in_store:
                self._place(key)
        except TesseraError as error:
            if own:
                failed(_report(source, "failed", error, part))
            return
        self.keys.append(key)
        if own:
            self.tasks.append(Task(part if cut else source.given, key))

    def _place(self, key: TileKey) -> None:
        """StoreError where a store cannot hold the tile beside the first one of its zone."""
        grid = zone.place(key)
        known = self._extent.get(grid.zone)
        self._extent[grid.zone] = grid if known is None else zone.union([known, grid])

    def _check_names(self, key: TileKey) -> None:
        files = self._files(key)
        if not all(map(plain_name, files)) or printable(key.name) != key.name:
            raise InputError(
                f"tile {shown(key.name)}: expected a name in UTF-8 that a file can have, of at "
                f"most {MAX_NAME} bytes with the ending; rename the input"
            )

    def _not_opened(
        self, source: Source, error: TesseraError, failed: Callable[[TileReport], None]
    ) -> None:
        """A shard reports its own sources, and those of which it may lack a part."""
        cut = self.window is not None and source.error is None
        if self.shard.has(source.number) or cut or (source.unlisted and self._several):
            failed(_report(source, "failed", error))
        elif source.unlisted:
            _log.warning("left to another shard: %s", error)

    def _refuse_collisions(self) -> None:
        """StoreError if two tiles would write one file, naming both sources.

        Names that Unicode can write in two ways are one name on some systems, so they count as one.
        """
        files = [(file, key) for key in self.keys for file in self._files(key)]
        name_in: Callable[[str], str] = _composed
        if len({_folded(file) for file, _ in files}) < len({_composed(file) for file, _ in files}):
            folder = next(p for p in (self.out, *self.out.parents) if p.is_dir())
            name_in = _folded if _ignores_case(folder) else _composed
        writers: dict[str, TileKey] = {}
        for file, key in files:
            other = writers.setdefault(name_in(file), key)
            if other is not key:
                raise StoreError(
                    f"{self.out}: two tiles of this job would both write {shown(file)}: "
                    f"{_described(other)}, and {_described(key)}. Rename one input folder, or "
                    "write them to two outputs"
                )

    def _files(self, key: TileKey) -> list[str]:
        if self.out.suffix == ".zarr":
            return [store_key(key)]
        return list(npy_files(key.name, self.int8).values())


def _sources(tiles: Any) -> Iterator[Source]:
    if not isinstance(tiles, Plan):
        yield from listed(tiles)
        return
    for number, failure in enumerate(tiles.failed):
        yield _Row(failure.source, number, error=InputError(failure.message))
    for number, row in enumerate(tiles):
        yield _Row(row.source, number, row=row)


def _report(
    source: Source,
    state: str,
    error: TesseraError | None = None,
    part: Tile | PlanRow | None = None,
) -> TileReport:
    """What became of a source that is no task, or of one tile of it."""
    name, pixels = (source.name, 0) if part is None else (part.name, part.height * part.width)
    return TileReport(name, pixels, state=state, error=error, source=source.place)


def _described(key: TileKey) -> str:
    return f"{shown(key.name)} of {'arrays' if key.source is None else key.source}"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(name).casefold()


def _ignores_case(folder: Path) -> bool:
    """Whether the file system takes "a" and "A" for one name; tried with a file of its own."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".case_", dir=folder) as file:
            path = Path(file.name)
            return path.with_name(path.name.swapcase()).exists()
    except OSError:  # writing there says what is wrong
        return False


def _planned(row: PlanRow) -> TileKey:
    place: dict[str, Any] = {"year": row.year, "crs": row.crs, "transform": row.transform}
    source = source_path(row.source)
    return TileKey(row.name, row.height, row.width, row.fingerprint, **place, source=source)


def tile_key(tile: Tile, *, georeferenced: bool, fingerprint: bool = True) -> TileKey:
    """What an output needs to know of a tile; StoreError where a store cannot place it.

    ``fingerprint`` False: it is left out, as it reads from every array.
    """
    known = tile.georeference
    place: dict[str, Any] = {"year": tile.year, "crs": known.crs, "transform": known.transform}
    if georeferenced:
        reason = unplaced(tile)
        if reason is not None:
            raise StoreError(
                f"tile {tile.name}: {reason}. Or write .npy files (an output name without .zarr)"
            )
        place = {"crs": tile.crs, "transform": tile.transform, "year": tile.year}
    digest = tile.fingerprint() if fingerprint else ""
    key = TileKey(tile.name, tile.height, tile.width, digest, **place, source=tile.source)
    if georeferenced:
        zone.place(key)
    return key
