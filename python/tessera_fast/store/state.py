"""State of a build, kept apart from its results: locks, spool, transactions and markers.

Several processes may have one state open. A tile's spool belongs to whoever claimed the tile. A
transaction is a folder of finished files and the list of their places, renamed into ``commit``,
from where the files are moved. A process that dies before the rename has changed nothing; after it,
whoever comes next moves the rest: every file can be moved once, so several may do it side by side.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from ..errors import StoreError
from .locks import LAYOUT, PRESENCE, Locks

_PLAN = "plan.json"


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

    ``base``: the folder that the targets of transactions are relative to. ``laid_out`` is called
    after a transaction that changed the layout, also one that another process left behind.
    """

    def __init__(self, folder: Path, base: Path, laid_out: Callable[[], None]) -> None:
        self.folder, self._base, self._laid_out = folder, base, laid_out
        self._closed = False
        try:
            self.locks = self._enter()
        except OSError as error:
            raise StoreError(f"{folder}: cannot be used: {error}") from error
        try:
            if self.locks.take(PRESENCE, wait=False):  # nobody else: what is left is of the dead
                self._tidy()
            self.locks.take(PRESENCE, shared=True)
            self.settle()
        except OSError as error:
            self.locks.close()
            raise StoreError(f"{folder}: cannot be used: {error}") from error

    def _enter(self) -> Locks:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                locks = Locks(self.folder / "lock")
            except FileNotFoundError:  # the folder was removed in between
                continue
            locks.take(PRESENCE, shared=True)
            if locks.is_current():
                return locks
            locks.close()

    def close(self) -> None:
        """Let go; the last one out removes what is left, and a folder without any marker."""
        if self._closed:
            return
        self._closed = True
        if self.locks.take(PRESENCE, wait=False):
            self._tidy()
            for name in ("spool", "commit", "done"):
                with suppress(OSError):  # not there, or it holds something
                    (self.folder / name).rmdir()
            if {p.name for p in self.folder.iterdir()} <= {"lock"}:
                (self.folder / "lock").unlink(missing_ok=True)
                self.folder.rmdir()
        self.locks.close()

    def claim(self, key: str) -> bool:
        """Make a tile this process's own; False if another process has it."""
        return self.locks.take(f"tile {key}", wait=False)

    def release(self, key: str) -> None:
        """Give a claimed tile back, without its spool."""
        remove_tree(self.folder / "spool" / key)
        self.locks.release(f"tile {key}")

    def spool(self, key: str) -> Path:
        """An empty folder for the rows of a claimed tile."""
        folder = self.folder / "spool" / key
        remove_tree(folder)
        folder.mkdir(parents=True)
        return folder

    @contextmanager
    def layout(self, *, change: bool = False) -> Iterator[None]:
        """Hold the layout as it is, or, to ``change`` it, keep every other process's commits out.

        A change that a process left half done is finished first.
        """
        while True:
            with self.locks.held([LAYOUT], shared=not change):
                if change or not self._pending(layout=True):
                    if change:
                        self.finish(layout=True)
                        self.finish()
                        remove_tree(self.folder / "staging")
                    yield
                    return
            self.settle()

    def settle(self) -> None:
        """Finish what processes that died have left in ``commit``."""
        if self._pending(layout=True):
            with self.layout(change=True):
                pass
        elif self._pending():
            with self.layout():
                self.finish()

    @contextmanager
    def staging(self, within: Path | None = None) -> Iterator[Path]:
        """An empty folder to fill for ``promote``; it is gone afterwards in any case.

        ``within`` a claimed spool for a tile, else for a change of the layout.
        """
        folder = (within or self.folder) / "staging"
        remove_tree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            remove_tree(folder)

    def promote(
        self, staging: Path, moves: list[tuple[Path, Path]], *, layout: bool = False
    ) -> None:
        """Make staged files (or folders) appear, in order.

        ``moves``: pairs of a path in ``staging`` and its target under ``base``. What was at the
        target is replaced. Needs ``layout``, held to change it where ``layout`` is True.
        """
        plan = [
            [s.relative_to(staging).as_posix(), t.relative_to(self._base).as_posix()]
            for s, t in moves
        ]
        (staging / _PLAN).write_text(json.dumps({"layout": layout, "moves": plan}))
        for file in staging.rglob("*"):
            # A hard link is a shard that the store holds already.
            if file.is_file() and file.stat().st_nlink == 1:
                _fsync(file)
        commit = self.folder / "commit" / uuid4().hex
        commit.parent.mkdir(exist_ok=True)
        staging.rename(commit)
        self._apply(commit)

    def finish(self, *, layout: bool = False) -> None:
        """Apply the pending transactions of tiles, or those that change the layout."""
        for commit in self._pending(layout=layout):
            self._apply(commit)

    def drop(self) -> None:
        """Forget promoted transactions that could not be applied to their end."""
        remove_tree(self.folder / "commit")

    def _pending(self, *, layout: bool = False) -> list[Path]:
        try:
            commits = sorted((self.folder / "commit").iterdir())
        except FileNotFoundError:
            return []
        return [c for c in commits if _plan(c)["layout"] == layout]

    def _apply(self, commit: Path) -> None:
        plan = _plan(commit)
        for n, (source, target) in enumerate(plan["moves"]):
            staged, place = commit / source, self._base / target
            if not staged.exists():
                continue  # moved before
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir():  # a folder cannot be renamed onto one that holds files
                place.rename(commit / f"replaced-{n}")
            with suppress(FileNotFoundError):  # moved just now, by another process
                os.replace(staged, place)
        if plan["layout"]:
            self._laid_out()
        remove_tree(commit)

    def markers(self) -> Iterator[dict[str, Any]]:
        """What was recorded for every finished tile."""
        for path in sorted((self.folder / "done").glob("*.json")):
            yield json.loads(path.read_text())

    def marker(self, key: str) -> dict[str, Any] | None:
        """What ``stage_marker`` recorded for this tile, or None if it is not finished."""
        try:
            return json.loads(self._marker_path(key).read_text())
        except FileNotFoundError:
            return None

    def has_markers(self) -> bool:
        """Whether any tile is finished."""
        return any((self.folder / "done").glob("*.json"))

    def forget_markers(self) -> None:
        """The output that the markers tell of is gone."""
        remove_tree(self.folder / "done")

    def stage_marker(self, staging: Path, key: str, record: dict[str, Any]) -> tuple[Path, Path]:
        """Write a marker into ``staging``; returns the move that must come last."""
        path = staging / "marker.json"
        path.write_text(json.dumps(record, indent=1, sort_keys=True))
        return path, self._marker_path(key)

    def _tidy(self) -> None:
        """With nobody else here: finish transactions, then remove spools and stagings."""
        self.settle()
        for name in ("spool", "staging"):
            remove_tree(self.folder / name)

    def _marker_path(self, key: str) -> Path:
        return self.folder / "done" / f"{key}.json"


def _plan(commit: Path) -> dict[str, Any]:
    """The moves of a transaction; none where it has been applied and is being removed."""
    try:
        return json.loads((commit / _PLAN).read_text())
    except FileNotFoundError:
        return {"layout": False, "moves": []}


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
