"""The .npy format: headers, and which bytes of a file hold which part of its array."""

import functools
import io
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..errors import InputError

# A header that np.save wrote for a plain array takes 128 bytes; what is longer is read again.
HEADER_BYTES = 1024
_MAGIC = b"\x93NUMPY"


class Header(NamedTuple):
    """What a .npy file says of its array. ``dtype`` may be of the other byte order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int  # of the first value, in bytes

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def header_length(start: bytes) -> int:
    """Bytes of the header of a file that begins with ``start``; ValueError if it is no .npy."""
    if start[:2] == b"PK":
        raise ValueError("an .npz archive, not one array as np.save writes it")
    if start[:6] != _MAGIC or len(start) < 12:
        raise ValueError("it does not begin as a .npy file does")
    if start[6] == 1:
        return 10 + int.from_bytes(start[8:10], "little")
    if start[6] == 2:
        return 12 + int.from_bytes(start[8:12], "little")
    raise ValueError(f"version {start[6]} of the format")


def parse_header(start: bytes) -> Header:
    """The header of a file that begins with ``start``; ValueError if it is not one in full."""
    length = header_length(start)
    if len(start) < length:
        raise ValueError("it ends within its header")
    return _parse(start[:length])


@functools.lru_cache(maxsize=256)  # tiles of one campaign have few headers
def _parse(text: bytes) -> Header:
    file = io.BytesIO(text)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read[np.lib.format.read_magic(file)[0]](file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    return Header(shape, dtype, fortran and len(shape) > 1, len(text))


def parse_array(data: bytes) -> np.ndarray:
    """The array of a whole file; ValueError if it is none, or cut."""
    header = parse_header(data)
    if len(data) < header.size:
        raise ValueError(f"{header.size} bytes are needed")
    values = np.frombuffer(data, header.dtype, math.prod(header.shape), header.offset)
    return values.reshape(header.shape, order="F" if header.fortran else "C").copy()


def unreadable(where: object, size: int, error: Exception) -> InputError:
    """The error of a file of ``size`` bytes that is not the array it should be."""
    reason = str(error).partition(". ")[0].rstrip(".")
    return InputError(
        f"{where}: expected a complete .npy file of plain numbers, got {size} bytes that cannot be "
        f"read as one ({reason}); copy or write the file again"
    )


def spans(
    starts: np.ndarray, length: int, gap: int, most: int
) -> Iterator[tuple[int, int, int, int]]:
    """Join the runs of ``length`` bytes at ``starts`` (K,) that lie at most ``gap`` bytes apart.

    Yields (k0, k1, first byte, byte after the last): runs k0..k1 are read as one span of at most
    ``most`` bytes, or one run. Runs that go back begin a new span.
    """
    if not len(starts):
        return
    between = np.diff(starts) - length
    breaks = np.flatnonzero((between < 0) | (between > gap)) + 1
    for k0, k1 in zip((0, *breaks.tolist()), (*breaks.tolist(), len(starts)), strict=True):
        first = k0
        while first < k1:
            # As many runs as end within `most` bytes of the first one's start.
            room = int(starts[first]) + most - length
            last = max(first + 1, first + int(np.searchsorted(starts[first:k1], room, "right")))
            yield first, last, int(starts[first]), int(starts[last - 1]) + length
            first = last
