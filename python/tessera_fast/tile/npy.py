"""The .npy format: small arrays whole, and which bytes of a file hold which part of its array."""

import math
from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from ..untrusted.readers import Unreadable, parse_npy_header

# A header that np.save wrote for a plain array takes 128 bytes; what is longer is read again.
HEADER_BYTES = 1024
SMALL_BYTES = 4 << 20  # of a file that is read whole: days or dates, 65,535 at most


def parse_array(data: bytes) -> np.ndarray:
    """The array of a whole file; Unreadable if it is none, or cut."""
    header = parse_npy_header(data)
    if len(data) < header.size:
        raise Unreadable(f"{header.size} bytes are needed")
    values = np.frombuffer(data, header.dtype, math.prod(header.shape), header.offset)
    return values.reshape(header.shape, order="F" if header.fortran else "C").copy()


def unreadable(where: object, size: int, error: Exception) -> InputError:
    """The error of a file of ``size`` bytes that is not the array it should be."""
    reason = str(error).rstrip(".")
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
