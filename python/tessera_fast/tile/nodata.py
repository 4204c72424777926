"""Values that a source declares to be none: fill values, numpy masks, chunks that are not there.

Of Sentinel-1 such a value is 0, as the official preprocessing writes what was not observed. In
masks it is 0, not clear. Of Sentinel-2 it is an error where the mask is clear, as NaN is. T dates.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..untrusted.readers import shown
from .arrays import ALL, Converted, Picks, RowArray

# Attributes of CF, of rioxarray and GDAL, and of odc-stac, that name values which are no data.
NAMES = ("_FillValue", "missing_value", "fill_value", "nodata", "nodatavals")
_MOST = 32  # values that one attribute names: nodatavals has one for each band
_AT_ONCE = 1 << 20  # values judged at once: bounds what that takes beside the values


@dataclass(frozen=True)
class NoData:
    """Which values of an array are none. ``fills``: numbers for every channel, or one tuple for
    all; ``masks``: arrays (T, H, W[, C]) that are not 0 where there is no value."""

    fills: tuple[tuple[float, ...], ...] = ()
    masks: tuple[RowArray, ...] = ()
    why: str = ""  # "_FillValue -9999", for messages

    def __bool__(self) -> bool:
        return bool(any(self.fills) or self.masks)

    def __or__(self, other: "NoData") -> "NoData":
        if not (self and other):
            return self or other
        why = f"{self.why}, {other.why}"
        return NoData(self.fills or other.fills, self.masks + other.masks, why)

    @property
    def is_zero_alone(self) -> bool:
        """Whether nothing but 0 is no data, so that putting 0 there changes nothing."""
        return not self.masks and set(self.numbers) <= {0}

    @property
    def numbers(self) -> tuple[float, ...]:
        """All fill values, of whatever channel."""
        return tuple({number for fills in self.fills for number in fills})


def declared(attrs: Mapping[str, Any], encoding: Mapping[str, Any], dtype: np.dtype) -> NoData:
    """What the attributes of one variable declare, and the encoding that xarray moves them to.

    xarray has replaced an encoded fill value of floats by NaN. Raises ValueError for no numbers.
    """
    if dtype.kind not in "biuf":  # refused for its type
        return NoData()
    found: dict[float, str] = {}  # number -> how it was declared
    for name in NAMES:
        for place in (attrs, encoding):
            for number in _numbers(name, place.get(name)):
                if name == "fill_value" and place is encoding and number == 0:
                    continue  # the default of Zarr format 3, which declares nothing
                meant = _unsigned(number, dtype) if "_Unsigned" in attrs else number
                found.setdefault(meant, f"{name} {number:g}")
    if found and dtype.kind == "f":
        found.setdefault(math.nan, "NaN")
    kept = tuple(n for n in found if _fits(n, dtype))
    why = ", ".join(found[n] for n in kept if found[n] != "NaN")
    return NoData((kept,), (), why) if kept else NoData()


def _unsigned(number: float, dtype: np.dtype) -> float:
    """A fill value as stored, in the ``dtype`` that the stored values stand for."""
    if _fits(number, dtype) or dtype.kind not in "iu" or not number.is_integer():
        return number
    return float(np.array(int(number) % 2 ** (8 * dtype.itemsize), "u8").astype(dtype))


def _numbers(name: str, value: Any) -> list[float]:
    if value is None:
        return []
    try:
        numbers = np.ravel(np.asarray(value)).tolist()
        if len(numbers) > _MOST:
            raise ValueError(f"{len(numbers)} values")
        return [float(v) for v in numbers if v is not None]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"expected {name} to be a number, got {shown(value)}") from error


def _fits(number: float, dtype: np.dtype) -> bool:
    """Whether a value of ``dtype`` can be ``number`` at all."""
    if dtype.kind == "f":
        return True
    if dtype.kind == "b":
        return number in (0, 1)
    return number.is_integer() and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max


def equals(values: np.ndarray, numbers: Sequence[float]) -> np.ndarray:
    """Where ``values`` are one of ``numbers``, bool of their shape."""
    found = np.zeros(values.shape, bool)
    for number in numbers:
        if math.isnan(number):
            if values.dtype.kind == "f":
                found |= np.isnan(values)
        elif _fits(number, values.dtype):
            found |= values == values.dtype.type(number)
    return found


def _filled(values: np.ndarray, fills: Sequence[Sequence[float]]) -> np.ndarray:
    """Where values (..., C), or (...) of one tuple of ``fills``, are a fill value."""
    if len(fills) <= 1 or all(f == fills[0] for f in fills):
        return equals(values, fills[0] if fills else ())
    return np.stack([equals(values[..., c], f) for c, f in enumerate(fills)], axis=-1)


class Filled(RowArray):
    """An array with ``value`` where it has none."""

    def __init__(self, source: RowArray, nodata: NoData, value: float) -> None:
        self._source, self._nodata = source, nodata
        self.shape, self.dtype = source.shape, source.dtype
        self._value = self.dtype.type(value)

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        values = self._source.read(dates, rows, columns)
        return self._put(values, [m.read(dates, rows, columns) for m in self._nodata.masks])

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        values = self._source.lines(dates, rows, columns)
        return self._put(values, [m.lines(dates, rows, columns) for m in self._nodata.masks])

    def _put(self, values: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
        out = np.array(values, self.dtype, order="C")  # a copy: the source may be the caller's
        for part, *beside in in_steps(out, *masks):
            missing = _filled(part, self._nodata.fills)
            for mask in beside:
                missing |= _as_wide(mask != 0, missing)
            part[missing] = self._value
        return out

    @property
    def bytes_per_row(self) -> int:
        beside = sum(mask.bytes_per_row for mask in self._nodata.masks)
        return super().bytes_per_row + self._source.bytes_per_row + beside


class Guarded(RowArray):
    """Sentinel-2 bands, which must have a value wherever ``masks`` (T, H, W) are clear.

    The value 0 of one band is also that of a dark pixel: where it is a fill value, a pixel has no
    data if all its bands are 0.
    """

    def __init__(self, source: RowArray, nodata: NoData, masks: RowArray, label: str) -> None:
        self._source, self._nodata, self._masks, self._label = source, nodata, masks, label
        self.shape, self.dtype = source.shape, source.dtype
        self._zero = 0 in nodata.numbers
        self._fills = tuple(
            tuple(n for n in f if n != 0 and not math.isnan(n)) for f in nodata.fills
        )

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        values = self._source.read(dates, rows, columns)
        beside = [mask.read(dates, rows, columns) for mask in self._nodata.masks]
        parts = [self._missing(part, masks) for part, *masks in in_steps(values, *beside)]
        missing = np.concatenate(parts) if parts else np.zeros(values.shape[:3], bool)
        if missing.any():
            missing &= self._masks.read(dates, rows, columns) != 0
            if missing.any():
                raise self._error(missing, dates, rows, columns)
        return values

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        return self._source.lines(dates, rows, columns)

    def _missing(self, values: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
        """Pixels (D, h, w) without data."""
        missing = np.zeros(values.shape[:-1], bool)
        if any(self._fills):
            missing |= _filled(values, self._fills).any(-1)
        if self._zero:
            missing |= (values == 0).all(-1)
        for mask in masks:
            missing |= (mask != 0).any(-1) if mask.ndim == values.ndim else mask != 0
        return missing

    def _error(self, missing: np.ndarray, dates: Picks, rows: slice, columns: slice) -> InputError:
        t, y, x = np.argwhere(missing)[0].tolist()
        date = int(np.arange(self.shape[0])[dates][t])
        y, x = range(self.shape[1])[rows][y], range(self.shape[2])[columns][x]
        return InputError(
            f"{self._label}: expected values where the mask is clear, got no data "
            f"({self._nodata.why}) at date {date}, row {y}, column {x}, and at "
            f"{int(missing.sum())} of {missing.size} observations read with it; set the mask to 0 "
            "there, or restore the values"
        )

    @property
    def bytes_per_row(self) -> int:
        beside = sum(mask.bytes_per_row for mask in self._nodata.masks)
        return self._source.bytes_per_row + beside + math.prod((self.shape[0], self.shape[2]))


def in_steps(*arrays: np.ndarray) -> "list[tuple[np.ndarray, ...]]":
    """Views of the same dates of each array, few enough that judging them takes little."""
    count = len(arrays[0])
    step = max(1, _AT_ONCE // max(1, math.prod(arrays[0].shape[1:])))
    return [tuple(a[k : k + step] for a in arrays) for k in range(0, count, step)]


def _as_wide(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    """``mask`` (...) for all channels of ``like`` (..., C)."""
    return mask if mask.ndim == like.ndim else mask[..., None]


# ---- what becomes of an array, by what it holds


def without_orbit_fills(source: RowArray, nodata: NoData, units: str) -> RowArray:
    """Sentinel-1 where no data is not observed: 0, or NaN in units that are converted."""
    if units != "official":
        return Filled(source, nodata, math.nan) if nodata else source
    return source if nodata.is_zero_alone else Filled(source, nodata, 0)


def without_mask_fills(
    source: RowArray, nodata: NoData, clear: Sequence[int], label: str
) -> RowArray:
    """Masks or classes with 0, not clear, where they have no value; ``clear``: the clear values.

    Floats that xarray made of integers for NaN become integers again. Raises InputError if a clear
    value is declared to be none.
    """
    if nodata.is_zero_alone:
        return source
    wrong = [n for n in nodata.numbers if n in clear]
    if wrong:
        raise InputError(
            f"{label}: expected no data to be a value that does not mean clear, got {nodata.why}; "
            "correct the attribute, or drop it if every value counts"
        )
    filled = Filled(source, nodata, 0)
    if source.dtype.kind != "f":
        return filled
    return Converted(filled, np.dtype(np.uint8), functools.partial(_whole, label))


def _whole(label: str, values: np.ndarray, dates: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.uint8)
    wrong = whole != values
    if wrong.any():
        k = int(wrong.reshape(len(wrong), -1).any(1).argmax())
        raise InputError(
            f"{label}: expected whole numbers from 0 to 255, got {values[k][wrong[k]][0]} at date "
            f"{dates[k]}; cast it to integers"
        )
    return whole


def guarded_bands(source: RowArray, nodata: NoData, masks: RowArray, label: str) -> RowArray:
    """Sentinel-2 that raises InputError where no data is clear."""
    if not nodata.masks and all(map(math.isnan, nodata.numbers)):
        return source  # the packer refuses NaN
    if 0 in nodata.numbers and source.dtype.kind == "f":  # xarray made NaN of 0
        source = Filled(source, replace(nodata, fills=((math.nan,),), masks=()), 0)
    return Guarded(source, nodata, masks, label)
