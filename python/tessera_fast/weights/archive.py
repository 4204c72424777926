"""The zip archive around a torch file, read by hand: which bytes of the file are which entry.

Layout: local header and values of every entry, then the directory, then its end record, which says
where the directory is and how many entries it has. Entries of 4 GiB have their sizes in extra
fields (zip64). The directory alone counts, as for torch; its size is bounded before it is read.
"""

import struct

import numpy as np

from ..untrusted.readers import Unreadable, named, shown

_MAX_ENTRIES = 100_000  # a checkpoint has one per tensor, with an optimizer's some thousand
_MAX_DIRECTORY = 16 << 20  # bytes
_ALL = 0xFFFFFFFF  # "see the extra field"

_END = struct.Struct("<4s4H2LH")  # ..., entries, bytes of the directory, its offset, comment
_LOCATOR = struct.Struct("<4sLQL")  # ..., offset of the zip64 end record, ...
_END64 = struct.Struct("<4sQ2H2L4Q")  # ..., entries, bytes of the directory, its offset
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


def entries(raw: np.ndarray) -> dict[str, np.ndarray]:
    """Views of the bytes of every entry of an archive ``raw`` (uint8), by name.

    Raises Unreadable for an archive that is not whole, compressed or encrypted entries, and names
    that occur twice or are not UTF-8.
    """
    directory, count = _directory(raw)
    found: dict[str, np.ndarray] = {}
    at = 0
    for _ in range(count):
        if len(directory) < at + _ENTRY.size:
            raise Unreadable("a zip archive with a damaged directory")
        fields = _ENTRY.unpack_from(directory, at)
        signature, flags, method = fields[0], fields[3], fields[4]
        n_name, n_extra, n_comment = fields[10:13]
        at += _ENTRY.size
        text = directory[at : at + n_name]
        extra = directory[at + n_name : at + n_name + n_extra]
        at += n_name + n_extra + n_comment
        if signature != b"PK\1\2" or at > len(directory):
            raise Unreadable("a zip archive with a damaged directory")
        try:
            name = text.decode("utf-8")
        except UnicodeDecodeError:
            raise Unreadable(f"a zip entry whose name is not UTF-8: {shown(text)}") from None
        if name in found:
            raise Unreadable(f"two zip entries named {named(name)}")
        size, packed, offset = _wide((fields[9], fields[8], fields[16]), extra)
        if method or flags & 1 or packed != size:
            raise Unreadable(f"{named(name)} is compressed or encrypted; torch stores it as it is")
        found[name] = _values(raw, named(name), text, offset, size)
    return found


def _directory(raw: np.ndarray) -> tuple[bytes, int]:
    """The bytes of the directory and the number of its entries."""
    tail = raw[-(_END.size + 0xFFFF) :].tobytes()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + _END.size:
        raise Unreadable("not a whole zip archive, truncated?")
    *_, count, size, offset, n_comment = _END.unpack_from(tail, at)
    if at + _END.size + n_comment != len(tail):
        raise Unreadable("not a whole zip archive: bytes follow its end")
    locator = tail[at - _LOCATOR.size : at] if at >= _LOCATOR.size else b""
    if locator.startswith(b"PK\6\7"):
        start = _LOCATOR.unpack(locator)[2]
        record = raw[start : start + _END64.size].tobytes()
        if len(record) < _END64.size or record[:4] != b"PK\6\6":
            raise Unreadable("a zip archive with a damaged end record")
        *_, count, size, offset = _END64.unpack(record)
    if count > _MAX_ENTRIES or size > _MAX_DIRECTORY:
        raise Unreadable(
            f"a zip archive of {count} entries and a directory of {size} bytes, expected at most "
            f"{_MAX_ENTRIES} and {_MAX_DIRECTORY}"
        )
    directory = raw[offset : offset + size].tobytes()
    if len(directory) < size:
        raise Unreadable("a zip archive with a truncated directory")
    return directory, count


def _wide(numbers: tuple[int, ...], extra: bytes) -> list[int]:
    """Size, stored size and offset of an entry; what is too large for its field is in ``extra``."""
    wide: list[int] = []
    while len(extra) >= 4 and not wide:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            length = min(length, len(extra) - 4) // 8
            wide = list(struct.unpack_from(f"<{length}Q", extra, 4))
        extra = extra[4 + length :]
    if sum(number == _ALL for number in numbers) > len(wide):
        raise Unreadable("a zip archive with a damaged extra field")
    return [wide.pop(0) if number == _ALL else number for number in numbers]


def _values(raw: np.ndarray, name: str, text: bytes, offset: int, size: int) -> np.ndarray:
    """The bytes of one entry, after its local header."""
    header = raw[offset : offset + _LOCAL.size].tobytes()
    if len(header) < _LOCAL.size or header[:4] != b"PK\3\4":
        raise Unreadable(f"the zip entry {name} is damaged")
    n_name, n_extra = _LOCAL.unpack(header)[-2:]
    start = offset + _LOCAL.size
    if raw[start : start + n_name].tobytes() != text:
        raise Unreadable(f"the zip entry {name} has another name where its values are")
    start += n_name + n_extra
    if start + size > raw.size:
        raise Unreadable(f"the zip entry {name} is truncated")
    return raw[start : start + size]
