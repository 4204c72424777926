"""Locks between processes and machines that fill one output: single bytes of one file.

A name is the byte at its hash, so that a lock costs no file; the kernel drops a process's locks
when it ends, however it ends. Bytes are locked per open file where the system can (Linux), else per
process. Threads that share a `Locks` are not kept apart by it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: one process at a time is then up to the user
    fcntl = None  # type: ignore[assignment]

# A file system without locks (some network mounts): likewise.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
PATIENCE = 5.0  # seconds of waiting before it is said for whom
_log = logging.getLogger(__name__)
_HELD = (errno.EACCES, errno.EAGAIN)
PRESENCE, LAYOUT = "presence", "layout"  # held shared by whoever has the output open; commits
_RESERVED = {PRESENCE: 0, LAYOUT: 1}


class Locks:
    """The lock file of an output, open until ``close``."""

    def __init__(self, path: Path) -> None:
        self.work = fcntl is not None  # False: nobody is kept apart
        self._path = path
        # With the umask, so that others of the group may write where the folder lets them.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "expected a regular file as lock", str(path))

    def close(self) -> None:
        """Release everything."""
        os.close(self._fd)

    def is_current(self) -> bool:
        """False if another process has removed the file, so that these locks guard nothing."""
        held = os.fstat(self._fd)
        try:
            return held.st_nlink > 0 and os.stat(self._path).st_ino == held.st_ino
        except FileNotFoundError:
            return False

    def take(self, name: str, *, shared: bool = False, wait: bool = True) -> bool:
        """Lock ``name``, or change how it is held. False: held elsewhere, and not to wait."""
        return self._change(name, "shared" if shared else "exclusive", wait)

    def release(self, name: str) -> None:
        self._change(name, "free", True)

    @contextmanager
    def held(self, names: Iterable[str], *, shared: bool = False) -> Iterator[None]:
        """Wait for all ``names``; in one order everywhere, so that nobody waits in a circle."""
        taken: list[str] = []
        try:
            for name in sorted(names, key=_offset):
                self.take(name, shared=shared)
                taken.append(name)
            yield
        finally:
            for name in taken:
                self.release(name)

    def _change(self, name: str, to: str, wait: bool) -> bool:
        if not self.work:
            return True
        try:
            if wait and to != "free":
                self._wait(name, to)
            else:
                _set_byte(self._fd, _offset(name), to, wait)
        except OSError as error:
            if error.errno in _HELD and not wait:
                return False
            if error.errno not in _NO_LOCKS:
                raise
            self.work = False
        return True

    def _wait(self, name: str, to: str) -> None:
        """Take a lock; after a while it is said who is waited for."""
        try:
            _set_byte(self._fd, _offset(name), to, False)
            return
        except OSError as error:
            if error.errno not in _HELD:
                raise
        said = threading.Timer(PATIENCE, _say_who, [self._path])
        said.daemon = True
        said.start()
        try:
            _set_byte(self._fd, _offset(name), to, True)
        finally:
            said.cancel()


def _say_who(path: Path) -> None:
    _log.warning("%s: waiting for a lock of %s", path, holders(path))


def holders(path: Path) -> str:
    """Which other processes of this machine have the lock file open, as text; see /proc.

    A process that was stopped (Ctrl-Z, SIGSTOP) keeps its locks, and is said to be stopped.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended, or is another user's
            if any(os.path.samefile(fd, path) for fd in (folder / "fd").iterdir() if fd.exists()):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                command = b" ".join(words).decode(errors="replace")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                stopped = ", which is stopped" if state in "Tt" else ""
                found.append(f"process {folder.name} ({command.strip()[:120]}){stopped}")
    return " or ".join(found) or "a process of another machine or another user"


def _offset(name: str) -> int:
    if name in _RESERVED:
        return _RESERVED[name]
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return 2 + (int.from_bytes(digest, "little") >> 2)  # within a signed 64-bit offset


def _set_byte(fd: int, offset: int, to: str, wait: bool) -> None:
    if hasattr(fcntl, "F_OFD_SETLK") and sys.maxsize > 2**32:
        kind = {"shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK, "free": fcntl.F_UNLCK}[to]
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        # struct flock: type, whence, start, length, and a pid that has to be 0
        fcntl.fcntl(fd, command, struct.pack("hhqqi0q", kind, os.SEEK_SET, offset, 1, 0))
        return
    operation = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "free": fcntl.LOCK_UN}[to]
    fcntl.lockf(fd, operation | (0 if wait or to == "free" else fcntl.LOCK_NB), 1, offset)
