"""A year that need not be a calendar year: which of a source's dates a tile has."""

import datetime
import functools
import logging
import re
from typing import Any

import numpy as np

from ..errors import InputError
from .dates import years_of
from .fields import Fields

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
    undated = undated_streams(fields)
    if not undated:
        for name in fields.streams:
            _choose(fields, name, period)
    elif year is None or calendar_year(period) != year:
        own = "an unknown year" if year is None else f"year {year}"
        raise InputError(
            f"period: expected real dates to choose {period[0]} to {period[1]} from {own}, got "
            f"days of year only for {', '.join(undated)}; give dates (docs/formats.md)"
        )
    if calendar_year(period) is None:
        _warn(period)


def choose_year(fields: Fields, year: int | None, known: tuple[int, ...]) -> int | None:
    """The calendar year of ``fields``, whose real dates it must be where they are known.

    ``known`` are the years of its real dates, ``year`` is the one asked for, of which dates are
    kept where there are others too. None if nothing tells the year, or the dates are of several.
    Raises InputError where the year asked for, or the one in the source's name, is not that of the
    dates.
    """
    wanted = fields.year if year is None else year
    if not known or known == (wanted,):
        return wanted
    if wanted is None:
        return known[0] if len(known) == 1 else None
    text = " and ".join(map(str, known))
    if year is None:
        raise InputError(
            f"{fields.where}: expected dates of {wanted}, the year in its name, got dates of "
            f"{text}; rename it, or say what you mean by {_said(known)}"
        )
    undated = undated_streams(fields)
    if year not in known or undated:
        only = f", and days of year only for {', '.join(undated)}" if undated else ""
        raise InputError(
            f"{fields.where}: expected dates of {year}, the year asked for, got dates of {text}"
            f"{only}; say what you mean by {_said(known)}"
        )
    choose_dates(fields, parse_period(year), year)
    return year


def years(fields: Fields) -> tuple[int, ...]:
    """The calendar years of all real dates, in order; none if there are only days of year."""
    found: set[int] = set()
    for stream in fields.streams:
        dates = fields.real_dates(stream)
        if dates is not None:
            ends = {int(years_of(dates.min())), int(years_of(dates.max()))}
            found |= ends if len(ends) == 1 else set(years_of(dates).tolist())
    return tuple(sorted(found))


def undated_streams(fields: Fields) -> list[str]:
    """The streams without real dates, as messages call them."""
    return [fields.label(name) for name in fields.streams if fields.real_dates(name) is None]


def _said(known: tuple[int, ...]) -> str:
    """The options that choose among the years ``known``."""
    period = f"period={known[-1]} (--period {known[-1]})"
    return f"year={known[0]} (--year {known[0]}) or {period}" if len(known) == 1 else period


def _choose(fields: Fields, name: str, period: Period) -> None:
    dates = fields.real_dates(name)
    assert dates is not None  # choose_dates has looked
    days = dates.astype("M8[D]")
    picks = np.flatnonzero((days >= np.datetime64(period[0])) & (days <= np.datetime64(period[1])))
    if not picks.size and name == "bands":
        raise InputError(
            f"{fields.label(name)}: expected Sentinel-2 dates from {period[0]} to {period[1]}, got "
            f"none of {len(days)} from {days.min()} to {days.max()}; give another period"
        )
    if picks.size < days.size:
        fields.pick(name, picks)


@functools.lru_cache
def _warn(period: Period) -> None:
    """Once for a period, not once for each of ten thousand tiles."""
    _log.warning(
        "period %s to %s is not a calendar year: the models were trained on calendar years, and "
        "read days of year, so that its dates are taken for those of one year",
        *period,
    )
