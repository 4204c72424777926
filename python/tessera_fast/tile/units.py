"""Declared units and classes, converted as rows are read: the packer sees official units only.

Sentinel-1: clip((20 log10(x) + 50) x 200, 0, 32767) cut to int16, x the RTC gamma0 power, so that
power in dB d = 10 log10(x) is clip((2 d + 50) x 200, 0, 32767). No observation is 0.
"""

import functools

import numpy as np

from ..errors import InputError
from ..untrusted.suggest import closest
from .arrays import Convert, Converted
from .fields import ORBITS, SCL, Fields
from .nodata import NoData, without_mask_fills, without_orbit_fills

# No data, saturated, dark area, cloud shadow, cloud of medium and of high probability. Clear are
# vegetation 4, bare 5, water 6, unclassified 7, thin cirrus 10 and snow 11.
NOT_CLEAR = (0, 1, 2, 3, 8, 9)
CLASSES = 12
_CLEAR = np.array([c not in NOT_CLEAR for c in range(CLASSES)], np.uint8)

S1_UNITS = ("official", "db", "power")
# Spellings of the attribute `units` of a Dataset's variable, in lower case.
_SPELLINGS = {
    "official": "official",
    "db": "db",
    "decibel": "db",
    "decibels": "db",
    "1": "power",
    "linear": "power",
    "power": "power",
    "gamma0": "power",
    "linear power": "power",
}

# ESA's processing baseline 04.00: values of later dates have 1000 added. The official
# preprocessing subtracts it after this day, and leaves values below 1000 as they are.
OFFSET_AFTER = np.datetime64("2022-01-25")
OFFSET = 1000
S2_OFFSETS = ("removed", "present")


def convert_units(fields: Fields, s1_units: str | None, s2_offset: str | int) -> None:
    """Replace Sentinel-1 and -2 of ``fields`` by views in official units, where they are not.

    Values of Sentinel-1 that are declared to be none become 0, not observed. Raises InputError for
    units that are unknown, contradict the source or cannot be converted.
    """
    if s1_units is not None and s1_units not in S1_UNITS:
        near = closest(s1_units, S1_UNITS)
        raise InputError(
            f"s1_units: expected {', '.join(S1_UNITS)} or None, got {s1_units!r}; power is linear "
            f"gamma0, db is 10 log10 of it.{near}"
        )
    for orbit in ORBITS:
        if orbit in fields.arrays:
            _convert_orbit(fields, orbit, s1_units)
    _remove_offset(fields, s2_offset)


def masks_of(fields: Fields) -> None:
    """Make masks of scene classes where those are given; what has no value is not clear."""
    if SCL not in fields.arrays:
        if "masks" in fields.arrays:
            fields.arrays["masks"] = without_mask_fills(
                fields.arrays["masks"],
                fields.nodata.get("masks", NoData()),
                (1,),
                fields.label("masks"),
            )
        return
    label, source = fields.label(SCL), fields.arrays.pop(SCL)
    if "masks" in fields.arrays:
        raise InputError(
            f"{label}: expected masks or scene classes, got both in the {fields.where}; drop one"
        )
    clear_classes = [c for c in range(CLASSES) if c not in NOT_CLEAR]
    nodata = fields.nodata.get(SCL, NoData())
    source = without_mask_fills(source, nodata, clear_classes, label)
    if source.dtype.kind not in "iu":
        what = (
            "a mask of true and false: give it as masks"
            if source.dtype.kind == "b"
            else ("cast it, e.g. scl.astype(np.uint8), with 0 where there is NaN")
        )
        raise InputError(
            f"{label}: expected whole classes 0..{CLASSES - 1}, got {source.dtype}; {what}"
        )
    fields.aliases["masks"] = fields.aliases.get(SCL, SCL)

    # A partial, not a closure: a tile can be sent to another process.
    clear = functools.partial(_clear, label)
    fields.arrays["masks"] = Converted(source, np.dtype(np.uint8), clear)


def _clear(label: str, values: np.ndarray, dates: np.ndarray) -> np.ndarray:
    bad = (values < 0) | (values >= CLASSES)
    if bad.any():
        k = int(bad.reshape(len(bad), -1).any(1).argmax())
        raise InputError(
            f"{label}: expected scene classes 0..{CLASSES - 1}, got {values[k][bad[k]][0]} at date "
            f"{dates[k]}; give 1 = clear, 0 = not as masks instead"
        )
    return _CLEAR[values]


def _convert_orbit(fields: Fields, orbit: str, wanted: str | None) -> None:
    label, source = fields.label(orbit), fields.arrays[orbit]
    text = fields.s1_units.get(orbit)
    declared = None if text is None else _SPELLINGS.get(text.strip().lower())
    if declared is None and text is not None and wanted is None:
        raise InputError(
            f"{label}: expected the attribute units to be official, dB or linear (power), got "
            f"{text!r}; correct it, or pass s1_units"
        )
    if declared is not None and wanted is not None and wanted != declared:
        raise InputError(
            f"{label}: expected s1_units to agree with the attribute units, got {wanted!r} and "
            f"{text!r}; correct one of them"
        )
    units = wanted or declared or "official"
    nodata = fields.nodata.get(orbit, NoData())
    if units == "official":
        fields.arrays[orbit] = without_orbit_fills(source, nodata, units)
        return
    if source.dtype.kind != "f":
        raise InputError(
            f"{label}: expected float32 or float64 in {units}, got {source.dtype}; integers are on "
            "the official scale (s1_units='official')"
        )
    to_official: Convert = _of_decibel if units == "db" else _of_power
    source = without_orbit_fills(source, nodata, units)
    fields.arrays[orbit] = Converted(source, np.dtype(np.int16), to_official)


def _of_decibel(values: np.ndarray, dates: np.ndarray) -> np.ndarray:
    return _scaled(2 * values.astype(np.float64))


def _of_power(values: np.ndarray, dates: np.ndarray) -> np.ndarray:
    power = values.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _scaled(20 * np.log10(power))


def _scaled(log20: np.ndarray) -> np.ndarray:
    """``log20`` is 20 log10(x); what is not finite was not observed."""
    with np.errstate(invalid="ignore"):
        scaled = np.clip((log20 + 50) * 200, 0, 32767)
    return np.where(np.isfinite(log20), scaled, 0).astype(np.int16)


def _remove_offset(fields: Fields, offset: str | int) -> None:
    if isinstance(offset, bool) or not (isinstance(offset, int) or offset in S2_OFFSETS):
        near = closest(offset, S2_OFFSETS)
        raise InputError(
            f"s2_offset: expected 'removed', 'present' or the number to subtract, got {offset!r}."
            f"{near}"
        )
    if offset == "removed" or offset == 0 or "bands" not in fields.arrays:
        return
    source = fields.arrays["bands"]
    if isinstance(offset, int):
        if not 0 < offset <= np.iinfo(np.int16).max:
            raise InputError(
                f"s2_offset: expected 0..32767, got {offset}; ESA's offset is {OFFSET}"
            )
        amount, later = offset, np.ones(source.shape[:1], bool)
    else:
        amount, later = OFFSET, _dates_of(fields).astype("M8[D]") > OFFSET_AFTER
    if later.any():
        subtract = functools.partial(_subtracted, source.dtype.type(amount), later)
        fields.arrays["bands"] = Converted(source, source.dtype, subtract)


def _dates_of(fields: Fields) -> np.ndarray:
    dates = fields.real_dates("bands")
    if dates is None:
        raise InputError(
            f"{fields.label('bands')}: expected real dates of Sentinel-2 to know which have the "
            f"offset, got days of year only in the {fields.where}; give dates (docs/formats.md), "
            f"or s2_offset={OFFSET} if all dates have it"
        )
    return dates


def _subtracted(
    number: np.generic, later: np.ndarray, values: np.ndarray, dates: np.ndarray
) -> np.ndarray:
    """``values`` less ``number`` on the dates ``later`` (T,) where they are at least that."""
    has = later[dates].reshape(-1, *(1,) * (values.ndim - 1)) & (values >= number)
    return values - has * number
