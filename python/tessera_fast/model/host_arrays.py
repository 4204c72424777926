"""Series in the host's memory, checked and made what the packer reads; see official.py."""

from typing import Any

import numpy as np

from ..errors import InputError
from ..spec import MAX_DOY
from ..tile.plain import plain, unmasked


class HostArrays:
    """Arguments as numpy arrays of what the packer reads; InputError where they cannot be."""

    def __init__(self, standardize: bool) -> None:
        self._standardize = standardize
        self._missing: np.ndarray | None = None  # where Sentinel-2 is masked, without its last axis

    def empty(self, *shape: int) -> np.ndarray:
        return np.empty(shape, np.float32)

    def bands(self, name: str, array: Any, form: str, raw: type) -> np.ndarray:
        """The raw integer type and float32 pass as they are, others as float32. ``form`` is the
        shape expected, as text: its last number is that of the bands."""
        a, masked = plain(array, name)
        if not has_form(a.shape, form) or (a.dtype.kind not in "uif"):
            raise InputError(f"{name}: expected numbers {form}, got {a.dtype} {a.shape}")
        if a.ndim == 4 and 0 in a.shape:
            raise InputError(
                f"{name}: expected at least one date and one pixel, got shape {a.shape}"
            )
        if masked is not None and name == "s2_bands":
            self._missing = np.asarray(masked.any(-1))
        elif masked is not None:
            a = np.where(masked, a.dtype.type(0), a)  # not observed
        keep = a.dtype == np.float32 or (self._standardize and a.dtype == raw)
        a = a if keep else a.astype(np.float32)
        return a if a.strides[-1] == a.itemsize else np.ascontiguousarray(a)

    def masks(self, masks: Any, shape: tuple[int, ...]) -> np.ndarray | None:
        clear = None if masks is None else self._clear(masks, shape)
        if self._missing is not None:
            wrong = self._missing if clear is None else self._missing & (clear != 0)
            if wrong.any():
                index = tuple(int(i) for i in np.argwhere(wrong)[0])
                raise InputError(
                    f"s2_bands: expected values where s2_masks is clear, got a masked array with "
                    f"{int(wrong.sum())} masked ones there, the first at {index}; set s2_masks to "
                    "0 there"
                )
        return clear

    def _clear(self, masks: Any, shape: tuple[int, ...]) -> np.ndarray:
        m, masked = plain(masks, "s2_masks")
        if m.shape != shape:
            raise InputError(f"s2_masks: expected {shape} to match s2_bands, got {m.shape}")
        if m.dtype.kind not in "biuf" or (m.dtype.kind == "f" and np.isnan(m).any()):
            got = "NaN" if m.dtype.kind == "f" else m.dtype
            raise InputError(f"s2_masks: expected numbers, not 0 = clear, got {got}; write 0 there")
        if masked is None and m.dtype == np.uint8:
            return m
        clear = m if m.dtype == np.bool_ else m != 0
        return (clear if masked is None else clear & ~masked).view(np.uint8)

    def days(
        self,
        name: str,
        doys: Any,
        shapes: list[tuple[int, ...]],
        observed: np.ndarray | None = None,
    ) -> np.ndarray:
        """``doys`` as int32, checked; those of single pixels only where ``observed``."""
        if doys is None:
            raise InputError(f"{name}: expected the days of year of the bands given, got None")
        d, masked = plain(doys, name)
        if d.shape not in shapes:
            raise InputError(f"{name}: expected {' or '.join(map(str, shapes))}, got {d.shape}")
        if d.dtype.kind not in "iuf":
            raise InputError(
                f"{name}: expected numbers, days of year 1..{MAX_DOY}, got {d.dtype}; convert it"
            )
        if masked is not None and (observed is None or d.shape != observed.shape):
            unmasked(doys, name)
        elif masked is not None:
            d = np.where(masked, d.dtype.type(0), d)  # no day: refused where it is observed
        if observed is not None and d.shape == observed.shape:
            d = np.where(observed != 0, d, 1)
        with np.errstate(invalid="ignore"):  # what is no number fails the comparison below
            days = d.astype(np.int32)
        bad = (days != d) | (days < 1) | (days > MAX_DOY)
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InputError(f"{name}: expected whole days 1..{MAX_DOY}, got {d[index]} at {index}")
        return days


def has_form(shape: tuple[int, ...], form: str) -> bool:
    """Whether a shape has as many axes as ``form``, "(T, H, W, 10)", and its last length."""
    axes = form.strip("()").split(", ")
    return len(shape) == len(axes) and shape[-1] == int(axes[-1])
