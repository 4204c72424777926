"""The file operations that a commit is made of, one function each, and what each one promises.

A power cut may undo everything that was not synced, in any order. The content of a file is safe
after `sync_file`; that a name is in a folder, or no longer in it, after `sync_folder` of that
folder. A rename within one file system happens as a whole or not at all. Every change of an output
or its state that matters goes through these functions, so that a test can record the changes and
replay what a power cut leaves of them.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV)
_TRIES = 100  # of a removal that meets another process's removal


def write(path: Path, data: bytes) -> None:
    """Make a file with ``data``; it is safe after `sync_file` and `sync_folder`."""
    path.write_bytes(data)


def rename(source: Path, target: Path) -> None:
    """Move a file or folder; a file at ``target`` is replaced."""
    os.replace(source, target)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; it is copied where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and its parents; the folders in which a new name has to be synced."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        make_folder(folder)
    return [folder.parent for folder in missing]


def make_folder(folder: Path) -> None:
    """Make one folder; another process may have made it just now."""
    folder.mkdir(exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder if it is there; another process may be removing it too.

    A link is removed itself, never what it leads to.
    """
    try:
        os.rmdir(path)  # most are empty
        return
    except FileNotFoundError:
        return
    except OSError:  # it holds something, or is no folder
        pass
    if path.is_symlink():
        path.unlink(missing_ok=True)
    for _ in range(_TRIES):
        if not path.exists():
            return
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
    if path.exists():
        raise OSError(errno.ENOTEMPTY, "files appear in it as fast as they are removed", str(path))


def sync_file(path: Path) -> None:
    """Have the content of a file written to the disk."""
    _sync(path, os.O_RDWR)


def sync_folder(path: Path) -> None:
    """Have the names in a folder written to the disk."""
    if os.name != "nt":  # folders cannot be opened there, and renames are journaled
        _sync(path, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync this kind of file
            raise
    finally:
        os.close(fd)


def files_in(path: Path) -> Iterable[Path]:
    """A file itself, or every file and folder in a folder, and the folder."""
    return [*path.rglob("*"), path] if path.is_dir() else [path]


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


def remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    with suppress(OSError):
        folder.rmdir()
