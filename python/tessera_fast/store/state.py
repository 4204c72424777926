"""State of a build, kept apart from its results: identity, locks, spool, transactions, markers.

Several processes may have one state open. A tile's spool belongs to whoever claimed the tile. A
transaction is a folder of finished files and the list of their places, renamed into ``commit``,
from where the files are moved. A process that dies before the rename has changed nothing; after it,
the next process moves the rest: every file can be moved once, so several may do it side by side.

What lies in a state may come from anybody. Only names that this version writes are read, no link is
followed, and everything is bound to the output by the identity that both carry.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import StoreError
from . import disk
from .locks import LAYOUT, PRESENCE, Locks, holders
from .metadata import carried_identity, is_empty
from .records import FORMAT, ShardRecord, Stamp, read_identity, read_marker, read_shard, to_json
from .transactions import Move, Transactions

IDENTITY_FILE = "identity.json"
STATE = ".tessera_fast"  # of a folder of .npy files, within it
_FOLDERS = ("commit", "done", "shards", "spool", "staging")
_SYNCS = 8  # files at once: a file system writes its journal once for all of them
_TRIES = 200  # times that the folder may be removed by others while it is opened
_log = logging.getLogger(__name__)


class BuildState:
    """The state folder of one output, open until ``close``.

    ``output``: the store or folder that it is the state of. ``carried``: reads the identity that
    the output itself carries, None if it is not there; without it the state lies within the output
    and is its identity. ``is_empty``: whether the output has no tile's pixels. Of the threads of
    this process one at a time holds the layout. StoreError where the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        output: Path,
        carried: Callable[[], str | None] | None = None,
        is_empty: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.output = folder, output
        self._carried, self._is_empty = carried, is_empty
        self._closed = False
        self._known: str | None = None  # the identity, as last read
        self._turn = threading.Lock()  # locks of files do not keep threads apart
        self._pool = ThreadPoolExecutor(_SYNCS)  # no thread before the first commit
        self._transactions = Transactions(folder, output, self._pool)
        try:
            self.locks = self._enter()
        except OSError as error:
            raise StoreError(f"{folder}: cannot be used: {error}") from error
        try:
            self._check_folders()
            if self.locks.take(PRESENCE, wait=False):  # nobody else: what is left is of the dead
                self._tidy()
            self.locks.take(PRESENCE, shared=True)
            self.settle()
        except BaseException as error:
            self.locks.close()
            if isinstance(error, OSError):
                raise StoreError(f"{folder}: cannot be used: {error}") from error
            raise

    def _enter(self) -> Locks:
        gone: OSError | None = None
        for _ in range(_TRIES):
            try:
                self._transactions.unsynced += _make_real_folder(self.folder)
                locks = Locks(self.folder / "lock")
            except (FileNotFoundError, FileExistsError) as error:
                gone = error  # the last process to leave removed the folder in between
                continue
            gone = None
            locks.take(PRESENCE, shared=True)
            if locks.is_current():
                break
            locks.close()
        else:
            if gone is not None:
                raise gone
            raise StoreError(
                f"{self.folder / 'lock'}: expected a file that stays the same while it is open, "
                f"got another one {_TRIES} times. This file system cannot keep several processes "
                "apart; write the output to another one"
            )
        if not locks.work:
            _log.warning(
                "%s: this file system has no locks; see to it that one process at a time writes "
                "there",
                self.folder,
            )
        return locks

    def _check_folders(self) -> None:
        for name in _FOLDERS:
            _check_real_folder(self.folder / name)
        identity, carried = self.identity, self._carried and self._carried()
        removed = self._carried is not None and not self.output.exists()
        has_tiles = any(holds_files(self.folder / name) for name in ("done", "shards"))
        if identity is None and has_tiles and not removed:
            raise StoreError(
                f"{self.folder}: expected {IDENTITY_FILE}, which says which output it belongs to, "
                "got none: an earlier version wrote it, or it is damaged. Write to another output, "
                "or move that folder away: the tiles are then made again, with the same result"
            )
        if identity is not None and carried is not None and identity != carried:
            raise StoreError(
                f"{self.folder}: expected the state of {self.output} (identity {carried}), got "
                f"that of another output ({identity}). Move it away; the tiles are then made "
                "again, with the same result"
            )

    @property
    def identity(self) -> str | None:
        """What binds the state to its output; None before anything was committed."""
        self._known = read_identity(self.folder / IDENTITY_FILE)
        return self._known

    def close(self) -> None:
        """Let go; the last one out removes what is left, and a folder without any marker."""
        if self._closed:
            return
        self._closed = True
        try:
            # Of two that leave at once each would keep the other from being the last.
            self.locks.release(PRESENCE)
            if self.locks.take(PRESENCE, wait=False) and self.locks.is_current():
                with suppress(OSError):  # a full disk, say: the next one finds what is left
                    self._leave()
        finally:
            self._pool.shutdown()
            self.locks.close()

    def _leave(self) -> None:
        self._tidy()
        for name in _FOLDERS:
            with suppress(OSError):  # not there, or it holds something
                (self.folder / name).rmdir()
        if {p.name for p in self.folder.iterdir()} <= {"lock"}:
            (self.folder / "lock").unlink(missing_ok=True)
            self.folder.rmdir()

    def require_locks(self) -> None:
        """StoreError where several processes cannot be kept apart."""
        if not self.locks.work:
            raise StoreError(
                f"{self.folder}: expected a file system with locks (fcntl), which several "
                "processes need, got one without; let one process write there, without workers"
            )

    def holders(self) -> str:
        """The other processes that have this state open, as text for a person who waits."""
        return holders(self.folder / "lock")

    def claim(self, key: str) -> bool:
        """Make a tile this process's own; False if another process has it."""
        if not self.locks.take(f"tile {key}", wait=False):
            return False
        try:
            self.settle()  # it may have been all but finished by a process that died
        except (OSError, StoreError) as error:
            self.release(key)
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{self.folder}: what a process that ended had left in {self.folder / 'commit'} "
                f"could not be finished: {error}; make room and run again"
            ) from error
        return True

    def release(self, key: str) -> None:
        """Give a claimed tile back, without its spool."""
        disk.remove_tree(self.folder / "spool" / key)
        self.locks.release(f"tile {key}")

    def spool(self, key: str) -> Path:
        """An empty folder for the files of a claimed tile, from which it can be promoted."""
        folder = self.folder / "spool" / key
        disk.remove_tree(folder)
        _make_real_folder(folder.parent)
        folder.mkdir()
        return folder

    @contextmanager
    def layout(self, *, change: bool = False) -> Iterator[None]:
        """Hold the layout as it is, or, to ``change`` it, keep all commits of others out.

        What a process left half done is finished first: a change of the layout, and all of it
        before another change.
        """
        with self._turn:
            while True:
                with self.locks.held([LAYOUT], shared=not change):
                    if change:
                        self._finish_all()
                    if change or not self._transactions.pending(layout=True):
                        yield
                        return
                with self.locks.held([LAYOUT]):
                    self._finish_all()

    def _finish_all(self) -> None:
        """With the layout held to change it."""
        self.finish(layout=True)
        self.finish()
        disk.remove_tree(self.folder / "staging")

    def settle(self) -> None:
        """Finish what processes that died have left in ``commit``."""
        if self._transactions.pending() or self._transactions.pending(layout=True):
            with self.layout():
                self.finish()

    def finish(self, *, layout: bool = False) -> None:
        """Apply the pending transactions of tiles, or those that change the layout."""
        for commit in self._transactions.pending(layout=layout):
            theirs = self._transactions.identity_of(commit)
            first = (commit / IDENTITY_FILE).exists()  # it brings the identity
            removed = self._carried is not None and not self.output.exists()
            making = layout and (first or not self._transactions.begun(commit))
            if theirs is None or (removed and not making):
                # It has been applied; or the store that it was made for was removed since.
                self._transactions.drop(commit)
                continue
            ours = self.identity or (self._carried and self._carried())
            self._transactions.apply(commit, theirs if first and ours is None else ours)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder to fill for a change of the layout; it is gone afterwards in any case."""
        folder = self.folder / "staging"
        disk.remove_tree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            disk.remove_tree(folder)

    def promote(
        self, staged: Path, moves: list[Move], identity: str, *, layout: bool = False
    ) -> None:
        """Make staged files (or folders) appear, in order, and the folder ``staged`` go.

        Needs ``layout``, held to change it where ``layout`` is True. The state takes the
        ``identity`` of the output if it has none yet. OSError: see `SpooledTile.commit`.
        """
        known = self._known == identity or self.identity == identity
        if not known and IDENTITY_FILE not in (move.name for move in moves):
            moves = [self.stage_identity(staged, identity), *moves]
        commit = self._transactions.promise(staged, moves, identity, layout)
        self._known = identity
        if not self._transactions.apply(commit, identity, moves):
            raise StoreError(
                f"{self.output}: was changed by something else while a tile was written to it; the "
                "tile is not finished. Run again when nothing but tessera_fast writes there"
            )

    def marker(self, key: str) -> dict[str, Any] | None:
        """What ``stage_marker`` recorded for this tile, or None if it is not finished."""
        return read_marker(self._marker_path(key), self._known or self.identity)

    def has_marker(self, key: str) -> bool:
        """Whether there is a file that says of this tile that it is finished, readable or not."""
        return os.path.lexists(self._marker_path(key))

    def forget(self) -> None:
        """The output that markers and shard records tell of is gone."""
        self._known = None
        for name in ("done", "shards"):
            disk.remove_tree(self.folder / name)

    def shard(self, name: str) -> ShardRecord | None:
        """The record of a shard; None where there is none that counts."""
        return read_shard(self._shard_path(name), self._known or self.identity)

    def stage(self, staged: Path, name: str, place: str, record: Mapping[str, Any]) -> Move:
        """Write a record into ``staged``; the move that makes it appear."""
        data = to_json(record)
        disk.write(staged / name, data)
        return Move(name, place, Stamp.of(staged / name, data))

    def stage_marker(
        self, staged: Path, key: str, identity: str, record: Mapping[str, Any]
    ) -> Move:
        """Write a marker into ``staged``; returns the move that must come last."""
        record = {"format": FORMAT, "identity": identity, **record}
        return self.stage(staged, "marker.json", f"state/done/{key}.json", record)

    def stage_shard(self, staged: Path, name: str, identity: str, record: ShardRecord) -> Move:
        """Write a shard's record into ``staged``; its move comes after those of the files."""
        place = f"state/shards/{name}.json"
        return self.stage(staged, f"shard.{name}.json", place, record.to_json(identity))

    def stage_identity(self, staged: Path, identity: str) -> Move:
        """Write the state's identity into ``staged``."""
        record = {"format": FORMAT, "identity": identity}
        return self.stage(staged, IDENTITY_FILE, f"state/{IDENTITY_FILE}", record)

    def stage_birth(self, staged: Path) -> Move:
        """The move that must come first where the output is made: without a tile it is removed."""
        return self.stage(staged, "born", "state/born", {"format": FORMAT})

    def _tidy(self) -> None:
        """With nobody else here: finish transactions, then remove what is no tile's result."""
        try:
            self.settle()
        finally:
            for name in ("spool", "staging"):
                disk.remove_tree(self.folder / name)
        born = self.folder / "born"
        if os.path.lexists(born):
            made_here = self._carried is not None and self._carried() == self.identity
            unused = made_here and not holds_files(self.folder / "done") and self.output.is_dir()
            if unused and self._is_empty():
                self.output.rename(self.folder / "staging")
                disk.remove_tree(self.folder / "staging")
                disk.remove(self.folder / IDENTITY_FILE)
            born.unlink()

    def _marker_path(self, key: str) -> Path:
        return self.folder / "done" / f"{key}.json"

    def _shard_path(self, name: str) -> Path:
        return self.folder / "shards" / f"{name}.json"


def new_identity() -> str:
    """A random identity for a new output."""
    return uuid4().hex


def holds_files(folder: Path) -> bool:
    """Whether there is more in a folder than what file managers leave."""
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _make_real_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents, see `disk.make_folders`; StoreError if it is anything else."""
    _check_real_folder(folder)
    try:
        return disk.make_folders(folder)
    except FileExistsError:
        _check_real_folder(folder)
        raise


def _check_real_folder(folder: Path) -> None:
    """StoreError if ``folder`` is a link or a file; it may be absent."""
    try:
        mode = os.lstat(folder).st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise StoreError(f"{folder.parent}: expected a folder, got a file; move it away") from None
    if not stat.S_ISDIR(mode):
        got = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
        raise StoreError(
            f"{folder}: expected a folder of this program, got {got}, which is not followed; move "
            "it away, or write to another output"
        )


def open_state(target: Path) -> BuildState:
    """The state of the output at an absolute path."""
    if target.suffix == ".zarr":
        return BuildState(
            target.with_name(target.name + ".state"),
            target,
            carried=lambda: carried_identity(target),
            is_empty=lambda: is_empty(target),
        )
    return BuildState(target / STATE, target)
