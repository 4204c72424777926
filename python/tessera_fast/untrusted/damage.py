"""What the libraries that parse files for us say of damaged bytes."""

import errno
import os
import struct
import sys
import zlib

from .readers import Unreadable, printable

_DAMAGED: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    SystemError,
    MemoryError,
    ImportError,
    zlib.error,
    struct.error,
)
# of the interpreter, and of the C++ library
_NO_THREADS = ("can't start new thread", os.strerror(errno.EAGAIN))
_DAMAGED_OF = {
    "aiohttp": "ClientError",
    "ftplib": "Error",
    "pickle": "UnpicklingError",
    "pyarrow": "ArrowException",
    "rasterio.errors": "RasterioError",
    "rasterio._err": "CPLE_BaseError",
}


def damaged() -> tuple[type[Exception], ...]:
    """What zarr, xarray, rasterio, fsspec, ... raise for damaged bytes that they do not notice.

    For one call of such a library, never for code of ours: ``except damaged() as error``. Nothing
    where the error that is being handled comes of a limit of this process: no bytes can cause that,
    and a sound file must not be called damaged for it.
    """
    if of_a_limit(sys.exc_info()[1]):
        return ()
    loaded = [(sys.modules[m], name) for m, name in _DAMAGED_OF.items() if m in sys.modules]
    return (*_DAMAGED, *(getattr(m, name) for m, name in loaded if hasattr(m, name)))


def of_a_limit(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came of, says that the process may open no more files or start
    no more threads. Memory is another matter: damaged bytes may ask for any amount of it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_THREADS):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    """What a library said of damaged bytes, short enough for a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = "" if isinstance(error, Unreadable) else type(error).__name__
    return ": ".join(filter(None, (kind, printable(lines[0])[:160] if lines else "")))
