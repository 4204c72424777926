"""What is kept beside an output while it is built: markers of finished tiles, and leftovers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..store.locks import PRESENCE, Locks
from ..store.output import IDENTITY
from ..store.zone import Grid
from .places import SCALES, is_store, marked_place, markers, state_folder
from .selfcheck import Check
from .shard_check import file_of, file_side

_AGAIN = "Remove this marker and run the same `tessera-fast embed` again"


def check_markers(
    out: Check, provenance: dict[str, Any], zones: dict[str, tuple[Grid, dict[str, Any]]] | None
) -> None:
    """Every marker against the output. ``zones``: of a store, the grid and the arrays of each;
    None for a folder."""
    for file in markers(out.path):
        out.count("markers")
        try:
            record = json.loads(file.read_text())
            recorded = {k: record["provenance"].get(k) for k in IDENTITY}
            name = str(record["tile"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            out.problem(
                file, f"cannot be read as a marker ({type(error).__name__}: {error})", _AGAIN
            )
            continue
        other = [k for k in IDENTITY if recorded[k] != provenance.get(k)]
        if other:
            sides = "; ".join(f"{k} {recorded[k]!r}, {provenance.get(k)!r}" for k in other)
            out.problem(
                file,
                f"tells of other embeddings than the output records ({sides})",
                f"Do not use tile {name}: write it to another output",
            )
        if zones is None:
            _file_of_tile(out, file, record, provenance)
        else:
            _place_of_tile(out, file, record, zones)


def _file_of_tile(
    out: Check, marker: Path, record: dict[str, Any], provenance: dict[str, Any]
) -> None:
    names = [f"{record['tile']}.npy"]
    if provenance.get("dtype") == "int8":
        names.append(f"{record['tile']}{SCALES}.npy")
    for name in names:
        if not (out.path / name).exists():
            out.problem(
                marker,
                f"says that the tile is finished, and {name} is missing",
                "Run the same `tessera-fast embed` again: it makes the tile anew",
            )


def _place_of_tile(
    out: Check, marker: Path, record: dict[str, Any], zones: dict[str, tuple[Grid, dict[str, Any]]]
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
    row, col = grid.offset(tile)
    time, side = grid.years.index(tile.years[0]), file_side(arrays["scales"])
    found = [
        any(file_of(arrays[k], time, top, left).exists() for k in ("scales", "embeddings"))
        for top in range(row // side * side, row + tile.height, side)
        for left in range(col // side * side, col + tile.width, side)
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
        if (folder / name).is_dir() and any((folder / name).iterdir()):
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
