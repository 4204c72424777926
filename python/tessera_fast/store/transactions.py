"""Transactions: folders of finished files in ``commit/``, and the list of where each belongs.

A transaction is bound to its output by the identity that both carry, and its paths are relative
to the output and its state, so that a copied or renamed output finishes its own. For each file the
list says what it is and what it replaces: where that is not what lies there, because a copy was
taken while a job wrote, nothing is overwritten.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from ..errors import StoreError
from ..untrusted.readers import Unreadable, below, plain_name, read_json, take
from . import disk
from .records import FORMAT, Stamp, checked_identity, to_json

LIST = "list.json"
_LAYOUT = ".layout"  # ends the name of a transaction that changes the layout
_NAME = re.compile(r"[0-9a-f]{32}(\.layout)?")
_LIMIT = 64 << 20  # bytes of a list: a tile of 30,000 x 30,000 pixels with 9 arrays has 40 MB
# All places that this version writes to; "output/" and "state/" stand for the two folders.
_PIXELS = r"(embeddings|embeddings_d\d+|scales|\w+_obs_count)/c(/\d+){3,4}"
_PLACES = re.compile(
    rf"output/(zarr\.json|utm\d\d(/{_PIXELS})?|[^/]+\.npy)"
    r"|state/(identity\.json|provenance\.json|born|(done|shards)/[^/]+\.json)"
)
_log = logging.getLogger(__name__)

Replaced = Stamp | None | Literal["anything"]  # None: nothing lies there


@dataclass(frozen=True)
class Move:
    """A file or folder of a transaction, and where it goes.

    ``place`` begins with "output/" or "state/". ``stamp``: of the file, or of the zarr.json in the
    folder. ``replaces``: what lies at the place before.
    """

    name: str
    place: str
    stamp: Stamp
    replaces: Replaced = "anything"

    def to_json(self) -> list[Any]:
        was = list(self.replaces) if isinstance(self.replaces, Stamp) else self.replaces
        return [self.name, self.place, list(self.stamp), was]

    @classmethod
    def parse(cls, value: Any) -> Move:
        """From JSON; Unreadable for what this version does not write."""
        if not isinstance(value, list) or len(value) != 4:
            raise Unreadable("a move has no name, place, stamp and stamp before")
        record = dict(zip(("name", "place", "stamp", "was"), value, strict=True))
        name, place, was = take(record, "name", str), take(record, "place", str), record["was"]
        parts = (name, *place.split("/"))
        if not _PLACES.fullmatch(place) or not all(plain_name(part, 255) for part in parts):
            raise Unreadable(f"a move to {place[:80]!r}, where this program writes nothing")
        replaces = was if was is None or was == "anything" else Stamp.parse(was)
        return cls(name, place, Stamp.parse(record["stamp"]), replaces)


class _Conflict(Exception):
    """What lies at a place is not what the transaction was made for."""


class Transactions:
    """The folder ``commit`` of the state at ``state``; ``output`` is the store or folder itself."""

    def __init__(self, state: Path, output: Path, pool: Executor) -> None:
        self._state, self._output, self._pool = state, output, pool
        self.unsynced = [state.parent, output.parent]  # the folders may be new, by any process
        self._checked: dict[str, Path] = {}  # folders without links on the way, of one transaction
        self._folder = state / "commit"

    def pending(self, *, layout: bool = False) -> list[Path]:
        """Those of tiles, or those that change the layout. Other names are nobody's business."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        return [
            self._folder / name
            for name in names
            if _NAME.fullmatch(name) and name.endswith(_LAYOUT) == layout
        ]

    def promise(self, staged: Path, moves: Sequence[Move], identity: str, layout: bool) -> Path:
        """Sync ``staged`` with the list of its moves and rename it into ``commit``.

        Before the rename nothing has changed. After it, the moves will be made by somebody.
        """
        self._checked.clear()
        for move in moves:
            self._place(move.place)  # raises while nothing has been promised
        listed = [move.to_json() for move in moves]
        record = {"format": FORMAT, "identity": identity, "moves": listed}
        disk.write(staged / LIST, to_json(record))
        names = [*dict.fromkeys(move.name for move in moves), LIST]
        self._sync([part for name in names for part in disk.files_in(staged / name)] + [staged])
        for parent in dict.fromkeys((*disk.make_folders(self._folder), *self.unsynced)):
            disk.sync_folder(parent)
        self.unsynced.clear()
        commit = self._folder / f"{uuid4().hex}{_LAYOUT if layout else ''}"
        disk.rename(staged, commit)
        disk.sync_folder(self._folder)
        return commit

    def identity_of(self, commit: Path) -> str | None:
        """What a pending transaction says it belongs to; None once it has been applied."""
        found = self._read(commit)
        return None if found is None else found[0]

    def begun(self, commit: Path) -> bool:
        """Whether a move of a pending transaction to the output has been made."""
        found = self._read(commit)
        moves = found[1] if found else []
        return any(m.place.startswith("output/") and not (commit / m.name).exists() for m in moves)

    def apply(
        self, commit: Path, identity: str | None, promised: Sequence[Move] | None = None
    ) -> bool:
        """Make the moves of a transaction; several processes may do so side by side.

        ``identity``: of the output. ``promised``: its moves, if this process has just made it.
        Raises StoreError if the transaction is of another output, or not as this version writes it.
        False: it was given up, because it was made for other files.
        """
        if promised is None:
            self._checked.clear()
        found = (identity, list(promised)) if promised is not None else self._read(commit)
        if found is None:  # it has been applied and is being removed
            disk.remove_tree(commit)
            return True
        theirs, moves = found
        if theirs != identity:
            raise StoreError(
                f"{commit}: expected a transaction of this output ({identity}), got one of another "
                f"({theirs}). Nothing was changed; move that folder to where it came from, or "
                "remove it: its tile is then made again"
            )
        try:
            touched: set[Path] = set()
            for n, move in enumerate(moves):
                touched.update(self._move(commit, move, n))
        except _Conflict as conflict:
            return self._given_up(commit, moves, conflict)
        self._sync(sorted(touched))
        disk.remove(commit / LIST)  # first, so that what is half removed is not applied
        disk.remove_tree(commit)
        return True

    def drop(self, commit: Path) -> None:
        """Remove a transaction without applying it."""
        disk.remove(commit / LIST)
        disk.remove_tree(commit)

    def _read(self, commit: Path) -> tuple[str, list[Move]] | None:
        try:
            if commit.is_symlink():
                raise Unreadable("a symbolic link")
            if (commit / "plan.json").exists():
                raise Unreadable("one of an earlier version")
            record = read_json(commit / LIST, _LIMIT, links=False)
            if take(record, "format", int) != FORMAT:
                raise Unreadable(f"format {record['format']}, expected {FORMAT}")
            moves = [Move.parse(value) for value in take(record, "moves", list)]
            return checked_identity(record), moves
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Unreadable as error:
            raise StoreError(
                f"{commit}: expected a transaction as this version writes it, got {error}. Nothing "
                "was changed; remove that folder: its tile is then made again"
            ) from error

    def _move(self, commit: Path, move: Move, number: int) -> list[Path]:
        """Make one move; the folders whose names have changed."""
        staged, place = commit / move.name, self._place(move.place)
        if os.path.islink(staged):
            raise _Conflict(f"{staged} is a symbolic link")
        # Looked at again behind the place: another process may have made the move in between.
        if os.path.exists(staged) and _in_the_way(move, place) and os.path.exists(staged):
            raise _Conflict(f"{place} is not the file that was to be replaced")
        if not os.path.exists(staged):
            if not _lies(move.stamp, place):
                raise _Conflict(f"{place} is not there, or another one")
            return [place.parent]  # moved before, perhaps not synced
        made = disk.make_folders(place.parent)
        with suppress(FileNotFoundError):  # moved just now, by another process
            if os.path.isdir(place):  # a folder cannot be renamed onto one that holds files
                disk.rename(place, commit / f"replaced-{number}")
            disk.rename(staged, place)
        return [*made, place.parent]

    def _place(self, place: str) -> Path:
        """Where a move goes. A link at its very end is not followed but replaced, as by rename."""
        root, _, relative = place.partition("/")
        folder, _, name = relative.rpartition("/")
        base = self._output if root == "output" else self._state
        try:
            parent = self._checked.get(f"{root}/{folder}")
            if parent is None:
                parent = below(base, folder) if folder else base
                self._checked[f"{root}/{folder}"] = parent
            return parent / name
        except Unreadable as error:
            raise StoreError(f"{self._state}: a transaction cannot be finished: {error}") from error

    def _given_up(self, commit: Path, moves: list[Move], conflict: _Conflict) -> bool:
        """After a conflict. A transaction that somebody has finished meanwhile is no loss."""
        last = moves[-1]
        over = not (commit / LIST).exists() or (
            not (commit / last.name).exists() and _lies(last.stamp, self._place(last.place))
        )
        if not over and commit.name.endswith(_LAYOUT):
            raise StoreError(
                f"{commit}: a change of the layout of {self._output} cannot be finished: "
                f"{conflict}. If this is a copy, copy the output again while no job writes to it; "
                "else write to another output"
            )
        if not over:
            _log.warning(
                "%s: given up, because %s (was this output copied while a job wrote to it?); its "
                "tile is made again",
                commit,
                conflict,
            )
        self.drop(commit)
        return over

    def _sync(self, paths: Sequence[Path]) -> None:
        """Files and folders at once, in any order; a commit waits for the slowest of them."""
        waiting = [self._pool.submit(_sync, path) for path in paths[1:]]
        for path in paths[:1]:
            _sync(path)
        for sync in waiting:
            sync.result()


def _sync(path: Path) -> None:
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        disk.sync_folder(path)
    elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        disk.sync_file(path)  # one with two names is a shard that the store holds already


def _in_the_way(move: Move, place: Path) -> bool:
    """Whether what lies at ``place`` is neither what the move replaces nor what it brings."""
    if move.replaces == "anything" or _lies(move.stamp, place):
        return False
    if move.replaces is None:
        return os.path.lexists(place)
    return not _lies(move.replaces, place)


def _lies(stamp: Stamp, place: Path) -> bool:
    """Whether a file, or a zarr group with this metadata, is at ``place``."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(place).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stamp.fits(place / "zarr.json" if is_folder else place)
