"""State of a build, kept apart from its results: locks, spool, transactions and markers.

Several processes may have one state open. A tile's spool belongs to whoever claimed the tile. A
transaction is a folder of finished files and the list of their places, renamed into ``commit``,
from where the files are moved. A process that dies before the rename has changed nothing; after it,
whoever comes next moves the rest: every file can be moved once, so several may do it side by side.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ..errors import StoreError
from .locks import LAYOUT, PRESENCE, Locks

_PLAN = "plan.json"
_LAYOUT = ".layout"  # ends the name of a transaction that changes the layout
_SYNCS = 8  # files at once: a file system writes its journal once for all of them
_log = logging.getLogger(__name__)


class RowFile:
    """A .npy file of known shape (H, ...), C order, written by rows with plain writes.

    Not a memory map: where the disk is full a write raises OSError, while storing into a map of a
    sparse file ends the process with SIGBUS.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        self._file = path.open("wb")
        np.lib.format.write_array_header_1_0(self._file, header)
        self._data = self._file.tell()

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write ``rows`` (h, ...) at row ``start``."""
        if rows.size:
            self._file.seek(self._data + start * self._row_bytes)
            self._file.write(np.ascontiguousarray(rows).data.cast("B"))
            self._file.flush()

    def close(self) -> None:
        """Close a complete file; raises OSError if the disk took less than all."""
        self._file.close()

    def discard(self) -> None:
        """Close without caring for what is in it."""
        with suppress(OSError):
            self._file.close()


class BuildState:
    """The state folder of one output, open until ``close``.

    ``base``: the folder that the targets of transactions are relative to. Of the threads of this
    process one at a time holds the layout. StoreError where the folder cannot be used.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self._base = folder, base
        self._closed = False
        self._turn = threading.Lock()  # locks of files do not keep threads apart
        self._pool = ThreadPoolExecutor(_SYNCS)  # no thread before the first commit
        try:
            self.locks = self._enter()
        except OSError as error:
            raise StoreError(f"{folder}: cannot be used: {error}") from error
        try:
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
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                locks = Locks(self.folder / "lock")
            except (FileNotFoundError, FileExistsError):
                if self.folder.exists() and not self.folder.is_dir():
                    raise
                continue  # whoever was the last removed the folder in between
            locks.take(PRESENCE, shared=True)
            if locks.is_current():
                break
            locks.close()
        if not locks.work:
            _log.warning(
                "%s: this file system has no locks; see to it that one process at a time writes "
                "there", self.folder,
            )  # fmt: skip
        return locks

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
        for name in ("spool", "commit", "done"):
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

    def claim(self, key: str) -> bool:
        """Make a tile this process's own; False if another process has it."""
        if not self.locks.take(f"tile {key}", wait=False):
            return False
        try:
            self.settle()  # it may have been all but finished by a process that died
        except OSError as error:
            self.release(key)
            raise StoreError(
                f"{self.folder}: what a process that ended had left in {self.folder / 'commit'} "
                f"could not be finished: {error}; make room and run again"
            ) from error
        return True

    def release(self, key: str) -> None:
        """Give a claimed tile back, without its spool."""
        remove_tree(self.folder / "spool" / key)
        self.locks.release(f"tile {key}")

    def spool(self, key: str) -> Path:
        """An empty folder for the files of a claimed tile, from which it can be promoted."""
        folder = self.folder / "spool" / key
        remove_tree(folder)
        folder.mkdir(parents=True)
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
                    if change or not self._pending(layout=True):
                        yield
                        return
                with self.locks.held([LAYOUT]):
                    self._finish_all()

    def _finish_all(self) -> None:
        """With the layout held to change it."""
        self.finish(layout=True)
        self.finish()
        remove_tree(self.folder / "staging")

    def settle(self) -> None:
        """Finish what processes that died have left in ``commit``."""
        if self._pending() or self._pending(layout=True):
            with self.layout():
                self.finish()

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder to fill for a change of the layout; it is gone afterwards in any case."""
        folder = self.folder / "staging"
        remove_tree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            remove_tree(folder)

    def promote(self, staged: Path, moves: list[tuple[str, Path]], *, layout: bool = False) -> None:
        """Make staged files (or folders) appear, in order, and the folder ``staged`` go.

        ``moves``: pairs of a name in ``staged`` and its target under ``base``. What was at the
        target is replaced. Needs ``layout``, held to change it where ``layout`` is True.
        """
        plan = [[name, target.relative_to(self._base).as_posix()] for name, target in moves]
        (staged / _PLAN).write_text(json.dumps(plan))
        self._sync([staged / name for name in (*(name for name, _ in moves), _PLAN)])
        commit = self.folder / "commit" / f"{uuid4().hex}{_LAYOUT if layout else ''}"
        commit.parent.mkdir(exist_ok=True)
        staged.rename(commit)
        self._apply(commit)

    def finish(self, *, layout: bool = False) -> None:
        """Apply the pending transactions of tiles, or those that change the layout."""
        for commit in self._pending(layout=layout):
            self._apply(commit)

    def _sync(self, paths: list[Path]) -> None:
        """Have files, and those in folders, written to the disk."""
        files = [p for path in paths for p in (path.rglob("*") if path.is_dir() else [path])]
        # A hard link is a shard that the store holds already.
        files = [file for file in files if file.is_file() and file.stat().st_nlink == 1]
        for _ in self._pool.map(_fsync, files):
            pass

    def _pending(self, *, layout: bool = False) -> list[Path]:
        commits = self.folder / "commit"
        try:
            names = sorted(os.listdir(commits))
        except FileNotFoundError:
            return []
        return [commits / name for name in names if name.endswith(_LAYOUT) == layout]

    def _apply(self, commit: Path) -> None:
        try:
            plan = json.loads((commit / _PLAN).read_text())
        except FileNotFoundError:  # it has been applied and is being removed
            plan = []
        for n, (name, target) in enumerate(plan):
            staged, place = commit / name, self._base / target
            if not staged.exists():
                continue  # moved before
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():  # a folder cannot be renamed onto one that holds files
                place.rename(commit / f"replaced-{n}")
            with suppress(FileNotFoundError):  # moved just now, by another process
                os.replace(staged, place)
        remove_tree(commit)

    def marker(self, key: str) -> dict[str, Any] | None:
        """What ``stage_marker`` recorded for this tile, or None if it is not finished."""
        try:
            return json.loads(self._marker_path(key).read_text())
        except FileNotFoundError:
            return None

    def has_marker(self, key: str) -> bool:
        """Whether this tile is finished."""
        return self._marker_path(key).exists()

    def forget_markers(self) -> None:
        """The output that the markers tell of is gone."""
        remove_tree(self.folder / "done")

    def stage_marker(self, staged: Path, key: str, record: dict[str, Any]) -> tuple[str, Path]:
        """Write a marker into ``staged``; returns the move that must come last."""
        (staged / "marker.json").write_text(json.dumps(record, indent=1, sort_keys=True))
        return "marker.json", self._marker_path(key)

    def stage_birth(self, staged: Path, output: Path) -> tuple[str, Path]:
        """The move that must come first where ``output`` is made: without a tile it is removed."""
        (staged / "born").write_text(output.relative_to(self._base).as_posix())
        return "born", self.folder / "born"

    def _tidy(self) -> None:
        """With nobody else here: finish transactions, then remove what is no tile's result."""
        try:
            self.settle()
        finally:
            for name in ("spool", "staging"):
                remove_tree(self.folder / name)
        born = self.folder / "born"
        if born.exists():
            output = self._base / born.read_text()
            if output.exists() and not any((self.folder / "done").glob("*.json")):
                output.rename(self.folder / "staging")
                remove_tree(self.folder / "staging")
            born.unlink()

    def _marker_path(self, key: str) -> Path:
        return self.folder / "done" / f"{key}.json"


def remove_tree(path: Path) -> None:
    """Remove a folder if it is there; another process may be removing it too."""
    while path.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _fsync(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
