"""Real dates in whatever form they come, as datetime64 in UTC; days of year.

Satellites are filed by UTC: a time with a zone is shifted to it, which may change its day.
"""

import datetime
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import shown

FORMS = "datetime64, datetime, cftime or ISO 8601 text such as 2024-05-03T10:30:31Z"
_YEARS = 1900, 2099  # others are no dates of a satellite, but a wrong epoch or a fill value
_ISO = re.compile(
    r"\s*(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[Tt ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?\s*(Z|z|UTC|[+-]\d\d(?::?\d\d)?)?)?\s*"
)
_COARSE = ("Y", "M", "W", "generic")  # units of datetime64 that do not tell a day
# Nanoseconds since 1970 from 1990 to 2100: no other count of time since 1970, nor a date written
# as the number 20240503, comes near.
_NANOSECONDS = 63 * 10**16, 41 * 10**17
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day")


def days_of_year(dates: np.ndarray) -> np.ndarray:
    """1..366 of each of ``dates`` (T,) datetime64, int64."""
    return (dates.astype("M8[D]") - dates.astype("M8[Y]").astype("M8[D]")).astype(np.int64) + 1


def years_of(dates: np.ndarray) -> np.ndarray:
    """The calendar year of each of ``dates`` (T,) datetime64, int64."""
    return dates.astype("M8[Y]").astype(np.int64) + 1970


def as_dates(values: np.ndarray) -> np.ndarray:
    """``values`` (T,) as datetime64 in UTC. Raises ValueError that says what was found instead.

    Takes datetime64, objects (datetime, pandas, cftime, text), ISO text, and integers that can
    only be nanoseconds since 1970.
    """
    if values.size == 0:  # of an orbit without images
        return np.empty(values.shape, "M8[s]")
    if values.dtype.kind in "OUS":
        dates = np.array([_date(v) for v in values.ravel().tolist()], "M8[us]")
        dates = dates.reshape(values.shape)
    elif values.dtype.kind in "iu" and _are_nanoseconds(values):
        dates = values.astype("M8[ns]")
    elif values.dtype.kind == "M":
        dates = values.astype(values.dtype.newbyteorder("="), copy=False)
        unit = np.datetime_data(dates.dtype)[0]
        if unit in _COARSE:
            raise ValueError(f"{dates.dtype}, which does not tell the day")
    else:
        raise ValueError(f"{values.shape} {values.dtype}, the first {values.flat[0]}")
    missing = np.isnat(dates)
    if missing.any():
        raise ValueError(f"NaT (no date) at index {int(missing.argmax())}")
    for k in (int(dates.argmin()), int(dates.argmax())):
        year = int(years_of(dates.flat[k]))
        if not _YEARS[0] <= year <= _YEARS[1]:
            raise ValueError(f"year {year} at index {k}, outside {_YEARS[0]} to {_YEARS[1]}")
    return dates


def decoded(values: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """``values`` with CF's ``units`` "days since ..." applied, where xarray has not done so."""
    if values.dtype.kind not in "iuf" or " since " not in str(attrs.get("units", "")):
        return values
    import xarray as xr

    known = {key: attrs[key] for key in ("units", "calendar") if key in attrs}
    try:
        return np.asarray(xr.decode_cf(xr.Dataset({"t": ("t", values, known)}))["t"].values)
    except damaged() as error:
        text = f"units {shown(attrs['units'])} that cannot be read ({first_line(error)})"
        raise ValueError(text) from error


def are_dates(values: np.ndarray) -> bool:
    """Whether ``values`` (T,) are meant as dates, by their type and the first of them: labels and
    positions are not."""
    if values.dtype.kind in "iu":
        return _are_nanoseconds(values)
    if values.dtype.kind not in "OUS":
        return values.dtype.kind == "M"
    try:
        return values.size > 0 and not all(np.isnat(_date(v)) for v in values.ravel()[:1].tolist())
    except ValueError:
        return False


def _are_nanoseconds(values: np.ndarray) -> bool:
    low, high = _NANOSECONDS
    return bool(values.size and (values > low).all() and (values < high).all())


def _date(value: Any) -> np.datetime64:
    """One date in UTC to the microsecond; NaT for none."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, np.datetime64):
        return value.astype("M8[us]")
    if value is None or value != value or type(value).__name__ in ("NaTType", "NAType"):
        return np.datetime64("NaT", "us")
    if isinstance(value, datetime.datetime):
        return _in_utc(value)
    if isinstance(value, datetime.date):
        return np.datetime64(value, "us")
    if hasattr(value, "calendar") and hasattr(value, "dayofyr"):  # cftime, which may be absent
        return _of_cftime(value)
    raise ValueError(f"{shown(value)} of type {type(value).__name__}")


def _in_utc(value: datetime.datetime) -> np.datetime64:
    try:
        if value.tzinfo is not None:
            value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError(f"{shown(value)}, beyond any calendar") from error
    return np.datetime64(value.isoformat(), "us")


def _of_text(text: str) -> np.datetime64:
    if not text.strip() or text.strip() in ("NaT", "nan"):
        return np.datetime64("NaT", "us")
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError(f"the text {shown(text)}")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    micro = int(((fraction or "") + "000000")[:6])
    try:
        found = datetime.datetime(
            int(year),
            int(month),
            int(day),
            int(hour or 0),
            int(minute or 0),
            int(second or 0),
            micro,
            None if zone is None else _zone(zone),
        )
    except ValueError as error:
        raise ValueError(f"the text {shown(text)} ({error})") from error
    return _in_utc(found)


def _zone(text: str) -> datetime.tzinfo:
    if text in ("Z", "z", "UTC"):
        return datetime.timezone.utc
    digits = text[1:].replace(":", "").ljust(4, "0")
    minutes = 60 * int(digits[:2]) + int(digits[2:])
    return datetime.timezone(datetime.timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _of_cftime(value: Any) -> np.datetime64:
    if value.calendar not in _CALENDARS:
        raise ValueError(f"cftime of the calendar {value.calendar!r}, whose days are not real days")
    try:
        return np.datetime64(
            f"{value.year:04}-{value.month:02}-{value.day:02}T{value.hour:02}:{value.minute:02}:"
            f"{value.second:02}.{value.microsecond:06}",
            "us",
        )
    except ValueError as error:
        raise ValueError(f"{value} ({error})") from error
