"""What people hand in as arrays, as plain numpy arrays: nothing that a class carries gets lost.

A numpy subclass may carry which values are valid (masked arrays) or their unit (astropy, unyt).
numpy.asarray drops both without a word, so every way in comes through here.
"""

from typing import Any

import numpy as np

from ..errors import InputError

_PLAIN = (np.ndarray, np.memmap)


def plain(value: Any, label: str) -> tuple[np.ndarray, np.ndarray | None]:
    """``value`` as an array, and where it has no value: bool of its shape, or None.

    Raises InputError for a class that carries more than values, such as a unit, and for what is no
    array at all.
    """
    if type(value) in _PLAIN:
        return value, None
    if isinstance(value, list | tuple) and _holds_masked(value):
        raise InputError(
            f"{label}: expected one array, got a {type(value).__name__} that holds masked values; "
            "join it with numpy.ma.stack, which keeps the mask"
        )
    if hasattr(value, "magnitude") and hasattr(value, "units"):
        raise _carries_more(value, label)
    try:
        array = np.asanyarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors elsewhere
        raise InputError(
            f"{label}: expected what numpy.asarray takes, got {type(value).__name__} ({error})"
        ) from error
    if isinstance(array, np.ma.MaskedArray):
        mask = np.ma.getmask(array)
        return np.asarray(array.data), None if mask is np.ma.nomask else np.asarray(mask)
    if type(array) not in _PLAIN:
        raise _carries_more(array, label)
    return array, None


def unmasked(value: Any, label: str) -> np.ndarray:
    """``value`` as an array every value of which is needed; InputError if some are masked."""
    array, mask = plain(value, label)
    if mask is not None and mask.any():
        index = tuple(int(i) for i in np.argwhere(mask)[0])
        raise InputError(
            f"{label}: expected a value everywhere, got a masked array in which {int(mask.sum())} "
            f"of {mask.size} values are masked, the first at {index}; drop what they belong to"
        )
    return array


def _carries_more(value: Any, label: str) -> InputError:
    kind = f"{type(value).__module__}.{type(value).__name__}"
    return InputError(
        f"{label}: expected a plain numpy array, got {kind}, which may carry a unit or a mask that "
        "would be lost; convert it to raw units and pass its plain values"
    )


def _holds_masked(values: list[Any] | tuple[Any, ...]) -> bool:
    return any(
        np.ma.is_masked(v)
        if isinstance(v, np.ma.MaskedArray)
        else isinstance(v, list | tuple) and _holds_masked(v)
        for v in values
    )
