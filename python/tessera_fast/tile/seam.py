"""The one place where what a source holds becomes a tile: every form passes through `settle`.

A reader (folder, arrays, Dataset, cube, URL) says what its source holds, and what it declares: real
dates, units, values that are none. What that means is decided here, so that all forms behave alike:

1. the days of year are those of the real dates, or the source is refused;
2. masks and scene classes: what has no value is not clear; each belongs to the bands of its date;
3. Sentinel-1 and -2 in official units; no data of Sentinel-1 is not observed, of Sentinel-2 an
   error where the mask is clear;
4. shapes and dtypes are checked;
5. the dates are those of one period or year, or the source is refused;
6. every stream is in the order of its dates.

Nothing but headers, days and dates is read; arrays are wrapped only where something has to change.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import Part, RowArray
from .fields import DAYS, Fields, TileOrbit
from .nodata import guarded_bands
from .period import Period, choose_dates, choose_year, parse_period, years
from .units import convert_units, masks_of


@dataclass(frozen=True)
class Settled:
    """The arrays of a tile, checked and in the order of their dates. Shapes as in `Tile`."""

    bands: RowArray
    masks: RowArray
    doys: np.ndarray
    orbits: tuple[TileOrbit, ...]
    year: int | None
    period: Period | None
    years: tuple[int, ...]  # of the real dates; empty if there are only days of year


def settle(
    fields: Fields,
    *,
    year: int | None = None,
    period: Any = None,
    s1_units: str | None = None,
    s2_offset: str | int = "removed",
    allow_missing_s1: bool = False,
) -> Settled:
    """What ``fields`` are as a tile; the options are those of `open_tile`. Raises InputError."""
    days = None if period is None else parse_period(period)
    fields.fill_days()
    masks_of(fields)
    _pair_masks(fields)
    _guard(fields)
    convert_units(fields, s1_units, s2_offset)
    bands, masks, doys = fields.checked_s2()
    orbits = fields.checked_orbits(bands)
    fields.warn_of_orbits()
    before, known = dict(fields.arrays), years(fields)
    year = choose_year(fields, year, known) if days is None else _in_period(fields, days, year)
    _sort(fields)
    if fields.arrays != before:  # some array was replaced by a part of it
        bands, masks, doys = fields.checked_s2()
        orbits, known = fields.checked_orbits(bands), years(fields)
    if not orbits and not allow_missing_s1:
        raise fields.no_sentinel1()
    return Settled(bands, masks, doys, orbits, year, days, known)


def _pair_masks(fields: Fields) -> None:
    """Masks on a time axis of their own are put in the order of the bands' dates."""
    if "masks" not in fields.dates or not {"bands", "masks"} <= set(fields.arrays):
        return
    label, theirs, ours = fields.label("masks"), fields.real_dates("masks"), None
    if "bands" in fields.dates:
        ours = fields.real_dates("bands")
    if theirs is None or ours is None:
        raise InputError(
            f"{label}: expected the time axis of the bands, got one of its own, and the bands have "
            f"no dates to pair it by; give {fields.label('bands')} dates, or both one time axis"
        )
    picks = _positions(ours, theirs)
    if picks is None:
        picks = _positions(ours.astype("M8[D]"), theirs.astype("M8[D]"))
    if picks is None:
        raise InputError(
            f"{label}: expected one mask for each date of {fields.label('bands')}, got "
            f"{len(theirs)} dates from {theirs.min()} to {theirs.max()} for {len(ours)} from "
            f"{ours.min()} to {ours.max()}; put both on one time axis"
        )
    if not np.array_equal(picks, np.arange(len(theirs))):
        fields.arrays["masks"] = Part(fields.arrays["masks"], picks)


def _positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray | None:
    """Where each of ``wanted`` is in ``among``; None if one is absent or there are twins."""
    if np.array_equal(wanted, among):
        return np.arange(len(among))
    order = np.argsort(among, kind="stable")
    ordered = among[order]
    if (ordered[1:] == ordered[:-1]).any() or len(np.unique(wanted)) < len(wanted):
        return None
    at = np.searchsorted(ordered, wanted)
    if (at == len(ordered)).any() or (ordered[at] != wanted).any():
        return None
    return order[at]


def _guard(fields: Fields) -> None:
    """Bands that declare no data are checked against the masks as they are read."""
    nodata = fields.nodata.get("bands")
    if nodata and {"bands", "masks"} <= set(fields.arrays):
        fields.arrays["bands"] = guarded_bands(
            fields.arrays["bands"], nodata, fields.arrays["masks"], fields.label("bands")
        )


def _in_period(fields: Fields, days: Period, year: int | None) -> int:
    choose_dates(fields, days, fields.year if year is None else year)
    if year not in (None, days[0].year):
        raise InputError(
            f"year: expected {days[0].year}, in which the period begins, got {year}; leave one of "
            "them out"
        )
    return days[0].year


def _sort(fields: Fields) -> None:
    """Every stream in the order of its real dates, or of its days of year; stable."""
    for stream in fields.streams:
        dates = fields.real_dates(stream)
        order = fields.days[DAYS[stream]] if dates is None else dates
        if (order[1:] < order[:-1]).any():
            fields.pick(stream, np.argsort(order, kind="stable"))
