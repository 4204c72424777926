"""What the libraries that parse files for us say of damaged bytes."""

import struct
import sys
import zlib

from .untrusted import Unreadable, printable

_DAMAGED: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    AssertionError, RuntimeError, SystemError, MemoryError, ImportError, zlib.error, struct.error,
)  # fmt: skip
_DAMAGED_OF = {
    "pickle": "UnpicklingError",
    "pyarrow": "ArrowException",
    "rasterio.errors": "RasterioError",
    "rasterio._err": "CPLE_BaseError",
}


def damaged() -> tuple[type[Exception], ...]:
    """What zarr, xarray, rasterio, pyarrow, ... raise for damaged bytes that they do not notice.

    For one call of such a library, never for code of ours: ``except damaged() as error``.
    """
    loaded = [(sys.modules[m], name) for m, name in _DAMAGED_OF.items() if m in sys.modules]
    return (*_DAMAGED, *(getattr(m, name) for m, name in loaded if hasattr(m, name)))


def first_line(error: BaseException) -> str:
    """What a library said of damaged bytes, short enough for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, Unreadable) else type(error).__name__
    return ": ".join(filter(None, (kind, printable(lines[0])[:160] if lines else "")))
