"""Numbers as people write and read them: counts, sizes in bytes, durations."""

import math
import numbers
import re

from .errors import InputError
from .untrusted.readers import shown

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_LARGEST = 2**62  # bytes; what is more is a slip


def parse_bytes(size: object, what: str = "memory") -> int:
    """``"1GiB"``, ``"500MB"`` or a number of bytes; InputError for anything else."""
    number, unit = math.nan, ""
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-zA-Z]*)\s*", size, re.ASCII)
        if match is not None and match[2].upper() in _UNITS:
            number, unit = float(match[1]), match[2].upper()
    elif isinstance(size, numbers.Real) and not isinstance(size, bool):
        try:
            number = float(size)
        except OverflowError:
            number = math.inf
    if math.isnan(number):
        raise InputError(f"{what}: expected a size such as 512MiB or 2GB, got {shown(size)}")
    bytes_ = number * _UNITS[unit]
    if not 1 <= bytes_ <= _LARGEST:
        raise InputError(
            f"{what}: expected a positive size such as 512MiB or 2GB, got {shown(size)}"
        )
    return int(bytes_)


def binary(number: int) -> str:
    """Bytes in the units that memory is given in: "64 MiB", "1000 bytes"."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return f"{number} bytes"


def count(number: float) -> str:
    """1234567 as "1.23 M"."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * factor:  # three digits are 1.00 of the unit
            return f"{float(f'{number / factor:.3g}'):g} {unit}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes as "12.3 MB"."""
    text = count(number)
    return f"{text}B" if " " in text else f"{text} B"


def duration(seconds: float) -> str:
    """Seconds as "0.25 s", "12 s", "3 min 20 s", "5 h 10 min" or "2 d 3 h"."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for unit, length, lower, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        whole = round(seconds / part) * part
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {lower}" if rest else "")
    return "1 min"
