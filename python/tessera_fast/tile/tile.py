"""One tile: a year of Sentinel-1 and Sentinel-2 over H x W pixels, checked once, read by rows.

The official layout is a folder of bands.npy, masks.npy, doys.npy, sar_ascending.npy,
sar_ascending_doy.npy, sar_descending.npy, sar_descending_doy.npy and roi.tiff. T dates, C bands.
"""

import hashlib
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError, TesseraError
from ..machine.notebook import table
from ..packing import Observations, Orbit
from ..untrusted.readers import shown
from ..untrusted.suggest import checks_keywords
from .arrays import RowArray
from .fields import ORBITS, TileOrbit
from .georeference import UNKNOWN, Georeference, affine, crs_name
from .period import Period, calendar_year, parse_period
from .seam import settle
from .sources import name_of, read_source, source_path

FINGERPRINT_LINES = 64  # image rows hashed per array: 640 KB of a 500 x 500 tile's bands


@dataclass(frozen=True, eq=False)
class Tile:
    """A validated tile; nothing but shapes and days is in memory until :meth:`rows`."""

    name: str
    s2_bands: RowArray  # (T, H, W, 10) uint16, int16 or float32, raw units
    s2_masks: RowArray  # (T, H, W) bool or any integer type
    s2_doys: np.ndarray  # (T,) int32
    orbits: tuple[TileOrbit, ...]  # ascending before descending; an absent orbit is left out
    year: int | None = None
    georeference: Georeference = UNKNOWN
    masks_label: str = "masks"  # how a message calls s2_masks
    where: str = "tile"  # how a message calls the source, e.g. "folder tiles/a"
    period: Period | None = None  # first and last day, where they were asked for
    source: str | None = None  # the absolute path or URL that it is read from; None for arrays
    years: tuple[int, ...] = ()  # of the real dates; empty if there are only days of year
    form: str = "arrays"  # "folder", "cube", "Dataset" or "arrays": how a mend is said

    @property
    def height(self) -> int:
        return self.s2_bands.shape[1]

    @property
    def width(self) -> int:
        return self.s2_bands.shape[2]

    @property
    def dates(self) -> tuple[int, int, int]:
        """Dates of Sentinel-2, Sentinel-1 ascending, Sentinel-1 descending."""
        s1 = {orbit.index: len(orbit.doys) for orbit in self.orbits}
        return len(self.s2_doys), s1.get(0, 0), s1.get(1, 0)

    @property
    def crs(self) -> str | None:
        """E.g. "EPSG:32631"; TesseraError if roi.tiff has it and rasterio is not installed."""
        return self.georeference.get_crs()

    @property
    def transform(self) -> tuple[float, ...] | None:
        """(a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f at pixel corners."""
        return self.georeference.get_transform()

    @property
    def bytes_per_row(self) -> int:
        """Bytes of raw observations in one image row of all streams."""
        return sum(array.bytes_per_row for array in self._arrays)

    @property
    def _arrays(self) -> tuple[RowArray, ...]:
        return self.s2_bands, self.s2_masks, *(orbit.bands for orbit in self.orbits)

    def rows(self, start: int, stop: int) -> Observations:
        """Image rows ``start..stop`` as views in raw units; masks of other types are converted.

        Raises InputError for rows outside the tile and for converted masks with values beyond 0/1.
        """
        if not 0 <= start < stop <= self.height:
            raise InputError(f"{self.name}: expected rows in 0..{self.height}, got {start}..{stop}")
        masks = _as_uint8(self.s2_masks.rows(start, stop), self.masks_label, start)
        orbits = tuple(Orbit(o.index, o.bands.rows(start, stop), o.doys) for o in self.orbits)
        return Observations(self.s2_bands.rows(start, stop), masks, self.s2_doys, orbits)

    def _repr_html_(self) -> str:
        """What a notebook shows: of headers and days alone, as no pixel is read."""
        s2, ascending, descending = self.dates
        try:
            crs = self.crs or "unknown"
        except TesseraError as error:
            crs = f"unknown ({error})"
        when = self.year or "unknown"
        if self.period is not None:
            when = f"{self.period[0]} to {self.period[1]}"
        rows = [
            ("size", f"{self.height} x {self.width} pixels"),
            ("time", when),
            ("Sentinel-2", f"{s2} dates"),
            ("Sentinel-1", f"{ascending} ascending and {descending} descending dates"),
            ("CRS", crs),
            ("read from", self.where),
        ]
        return table(f"tile {self.name}", rows)

    def fingerprint(self) -> str:
        """Hash of shapes, dtypes, days and evenly spaced image rows of every array.

        The same for the same observations in a folder, a copy of it, a dict or a Dataset.
        """
        digest = hashlib.sha256()
        days = (self.s2_doys, self.s2_doys, *(orbit.doys for orbit in self.orbits))
        names = ("bands", "masks", *(ORBITS[orbit.index] for orbit in self.orbits))
        for name, array, doys in zip(names, self._arrays, days, strict=True):
            digest.update(json.dumps([name, array.shape, array.dtype.str]).encode())
            digest.update(doys.tobytes())
            dates, height = array.shape[:2]
            k = min(FINGERPRINT_LINES, dates * height)
            picks = np.unique(np.linspace(0, dates * height - 1, k).round().astype(np.int64))
            digest.update(array.lines(picks // height, picks % height).tobytes())
        return digest.hexdigest()


@checks_keywords()
def open_tile(
    source: Any,
    *,
    name: str | None = None,
    year: int | None = None,
    crs: str | int | None = None,
    transform: Sequence[float] | None = None,
    allow_missing_s1: bool = False,
    s1_units: str | None = None,
    s2_offset: str | int = "removed",
    period: Any = None,
) -> Tile:
    """Check a tile and return it, reading nothing but headers and days.

    ``source``: path of a folder in the official layout or of a Zarr or netCDF cube, a URL of such a
    folder or Zarr cube, a dict of arrays under the official names, an xarray.Dataset with named
    bands, or a Tile. ``crs`` and ``transform`` (a, b, c, d, e, f of the pixel corners) override
    what the source says. ``year`` says which year the tile is of. Where the source has real dates,
    those of this year are kept; without ``year`` it is the calendar year of the dates, else the
    only 19xx or 20xx number in the name of the folder or cube. A year that the dates contradict is
    refused. Every stream is put in the order of its dates.

    ``s1_units``: what Sentinel-1 is in, "official" (the int16 scale, the default), "db" or "power"
    (linear gamma0), if the source does not declare it. ``s2_offset``: "removed", "present" (1000
    is subtracted after 2022-01-25 where a value is at least 1000), or a number to subtract from
    every date. ``period`` keeps the dates of a year that need not be a calendar year: 2024, or the
    first and last day; the tile's year is then that of the first day.
    Raises InputError for whatever the model could not read as it was meant.
    """
    year = None if year is None else _whole(year)
    if isinstance(source, Tile):
        tile = _as_opened(source, s1_units, s2_offset, period, year)
    else:
        fields = read_source(source)
        found = settle(
            fields,
            year=year,
            period=period,
            s1_units=s1_units,
            s2_offset=s2_offset,
            allow_missing_s1=allow_missing_s1,
        )
        tile = Tile(
            name_of(source),
            found.bands,
            found.masks,
            found.doys,
            found.orbits,
            found.year,
            fields.georeference,
            fields.label("masks"),
            fields.where,
            found.period,
            source_path(source),
            found.years,
            fields.form,
        )
    georeference = Georeference(crs_name(crs), affine(transform))
    changes: dict[str, Any] = {"name": name, "year": year}
    changes = {key: value for key, value in changes.items() if value is not None}
    if georeference != UNKNOWN:
        changes["georeference"] = georeference.over(tile.georeference)
    return replace(tile, **changes) if changes else tile


# Keywords of `open_tile` that hold for many tiles.
OPENING = ("year", "crs", "transform", "allow_missing_s1", "s1_units", "s2_offset", "period")


def _whole(year: Any) -> int:
    try:
        return operator.index(year)
    except TypeError as error:
        raise InputError(f"year: expected a number such as 2024, got {shown(year)}") from error


def _as_opened(
    tile: Tile, s1_units: str | None, s2_offset: str | int, period: Any, year: int | None
) -> Tile:
    """A Tile is in official units and has the dates it was opened with."""
    known = (tile.period[0].year,) if tile.period else tile.years
    if year is not None and known and known != (year,):
        raise InputError(
            f"year: expected {' and '.join(map(str, known))}, of which the opened Tile is, got "
            f"{year}; open the tile from its source with this year, or with a period"
        )
    if s1_units not in (None, "official") or s2_offset not in ("removed", 0):
        raise InputError(
            "tile: expected s1_units and s2_offset where the tile is opened from its source, got "
            f"s1_units={s1_units!r}, s2_offset={s2_offset!r} with an opened Tile"
        )
    if period is None:
        return tile
    days = parse_period(period)
    if days != tile.period and calendar_year(days) != (tile.year if year is None else year):
        raise InputError(
            f"period: expected that of the opened Tile ({tile.period or tile.year}), got {days[0]} "
            f"to {days[1]}; open the tile from its source with this period"
        )
    return tile if days == tile.period else replace(tile, period=days, year=days[0].year)


def _as_uint8(masks: np.ndarray, label: str, first_row: int) -> np.ndarray:
    """``masks`` as uint8. Values of uint8 masks are left to the packer, which reads them all."""
    if masks.dtype == np.uint8:
        return masks
    if masks.dtype == np.bool_:
        return masks.view(np.uint8)
    bad = (masks != 0) & (masks != 1)
    if bad.any():
        t, y, x = np.unravel_index(int(bad.argmax()), masks.shape)
        raise InputError(
            f"{label}: expected 0 (cloud) or 1 (clear), got {masks[t, y, x]} at date {t}, row "
            f"{first_row + y}, column {x}; turn classes into a mask first"
        )
    return masks.astype(np.uint8)
