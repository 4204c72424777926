"""The exceptions of the package: every message says what, expected, got, and what to do."""

from typing import Any

__all__ = ["BackendUnavailable", "InputError", "StoreError", "TesseraError", "WeightsError"]


class TesseraError(Exception):
    """Base of every error that the package raises on purpose.

    ``report``: of an error that ended `embed_tiles`, what had become of every tile by then, a
    JobReport; else None.
    """

    report: Any = None

    def __str__(self) -> str:
        """The message, with escapes for what is no UTF-8: it may quote the name of a file."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class InputError(TesseraError, ValueError):
    """The observations given are not what the model expects; nothing was written."""


class UnknownKeyword(InputError, TypeError):
    """A function was called with a keyword that it does not have."""


class WeightsError(TesseraError, ValueError):
    """A checkpoint is unsafe, truncated, mismatched or not the one that was asked for."""


class BackendUnavailable(TesseraError, RuntimeError):
    """A back end, instruction set, precision or device asked for by name cannot run here."""


class StoreError(TesseraError, RuntimeError):
    """An output cannot be written, or would mix models, weights or precisions."""


# What the command line returns to the shell; argparse itself returns 2 for wrong usage.
OK, FAILED, PARTLY, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 1, 3, 130, 141, 143
