"""State of a build, kept apart from its results: lock, spool, transactions and markers.

A transaction is a folder ``staging`` that holds finished files and the list of their places. It
is renamed to ``commit``, from where the files are moved. A run that dies before the rename has
changed nothing; after it, the next run moves the rest.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError

# A file system without locks (some network mounts): one process at a time is then up to the user.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
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
    """The state folder of one output, locked while this object is open.

    ``base``: the folder that the targets of transactions are relative to. ``applied`` is called
    after an interrupted transaction was finished.
    """

    def __init__(self, folder: Path, base: Path, applied: Callable[[], None]) -> None:
        self.folder, self._base = folder, base
        self._lock: int | None = None
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _acquire(folder / "lock")
            self.finish(applied)
            self._remove_leftovers()
        except OSError as error:
            if self._lock is not None:
                os.close(self._lock)
            raise StoreError(f"{folder}: cannot be used: {error}") from error

    def close(self) -> None:
        """Release the lock; a folder without any marker goes too."""
        if self._closed:
            return
        self._closed = True
        self._remove_leftovers()
        with suppress(OSError):  # not empty: there are markers
            (self.folder / "done").rmdir()
        if {p.name for p in self.folder.iterdir()} <= {"lock"}:
            (self.folder / "lock").unlink(missing_ok=True)
            self.folder.rmdir()
        if self._lock is not None:
            os.close(self._lock)

    def spool(self, key: str) -> Path:
        """An empty folder for the rows of one tile."""
        folder = self.folder / "spool" / key
        remove_tree(folder)
        folder.mkdir(parents=True)
        return folder

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder to fill for ``promote``; it is gone afterwards in any case."""
        folder = self.folder / "staging"
        remove_tree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            remove_tree(folder)

    def promote(self, moves: list[tuple[Path, Path]], then: Callable[[], None]) -> None:
        """Make staged files (or folders) appear, in order, then call ``then``.

        ``moves``: pairs of a path in ``staging()`` and its target under ``base``. What was at the
        target is replaced.
        """
        staging = self.folder / "staging"
        plan = [
            [s.relative_to(staging).as_posix(), t.relative_to(self._base).as_posix()]
            for s, t in moves
        ]
        (staging / _PLAN).write_text(json.dumps(plan))
        for file in staging.rglob("*"):
            # A hard link is a shard that the store holds already.
            if file.is_file() and file.stat().st_nlink == 1:
                _fsync(file)
        staging.rename(self.folder / "commit")
        self.finish(then)

    def finish(self, then: Callable[[], None]) -> None:
        """Apply a promoted transaction, from wherever an earlier attempt stopped."""
        commit = self.folder / "commit"
        if not commit.exists():
            return
        if (commit / _PLAN).exists():
            for n, (source, target) in enumerate(json.loads((commit / _PLAN).read_text())):
                staged, place = commit / source, self._base / target
                if not staged.exists():
                    continue  # moved before
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.is_dir():  # a folder cannot be renamed onto one that holds files
                    place.rename(commit / f"replaced-{n}")
                os.replace(staged, place)
            then()
        shutil.rmtree(commit)

    def drop(self) -> None:
        """Forget a promoted transaction that could not be applied to its end."""
        remove_tree(self.folder / "commit")

    def markers(self) -> Iterator[dict[str, Any]]:
        """What was recorded for every finished tile."""
        for path in sorted((self.folder / "done").glob("*.json")):
            yield json.loads(path.read_text())

    def marker(self, key: str) -> dict[str, Any] | None:
        """What ``stage_marker`` recorded for this tile, or None if it is not finished."""
        path = self._marker_path(key)
        return json.loads(path.read_text()) if path.exists() else None

    def stage_marker(self, staging: Path, key: str, record: dict[str, Any]) -> tuple[Path, Path]:
        """Write a marker into ``staging``; returns the move that must come last."""
        path = staging / "marker.json"
        path.write_text(json.dumps(record, indent=1, sort_keys=True))
        return path, self._marker_path(key)

    def _remove_leftovers(self) -> None:
        for name in ("spool", "staging"):
            remove_tree(self.folder / name)

    def _marker_path(self, key: str) -> Path:
        return self.folder / "done" / f"{key}.json"


def remove_tree(path: Path) -> None:
    """Remove a folder if it is there."""
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _fsync(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _acquire(path: Path) -> int | None:
    """Lock ``path`` for this process; its descriptor, or None where there are no such locks."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise StoreError(
                f"{path.parent}: in use by pid {pid}. One process writes an output at a time: "
                "wait for it, or write elsewhere"
            ) from None
        except OSError as error:
            os.close(fd)
            if error.errno in _NO_LOCKS:
                return None
            raise
        # Another process may have removed the file between our open and our lock.
        if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
            os.ftruncate(fd, 0)
            os.write(fd, str(os.getpid()).encode())
            return fd
        os.close(fd)
