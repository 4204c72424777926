"""What a state writes down, and how it is read back: identity, stamps, markers, shard records.

Anybody may have changed these files, copied them from elsewhere or cut them. Each is read with
limits, and what is not as this version writes it counts as absent, with a warning.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import StoreError
from ..untrusted.readers import Unreadable, plain_name, read_json, take, take_or_none, take_whole

FORMAT = 2  # of states; 1 had no identity, and paths relative to the folder around the output
_LIMIT = 8 << 20  # bytes of a marker or shard record: a tile of 30,000 x 30,000 pixels has 0.8 MB
# What the file itself causes; other errors are the machine's, and end the job.
_DAMAGE = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)
_IDENTITY = re.compile(r"[0-9a-f]{32}")
_HASH_BYTES = 1 << 20  # read at once
_log = logging.getLogger(__name__)


class Stamp(NamedTuple):
    """What a file is. Equal size and time of change stand for an equal digest."""

    digest: str  # BLAKE2b of 16 bytes, as hex digits
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, path: Path, data: bytes | None = None) -> Stamp:
        """Of the file at ``path``, which holds ``data`` if that is known."""
        if data is not None:
            found = os.stat(path)
            state = hashlib.blake2b(data, digest_size=16)
        else:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                state = hashlib.blake2b(digest_size=16)
                for block in iter(partial(file.read, _HASH_BYTES), b""):
                    state.update(block)
        return cls(state.hexdigest(), found.st_size, found.st_mtime_ns)

    @classmethod
    def parse(cls, value: Any) -> Stamp:
        """From JSON; Unreadable for anything else."""
        if not isinstance(value, list) or len(value) != 3:
            raise Unreadable("a stamp is no list of digest, size and time")
        record = dict(zip(cls._fields, value, strict=True))
        digest = take(record, "digest", str)
        if not _IDENTITY.fullmatch(digest):
            raise Unreadable("a digest is not 32 hexadecimal digits")
        size = take_whole(record, "size", 0, 2**62)
        return cls(digest, size, take_whole(record, "modified", -(2**63), 2**63))

    def fits(self, path: Path, *, thorough: bool = False) -> bool:
        """Whether the file at ``path`` is this one. ``thorough``: its content is read anyway."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != self.size:
            return False
        if found.st_mtime_ns == self.modified and not thorough:
            return True
        try:
            return Stamp.of(path).digest == self.digest
        except FileNotFoundError:
            return False


def parse_stamps(value: Any) -> dict[str, Stamp]:
    """Names and stamps of files, from JSON."""
    if not isinstance(value, dict) or not all(map(plain_name, value)):
        raise Unreadable("expected file names and stamps")
    return {name: Stamp.parse(stamp) for name, stamp in value.items()}


def to_json(record: Mapping[str, Any]) -> bytes:
    """A record as the bytes of its file."""
    return json.dumps(record, sort_keys=True, allow_nan=False).encode()


@dataclass(frozen=True)
class ShardRecord:
    """The files of one shard of a store as the last commit left them.

    ``lineage`` is that of the markers that the shard stands behind. It changes when a commit finds
    files that are not those of the record: what older markers promise is then no longer known.
    """

    lineage: str
    files: Mapping[str, Stamp]  # by array; an array without data has no file

    def to_json(self, identity: str) -> dict[str, Any]:
        files = {name: list(stamp) for name, stamp in self.files.items()}
        return {"format": FORMAT, "identity": identity, "lineage": self.lineage, "files": files}


def read_shard(path: Path, identity: str | None) -> ShardRecord | None:
    """The record at ``path``; None if it is absent, damaged or of another output."""
    record = _read(path, identity)
    if record is None:
        return None
    try:
        return ShardRecord(take(record, "lineage", str), parse_stamps(record.get("files")))
    except Unreadable as error:
        _warn(path, error)
        return None


def read_marker(path: Path, identity: str | None) -> dict[str, Any] | None:
    """The marker at ``path``; None if it is absent, damaged or of another output.

    It has ``tile``, ``fingerprint``, ``height``, ``width``, ``provenance``, ``source`` (or None),
    and either ``shards`` (names of shard records and lineages) or ``files`` (stamps).
    """
    record = _read(path, identity)
    if record is None:
        return None
    try:
        check_marker(record)
        return record
    except Unreadable as error:
        _warn(path, error)
        return None


def check_marker(record: Mapping[str, Any]) -> None:
    """Unreadable unless ``record`` has what a marker of this version has."""
    for name in ("tile", "fingerprint"):
        take(record, name, str)
    for name in ("height", "width"):
        take_whole(record, name, 1, 2**31)
    take(record, "provenance", dict)
    take_or_none(record, "source", str)
    if "files" in record:
        parse_stamps(record["files"])
    else:
        shards = take(record, "shards", dict)
        if not all(plain_name(name) and isinstance(v, str) for name, v in shards.items()):
            raise Unreadable("shards: expected names and lineages")


def read_identity(path: Path) -> str | None:
    """The identity in a state's file; None if there is no such file.

    StoreError if it is damaged, or of a version that writes states in another way.
    """
    try:
        record = read_json(path, _LIMIT, links=False)
        if take(record, "format", int) != FORMAT:
            raise Unreadable(f"format {record['format']}, expected {FORMAT}")
        return checked_identity(record)
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise StoreError(
            f"{path}: expected the identity of an output, got {error}. Move {path.parent} away; "
            "the tiles are then made again, with the same result"
        ) from error


def checked_identity(record: Mapping[str, Any]) -> str:
    """``identity`` of a record; Unreadable if it is none."""
    identity = take(record, "identity", str)
    if not _IDENTITY.fullmatch(identity):
        raise Unreadable("the identity is not 32 hexadecimal digits")
    return identity


def _read(path: Path, identity: str | None) -> dict[str, Any] | None:
    try:
        record = read_json(path, _LIMIT, links=False)
        if take(record, "format", int) != FORMAT:
            raise Unreadable(f"format {record['format']}, expected {FORMAT}")
        if checked_identity(record) != identity:
            raise Unreadable("it is of another output")
        return record
    except FileNotFoundError:
        return None
    except Unreadable as error:
        _warn(path, error)
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise StoreError(
                f"{path}: cannot be read ({error}); see to it and run again"
            ) from error
        _warn(path, error)
    return None


def _warn(path: Path, error: Exception) -> None:
    _log.warning("%s: does not count (%s); what it stands for is made again", path, error)
