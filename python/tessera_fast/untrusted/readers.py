"""Readers of bytes and names that anybody may have written: JSON, .npy headers, paths.

What comes from a file is a claim. Every function here bounds the size of what it reads before it
reads it, checks the type of every value, and raises `Unreadable` for anything else. The callers
turn that into the package's error for their kind of file.
"""

from __future__ import annotations

import ast
import errno
import functools
import json
import math
import os
import re
import stat
import sys
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..errors import InputError
from .messages import named as named
from .messages import printable as printable
from .messages import shown as shown

MAX_JSON = 16 << 20  # bytes: metadata of a store with a hundred zones takes 2 MB
MAX_TOML = 1 << 20  # bytes: what a person writes
MAX_DIMS = 8  # of an array; no file of this package's world has more than 5
MAX_SIZE = 2**63 - 1  # bytes and elements that an offset can count
MAX_NAME = 240  # bytes: file systems take 255, with the endings that files get
_FILE_NAME = 255  # bytes, with the ending
MAX_PATH = 4096  # bytes, as in Linux
_MAX_NPY_HEADER = 64 << 10  # bytes; np.save writes 128 for a plain array
_MAGIC = b"\x93NUMPY"
_DESCR = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,4}|M8\[[a-zA-Z0-9]{1,8}\])")

T = TypeVar("T")


class Unreadable(ValueError):
    """The bytes are not what they should be; the message says what was found."""


# ---- files


_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_FLAGS |= getattr(os, "O_NONBLOCK", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_LINK_FOUND = (errno.ELOOP, errno.EMLINK)  # what systems answer where O_NOFOLLOW meets a link
_A_LINK = "a symbolic link, where a file is expected"


def open_file(path: str | os.PathLike[str], *, links: bool = True) -> tuple[BufferedReader, int]:
    """A regular file, open for reading, and its size in bytes.

    ``links``: False refuses a symbolic link. Raises Unreadable for anything that is not such a
    file, and OSError where it is absent or cannot be read. A pipe or device is never waited for.
    """
    if not links and not _NO_LINK and os.path.islink(path):
        raise Unreadable(_A_LINK)
    try:
        descriptor = os.open(path, _FLAGS if links else _FLAGS | _NO_LINK)
    except OSError as error:
        if not links and error.errno in _LINK_FOUND and os.path.islink(path):
            raise Unreadable(_A_LINK) from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("not a regular file")
        return open(descriptor, "rb"), found.st_size
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | os.PathLike[str], limit: int, *, links: bool = True) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; errors as in `open_file`."""
    file, size = open_file(path, links=links)
    with file:
        data = b"" if size > limit else file.read(size + 1)
        if len(data) > size:  # it grew, or its size is not told, as in /proc
            data += file.read(limit)
    if size > limit or len(data) > limit:
        raise Unreadable(f"{max(size, len(data))} bytes, expected at most {limit}")
    return data


def read_start(path: str | os.PathLike[str], most: int) -> bytes:
    """The first ``most`` bytes of a regular file, or all of it; errors as in `open_file`."""
    file, _ = open_file(path)
    with file:
        return file.read(most)


def read_json(
    path: str | os.PathLike[str],
    limit: int = MAX_JSON,
    *,
    links: bool = True,
    constants: bool = False,
) -> dict[str, Any]:
    """The JSON object in a file; see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, limit, links=links), limit, constants=constants)


def parse_json(
    data: bytes | str, limit: int = MAX_JSON, *, constants: bool = False
) -> dict[str, Any]:
    """The JSON object in ``data``: every name once, numbers finite, text that can be encoded.

    ``constants`` lets NaN and Infinity pass, which are no JSON and which some programs write.
    Raises Unreadable for anything else, also for nesting that Python cannot follow.
    """
    if len(data) > limit:
        raise Unreadable(f"{len(data)} bytes of JSON, expected at most {limit}")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=float if constants else _constant,
        )
        if "\\u" in text:  # may have made half a character, which no file can be named by
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise Unreadable("JSON that is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeError, integers of too many digits
        raise Unreadable(f"no valid JSON ({str(error)[:100]})") from None
    if not isinstance(value, dict):
        raise Unreadable(f"expected a JSON object, got {shown(value)}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return unique


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def read_toml(path: str | os.PathLike[str], limit: int = MAX_TOML) -> dict[str, Any]:
    """The table in a TOML file of at most ``limit`` bytes; errors as in `read_bytes`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(read_bytes(path, limit).decode("utf-8"))
    except RecursionError:
        raise Unreadable("TOML that is nested too deeply") from None
    except (ValueError, OverflowError) as error:
        raise Unreadable(f"no valid TOML ({str(error)[:100]})") from None


# ---- values of a record


def take(record: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """``record[name]`` if it is of type ``kind``; a whole number passes as float. Else Unreadable.

    True and False are no numbers here, and floats are finite.
    """
    if name not in record:
        raise Unreadable(f"{name} is missing")
    value = record[name]
    if kind is float and type(value) is int and value.bit_length() <= 1000:
        value = float(value)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if isinstance(value, float) and not math.isfinite(value):
        fits = False
    if not fits:
        raise Unreadable(f"{name}: expected {_KINDS.get(kind, kind.__name__)}, got {shown(value)}")
    return value  # type: ignore[no-any-return]


_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    dict: "an object",
    list: "a list",
    bool: "true or false",
}


def take_or_none(record: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """Like `take`, but None where the value is absent or null."""
    return None if record.get(name) is None else take(record, name, kind)


def take_whole(record: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """``record[name]`` as a whole number from ``least`` to ``most``; Unreadable otherwise."""
    number = take(record, name, int)
    if not least <= number <= most:
        raise Unreadable(f"{name}: expected {least} to {most}, got {shown(number)}")
    return number


def take_numbers(record: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    """``record[name]`` as a list of ``count`` finite numbers; Unreadable otherwise."""
    values = take(record, name, list)
    if len(values) != count:
        raise Unreadable(f"{name}: expected {count} numbers, got {len(values)}")
    return tuple(take({name: value}, name, float) for value in values)


# ---- names and paths


def plain_name(name: object, most: int = MAX_NAME) -> bool:
    """Whether ``name`` can be the name of one file: not a path, not empty, of ``most`` bytes."""
    if not isinstance(name, str) or name in ("", ".", "..") or any(c in name for c in "/\\\0"):
        return False
    try:
        return len(name.encode("utf-8")) <= most
    except UnicodeEncodeError:  # half a character, or bytes that are no UTF-8
        return False


def below(base: Path, relative: str) -> Path:
    """``base`` / ``relative``, a path with "/" that stays below ``base`` and crosses no link.

    Raises Unreadable for an absolute path, "..", a symbolic link on the way (or at the end), and
    names that no file can have. Links in ``base`` itself are the user's own. OSError where a folder
    on the way cannot be read.
    """
    parts = relative.split("/") if isinstance(relative, str) else []
    if len(parts) > 32 or not all(plain_name(part, _FILE_NAME) for part in parts):
        raise Unreadable(f"expected a path below {base}, got {shown(relative)}")
    place = os.fspath(base)
    for part in parts:
        place = f"{place}{os.sep}{part}"
        if os.path.islink(place):
            raise Unreadable(f"expected no symbolic link, got one at {place}")
    return Path(place)


def local_path(path: str | os.PathLike[str], what: str = "path") -> Path:
    """A path that a person gave, with ``~`` resolved; InputError for what no path can be."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{what}: expected the name of a file or folder, got {shown(text)}")
    if len(text) <= 255 and text.isascii() and text[0] != "~":  # a thousand tiles are quick
        return Path(text)
    try:
        size = len(os.fsencode(text))
        names = [len(os.fsencode(part)) for part in Path(text).parts]
        if size > MAX_PATH or max(names, default=0) > 255:
            raise InputError(
                f"{what}: expected names of at most 255 bytes and {MAX_PATH} in all, got {size} "
                f"bytes ({text[:40]}...); give a shorter one"
            )
        return Path(text).expanduser()
    except UnicodeEncodeError as error:
        raise InputError(f"{what}: no file can have the name {text!a:.80}") from error
    except RuntimeError as error:  # ~name of nobody
        raise InputError(
            f"{what}: {text!r:.80} begins with ~, and there is no such user; give the path itself"
        ) from error


def local_target(path: str | os.PathLike[str], what: str = "path") -> Path:
    """Like `local_path`, of a file or folder to write: its name leaves room for an ending."""
    target = local_path(path, what)
    if not plain_name(target.name):
        raise InputError(
            f"{what}: expected a name in UTF-8 of 1 to {MAX_NAME} bytes to write to, got "
            f"{shown(target.name)}; give another"
        )
    return target


# ---- .npy files


class NpyHeader(NamedTuple):
    """What a .npy file says of its array. ``dtype`` may be of the other byte order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int  # of the first value, in bytes

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def npy_header_length(start: bytes) -> int:
    """Bytes of the header of a file that begins with ``start``; Unreadable if it is no .npy."""
    if start[:2] == b"PK":
        raise Unreadable("an .npz archive, not one array as np.save writes it")
    if start[:6] != _MAGIC or len(start) < 12:
        raise Unreadable("it does not begin as a .npy file does")
    if start[6] not in (1, 2, 3):
        raise Unreadable(f"version {start[6]} of the format")
    width = 2 if start[6] == 1 else 4
    length = 8 + width + int.from_bytes(start[8 : 8 + width], "little")
    if length > _MAX_NPY_HEADER:
        raise Unreadable(f"a header of {length} bytes, expected at most {_MAX_NPY_HEADER}")
    return length


def parse_npy_header(start: bytes) -> NpyHeader:
    """The header of a file that begins with ``start``; Unreadable if it is not one in full.

    Numbers, datetime64 and short text: no Python objects, no records. The caller judges the dtype.
    """
    length = npy_header_length(start)
    if len(start) < length:
        raise Unreadable("it ends within its header")
    return _parse_npy_header(start[:length])


@functools.lru_cache(maxsize=256)  # tiles of one campaign have few headers
def _parse_npy_header(start: bytes) -> NpyHeader:
    text = start[10 if start[6] == 1 else 12 :]
    try:
        fields = ast.literal_eval(text.decode("utf-8" if start[6] == 3 else "latin-1").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unreadable("its header is damaged") from None
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise Unreadable("its header is not that of an array")
    descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(descr, str) or not _DESCR.fullmatch(descr):
        what = "an array of Python objects" if descr in ("|O", "O") else f"values {shown(descr)}"
        raise Unreadable(f"{what}, not plain numbers")
    if not isinstance(fortran, bool) or not isinstance(shape, tuple):
        raise Unreadable("its header is damaged")
    if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n <= MAX_SIZE for n in shape):
        raise Unreadable(f"shape {shown(shape)}")
    try:
        dtype = np.dtype(descr)
    except (TypeError, ValueError):  # a unit of time that is none
        raise Unreadable(f"values {shown(descr)}, not plain numbers") from None
    # an axis of 0 does not excuse the others: numpy multiplies what is not 0
    if math.prod(n for n in shape if n) * dtype.itemsize > MAX_SIZE - _MAX_NPY_HEADER:
        raise Unreadable(f"shape {shown(shape)}, more than any file holds")
    return NpyHeader(shape, dtype, fortran and len(shape) > 1, len(start))


def map_npy(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a .npy file, which is read where it is used. Unreadable, OSError."""
    file, size = open_file(path)
    with file:
        start = file.read(1024)
        header = parse_npy_header(start + file.read(max(0, npy_header_length(start) - len(start))))
        if size < header.size:
            raise Unreadable(f"{size} bytes, {header.size} are needed")
        order: Any = "F" if header.fortran else "C"
        return np.memmap(file, header.dtype, "r", header.offset, header.shape, order)
