"""A year that need not be a calendar year: which of a source's dates a tile has."""

import datetime
import functools
import logging
import re
from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import Part
from .fields import DAYS, ORBITS, Fields, days_of_year

Period = tuple[datetime.date, datetime.date]  # both days are part of it
MOST_DAYS = 366

_log = logging.getLogger("tessera_fast")


def parse_period(period: Any) -> Period:
    """``period`` as its first and last day.

    A year (2024 or "2024"), two days (dates or ISO texts), or "2024-07-01/2025-06-30". Raises
    InputError for what is none of them, ends before it begins or is longer than a year.
    """
    found = _days_of(period)
    if found is None:
        raise InputError(
            f"period: expected a year or the first and last day, such as 2024 or ('2024-07-01', "
            f"'2025-06-30'), got {period!r}"
        )
    first, last = found
    days = (last - first).days + 1
    if not 1 <= days <= MOST_DAYS:
        raise InputError(
            f"period: expected 1 to {MOST_DAYS} days, got {days} from {first} to {last}; the "
            "models read one year"
        )
    return found


def _days_of(period: Any) -> Period | None:
    if isinstance(period, str) and "/" in period:
        period = tuple(period.split("/"))
    if isinstance(period, tuple | list):
        days = [_day(value) for value in period]
        return (days[0], days[1]) if len(days) == 2 and days[0] and days[1] else None
    if isinstance(period, bool) or not re.fullmatch(r"[1-9]\d{3}", str(period)):
        return None
    return datetime.date(int(period), 1, 1), datetime.date(int(period), 12, 31)


def _day(value: Any) -> datetime.date | None:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(str(value).strip())
    except ValueError:
        return None


def calendar_year(period: Period) -> int | None:
    """The year that ``period`` is from its first to its last day, or None."""
    year = period[0].year
    whole = datetime.date(year, 1, 1), datetime.date(year, 12, 31)
    return year if period == whole else None


def period_of_year(period: Any) -> str | None:
    """What periods of several years have in common, as "07-01/06-30": of `open_tile`'s ``period``
    the month and day of the first and last day. None for a calendar year, and for none."""
    if period is None:
        return None
    found = parse_period(period)
    if calendar_year(found) is not None:
        return None
    return "/".join(f"{day:%m-%d}".replace("02-29", "02-28") for day in found)


def choose_dates(fields: Fields, period: Period, year: int | None) -> None:
    """Keep the dates of ``fields``, which are checked, that lie in ``period``.

    ``year`` is the tile's, which a source without real dates is taken to be of. Raises InputError
    where dates are needed and missing, and where no Sentinel-2 date is left.
    """
    streams = [name for name in ("bands", *ORBITS) if name in fields.arrays]
    dates = {name: d for name in streams if (d := fields.real_dates(name)) is not None}
    undated = [fields.label(name) for name in streams if name not in dates]
    if not undated:
        for name, found in dates.items():
            _choose(fields, name, found, period)
    elif year is None or calendar_year(period) != year:
        own = "an unknown year" if year is None else f"year {year}"
        raise InputError(
            f"period: expected real dates to choose {period[0]} to {period[1]} from {own}, got "
            f"days of year only for {', '.join(undated)}; give dates (docs/formats.md)"
        )
    if calendar_year(period) is None:
        _warn(period)


def _choose(fields: Fields, name: str, dates: np.ndarray, period: Period) -> None:
    label, days = fields.label(name), dates.astype("M8[D]")
    given = fields.days[DAYS[name]]
    wrong = np.flatnonzero(given != days_of_year(dates))
    if wrong.size:
        k = int(wrong[0])
        raise InputError(
            f"{fields.label(DAYS[name])}: expected the days of year of the dates, got {given[k]} "
            f"for {days[k]} at index {k}; correct one of them"
        )
    picks = np.flatnonzero((days >= np.datetime64(period[0])) & (days <= np.datetime64(period[1])))
    if not picks.size and name == "bands":
        raise InputError(
            f"{label}: expected Sentinel-2 dates from {period[0]} to {period[1]}, got none of "
            f"{len(days)} from {days.min()} to {days.max()}; give another period"
        )
    fields.arrays[name] = Part(fields.arrays[name], picks)
    fields.days[DAYS[name]] = given[picks]
    if name == "bands":
        fields.arrays["masks"] = Part(fields.arrays["masks"], picks)


@functools.lru_cache
def _warn(period: Period) -> None:
    """Once for a period, not once for each of ten thousand tiles."""
    _log.warning(
        "period %s to %s is not a calendar year: the models were trained on calendar years, and "
        "read days of year, so that its dates are taken for those of one year",
        *period,
    )
