"""Numbers that a caller gives: checked before anything is started."""

import numpy as np

from ..errors import InputError
from .readers import shown


def whole_number(what: str, value: object, least: int, most: int) -> int:
    """A whole number that a caller gave as ``what``; InputError unless least <= value <= most.

    numpy's integers pass; True, False, text and floats do not.
    """
    fits = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not fits or not least <= value <= most:  # type: ignore[operator]
        raise InputError(
            f"{what}: expected a whole number from {least:,} to {most:,}, got {shown(value)}"
        )
    return int(value)  # type: ignore[call-overload, no-any-return]
