"""What is kept beside an output while it is built: markers of finished tiles, and leftovers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..store.base import IDENTITY
from ..store.locks import PRESENCE, Locks
from ..store.records import Stamp, check_marker, parse_stamps, read_identity, read_shard
from ..store.state import IDENTITY_FILE, holds_files
from ..store.zone import Grid, shard_name, shards
from ..untrusted.readers import Unreadable, read_json, shown
from .findings import Check
from .places import SCALES, is_store, marked_place, markers, state_folder
from .shard_check import file_of

_AGAIN = "Remove this marker and run the same `tessera-fast embed` again"
_RERUN = "Run the same `tessera-fast embed` again: it makes the tile anew"
Zones = dict[str, tuple[Grid, dict[str, Any]]]


def check_markers(out: Check, provenance: dict[str, Any], zones: Zones | None) -> None:
    """Every marker against the output. ``zones``: of a store, the grid and the arrays of each;
    None for a folder."""
    identity = _identity(out)
    checked = _Shards(out, identity)
    for file in markers(out.path):
        out.count("markers")
        try:
            record = read_json(file)
            name = record.get("tile")
            theirs = record.get("provenance")
            if not isinstance(name, str) or not isinstance(theirs, dict):
                raise Unreadable("expected a tile and its provenance")
            if identity is not None:
                check_marker(record)
        except (OSError, Unreadable) as error:
            out.problem(file, f"cannot be read as a marker ({error})", _AGAIN)
            continue
        if identity is not None and record.get("identity") != identity:
            out.problem(file, "is of another output, and does not count here", _AGAIN)
            continue
        other = [k for k in IDENTITY if theirs.get(k) != provenance.get(k)]
        if other:
            sides = "; ".join(f"{k} {shown(theirs.get(k))}, {provenance.get(k)!r}" for k in other)
            out.problem(
                file,
                f"tells of other embeddings than the output records ({sides})",
                f"Do not use tile {name}: write it to another output",
            )
        if zones is None:
            _files_of_tile(out, file, record, provenance)
        else:
            _place_of_tile(out, file, record, zones, checked)


def _identity(out: Check) -> str | None:
    """Of the state; None, with a note or a problem, where there is none to bind markers to."""
    folder = state_folder(out.path)
    try:
        identity = read_identity(folder / IDENTITY_FILE)
    except StoreError as error:
        out.problem(folder / IDENTITY_FILE, f"cannot be read ({error})", "Restore it from a copy")
        return None
    if identity is None and any(markers(out.path)):
        out.notes.append(
            f"{folder}: an earlier version wrote it, without what binds markers to files: no "
            "digest was checked"
        )
    return identity


def _files_of_tile(
    out: Check, marker: Path, record: dict[str, Any], provenance: dict[str, Any]
) -> None:
    names = [f"{record['tile']}.npy"]
    if provenance.get("dtype") == "int8":
        names.append(f"{record['tile']}{SCALES}.npy")
    stamps = parse_stamps(record["files"]) if "files" in record else {}
    for name in names:
        if not (out.path / name).exists():
            out.problem(marker, f"says that the tile is finished, and {name} is missing", _RERUN)
        elif any(problem.where.startswith(str(out.path / name)) for problem in out.problems):
            continue
        elif name in stamps and not stamps[name].fits(out.path / name, thorough=True):
            out.problem(
                out.path / name,
                f"is not the file that its marker {marker.name} stands for",
                f"Restore it from a copy, or remove it. {_RERUN}",
            )
        out.count("digests", int(name in stamps))


def _place_of_tile(
    out: Check, marker: Path, record: dict[str, Any], zones: Zones, checked: _Shards
) -> None:
    try:
        tile = marked_place(record)
    except StoreError as error:
        out.problem(marker, f"has a place that no store holds ({error})", _AGAIN)
        return
    if tile is None:
        out.notes.append(f"{marker}: without the tile's place, so its shards were not looked for")
        return
    if tile.group not in zones:
        out.problem(marker, f"its tile lies in {tile.group}, which the store lacks", _AGAIN)
        return
    grid, arrays = zones[tile.group]
    try:
        inside = grid.holds(tile)
    except StoreError as error:
        out.problem(marker, f"its tile is off the store's pixels ({error})", _AGAIN)
        return
    if not inside:
        out.problem(
            marker,
            f"its tile ({tile.height} x {tile.width} pixels of {tile.years[0]} at "
            f"{tile.x0}, {tile.y0}) is not within the store's extent and years",
            _AGAIN,
        )
        return
    time = grid.years.index(tile.years[0])
    places = list(shards(grid, tile))
    if "shards" in record:
        names = [shard_name(grid, tile.years[0], *place) for place in places]
        for name, place in zip(names, places, strict=True):
            files = {k: file_of(a, time, *place) for k, a in arrays.items() if a.ndim >= 3}
            lineage = checked.lineage(name, files)
            if lineage is not None and lineage != record["shards"].get(name):
                out.problem(
                    marker,
                    f"stands for files of shard {name} that were lost or changed since",
                    _RERUN,
                )
                return
        return
    # A marker of an earlier version does not say which shards it stands for.
    found = [
        any(file_of(arrays[k], time, top, left).exists() for k in ("scales", "embeddings"))
        for top, left in places
    ]
    if not any(found):
        out.problem(
            marker,
            "says that the tile is finished, and the store has no shard at its place",
            _AGAIN,
        )
    elif not all(found):
        out.notes.append(
            f"{marker}: {found.count(False)} of the {len(found)} shards that its tile touches are "
            "absent, which is right only if no pixel of it has data there"
        )


class _Shards:
    """The shard records of a store, each held against its files once, by digest."""

    def __init__(self, out: Check, identity: str | None) -> None:
        self._out, self._identity = out, identity
        self._lineages: dict[str, str | None] = {}  # None: its files are not as recorded

    def lineage(self, name: str, files: dict[str, Path]) -> str | None:
        """Of the ``files`` of shard ``name``; None, with a problem, if they are not as recorded."""
        if name not in self._lineages:
            self._lineages[name] = self._checked(name, files)
        return self._lineages[name]

    def _checked(self, name: str, files: dict[str, Path]) -> str | None:
        path = state_folder(self._out.path) / "shards" / f"{name}.json"
        record = read_shard(path, self._identity)
        if record is None:
            self._out.problem(path, "is missing, or is no record of a shard", _RERUN)
            return None
        wrong = [f for k, f in files.items() if not _fits(record.files.get(k), f)]
        self._out.count("digests", len(record.files))
        if wrong and self._out.faulty.isdisjoint(files.values()):
            more = f", nor are {len(wrong) - 1} more of its shard" if len(wrong) > 1 else ""
            self._out.problem(
                wrong[0],
                f"is not as the last commit left it, by the digest in {path.name}{more}",
                "Restore it from a copy; or remove it and run the same `tessera-fast embed` again",
            )
        return None if wrong else record.lineage


def _fits(stamp: Stamp | None, file: Path) -> bool:
    return not file.exists() if stamp is None else stamp.fits(file, thorough=True)


def check_leftovers(out: Check) -> None:
    """What runs have left in the state folder, and whether one is at work."""
    folder = state_folder(out.path)
    if not folder.exists():
        out.notes.append(
            "no record of finished tiles: none can be added"
            if is_store(out.path)
            else f"not in {folder.name}: not written by tessera_fast"
        )
        return
    if _in_use(out, folder):
        out.notes.append(
            "a process has it open: what it is writing was not looked at, check again when it ends"
        )
        return
    left = {
        "commit": "a finished tile or a new extent is not wholly in place",
        "spool": "rows of unfinished tiles",
        "staging": "a change that was not made",
    }
    for name, what in left.items():
        if holds_files(folder / name):
            out.problem(
                folder / name,
                f"a run that died has left something ({what})",
                "Run the same `tessera-fast embed` again: it finishes or removes it",
            )


def _in_use(out: Check, folder: Path) -> bool:
    lock = folder / "lock"
    if not lock.exists():
        return False
    try:
        locks = Locks(lock)
    except OSError as error:
        out.notes.append(
            f"{lock}: cannot be opened ({error}), so whether a run is at work is not known"
        )
        return False
    try:
        return not locks.take(PRESENCE, wait=False)
    finally:
        locks.close()
