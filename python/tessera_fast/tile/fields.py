"""The named arrays of one source and every check that needs only shapes, dtypes and days."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from ..spec import MAX_DOY, S1_BANDS, S2_BANDS
from ..untrusted.suggest import closest
from .arrays import Part, RowArray
from .dates import FORMS, as_dates, days_of_year
from .georeference import UNKNOWN, Georeference
from .nodata import NoData

ORBITS = ("sar_ascending", "sar_descending")
DAYS = {"bands": "doys", **{orbit: f"{orbit}_doy" for orbit in ORBITS}}
ARRAYS = ("bands", "masks", "doys", *(name for o in ORBITS for name in (o, DAYS[o])))
SCL = "scl"  # Sentinel-2 scene classes (T, H, W), which may stand in for masks
_VERY_NEAR = 0.85  # an orbit may be absent, so a name has to be more alike to be warned of
_log = logging.getLogger("tessera_fast")
MAX_DATES = 65_535  # counts per pixel are uint16
BAND_DTYPES = ("uint16", "int16", "float32")


@dataclass(frozen=True)
class TileOrbit:
    """One Sentinel-1 orbit of a tile. ``index`` 0 ascending, 1 descending."""

    index: int
    bands: RowArray  # (T, H, W, 2) uint16, int16 or float32
    doys: np.ndarray  # (T,) int32


@dataclass
class Fields:
    """What a source holds under the official names; a missing array is left out."""

    where: str  # "folder x", "dict" or "Dataset", for messages
    arrays: dict[str, RowArray]
    days: dict[str, np.ndarray]
    form: str = "arrays"  # "folder", "cube", "Dataset" or "arrays"
    prefix: str = ""  # messages call an array prefix + name + suffix
    suffix: str = ""
    year: int | None = None  # that the source's name says
    georeference: Georeference = UNKNOWN
    # Stream ("bands", an orbit, or "masks" on a time axis of their own) -> a function that reads
    # its real dates (T,), of any type that `as_dates` takes.
    dates: dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)
    undated: dict[str, str] = field(default_factory=dict)  # stream -> what it has for dates
    s1_units: dict[str, str] = field(default_factory=dict)  # orbit -> what the source declares
    nodata: dict[str, NoData] = field(default_factory=dict)  # array -> what it declares to be none
    aliases: dict[str, str] = field(default_factory=dict)  # official name -> the source's
    others: tuple[str, ...] = ()  # names that the source has and that nothing is read from
    # those that were read
    _dates: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def label(self, name: str) -> str:
        """``name`` as the user knows it, e.g. "tiles/a/bands.npy"."""
        return f"{self.prefix}{self.aliases.get(name, name)}{self.suffix}"

    @property
    def streams(self) -> list[str]:
        """Those of "bands" and the orbits that have images."""
        return [
            name for name in DAYS if name in self.arrays and self.arrays[name].shape[:1] != (0,)
        ]

    def real_dates(self, stream: str) -> np.ndarray | None:
        """Dates of ``stream``, (T,) datetime64 in UTC, or None if the source has days only."""
        if stream not in self.dates:
            return None
        if stream not in self._dates:
            count = self.arrays[stream].shape[:1]
            expected = f"{self.label(stream)}: expected its dates to be {count} {FORMS}"
            values = self.dates[stream]()
            try:
                dates = as_dates(values)
            except ValueError as error:
                raise InputError(f"{expected}, got {error}; correct or drop them") from error
            if dates.shape != count:
                raise InputError(
                    f"{expected}, got {dates.shape} {values.dtype}; give one date for each image"
                )
            self._dates[stream] = dates
        return self._dates[stream]

    def fill_days(self) -> None:
        """Days of year from the real dates; InputError if the source has others of its own."""
        for stream in self.streams:
            dates = self.real_dates(stream)
            if dates is None:
                continue
            found, given = days_of_year(dates), self.days.get(DAYS[stream])
            if given is not None and given.shape == found.shape and given.dtype.kind in "iuf":
                wrong = np.flatnonzero(given != found)
                if wrong.size:
                    k = int(wrong[0])
                    raise InputError(
                        f"{self.label(DAYS[stream])}: expected the days of year of the dates, got "
                        f"{given[k]} for {dates[k].astype('M8[D]')} at index {k} ({wrong.size} of "
                        f"{len(found)} differ); correct one of them"
                    )
            if given is None:
                self.days[DAYS[stream]] = found

    def pick(self, stream: str, picks: np.ndarray) -> None:
        """Keep the dates ``picks`` of a stream, in this order; the masks go with the bands."""
        for name in (stream, "masks") if stream == "bands" else (stream,):
            self.arrays[name] = Part(self.arrays[name], picks)
        self.days[DAYS[stream]] = self.days[DAYS[stream]][picks]
        if stream in self._dates:
            self._dates[stream] = self._dates[stream][picks]

    def checked_s2(self) -> tuple[RowArray, RowArray, np.ndarray]:
        """Bands, masks and days (T,) int32 of Sentinel-2; InputError if they are not usable."""
        bands = self._required("bands", "the Sentinel-2 digital numbers (T, H, W, 10)")
        masks = self._required(
            "masks",
            "1 = clear, 0 = cloud (T, H, W); an all-ones array declares all clear, and "
            f"{SCL}{self.suffix} (scene classes) can stand in for it",
        )
        self._check_bands("bands", bands, S2_BANDS)
        if 0 in bands.shape:
            raise InputError(
                f"{self.label('bands')}: expected at least one date, row and column, got "
                f"{bands.shape}; nothing to embed"
            )
        if masks.shape != bands.shape[:3]:
            raise InputError(
                f"{self.label('masks')}: expected {bands.shape[:3]} uint8 to match "
                f"bands{self.suffix}, got {masks.shape}; one mask per date and pixel, 1 = clear"
            )
        if masks.dtype.kind not in "biu":
            raise InputError(
                f"{self.label('masks')}: expected uint8, bool or another integer type of 0 and 1, "
                f"got {masks.dtype}; cast it, e.g. (masks == 1).astype(np.uint8), so that NaN is "
                "not clear"
            )
        _check_dates(self.label("bands"), bands.shape[0])
        return bands, masks, self._checked_days("bands", bands.shape[0])

    def checked_orbits(self, bands: RowArray) -> tuple[TileOrbit, ...]:
        """The orbits that are there, for the pixels of ``bands``; InputError if not usable."""
        orbits = []
        for index, name in enumerate(ORBITS):
            if self._is_absent(name):
                continue
            sar = self._required(name, "Sentinel-1 backscatter (T, H, W, 2)")
            self._check_bands(name, sar, S1_BANDS)
            if sar.shape[1:3] != bands.shape[1:3]:
                expected = (sar.shape[0], *bands.shape[1:3], len(S1_BANDS))
                raise InputError(
                    f"{self.label(name)}: expected {expected} to match bands{self.suffix}, got "
                    f"{sar.shape}; crop or resample to the same pixels"
                )
            orbits.append(TileOrbit(index, sar, self._checked_days(name, sar.shape[0])))
        dtypes = [orbit.bands.dtype for orbit in orbits]
        if len(set(dtypes)) > 1:
            raise InputError(
                f"{self.label(ORBITS[1])}: expected {dtypes[0]} to match {ORBITS[0]}{self.suffix}, "
                f"got {dtypes[1]}; cast one of them"
            )
        _check_dates(
            f"{self.label(ORBITS[0])} and {ORBITS[1]}{self.suffix}",
            sum(len(orbit.doys) for orbit in orbits),
        )
        return tuple(orbits)

    def no_sentinel1(self) -> InputError:
        """The error of a tile without an orbit, where that was not allowed."""
        return InputError(
            f"{self.label(ORBITS[0])}, {ORBITS[1]}{self.suffix}: expected at least one "
            f"Sentinel-1 orbit, got none in the {self.where}; to embed from Sentinel-2 alone "
            "pass allow_missing_s1=True (--allow-missing-s1)"
            f"{self._near(ORBITS[0]) or self._near(ORBITS[1])}"
        )

    def _required(self, name: str, meaning: str) -> RowArray:
        if name not in self.arrays:
            raise InputError(
                f"{self.label(name)}: missing in the {self.where}; needed: {meaning}"
                f"{self._near(name)}"
            )
        return self.arrays[name]

    def _near(self, name: str, cutoff: float = 0.6) -> str:
        """The name that may be meant for the one that is missing, as the end of a message."""
        near = closest(f"{name}{self.suffix}", self.others, cutoff)
        return near and f".{near}"

    def _check_bands(self, name: str, array: RowArray, bands: Sequence[str]) -> None:
        if len(array.shape) != 4 or array.shape[3] != len(bands):
            raise InputError(
                f"{self.label(name)}: expected (T, H, W, {len(bands)}), got {array.shape}; the "
                f"last axis holds {' '.join(bands)}"
            )
        if array.dtype.name not in BAND_DTYPES:
            raise InputError(
                f"{self.label(name)}: expected {', '.join(BAND_DTYPES)} in raw units, got "
                f"{array.dtype}; cast it to one of these"
            )

    def _checked_days(self, of: str, dates: int) -> np.ndarray:
        """Days of year of the array ``of`` as (T,) int32."""
        label = self.label(DAYS[of])
        if DAYS[of] not in self.days:
            got = f", got {self.undated[of]}" if of in self.undated else ""
            raise InputError(
                f"{label}: missing in the {self.where}; needed: days of year (T,), or dates "
                f"({FORMS}){got}{self._near(DAYS[of])}"
            )
        days = self.days[DAYS[of]]
        if days.shape != (dates,):
            raise InputError(
                f"{label}: expected ({dates},) to match {of}{self.suffix}, got {days.shape}; one "
                "day of year per date"
            )
        if days.dtype.kind not in "iuf":
            raise InputError(
                f"{label}: expected integers, got {days.dtype}; give days of year 1..{MAX_DOY}"
            )
        bad = np.flatnonzero(~((days >= 1) & (days <= MAX_DOY) & (days == np.floor(days))))
        if bad.size:
            raise InputError(
                f"{label}: expected whole days of year in 1..{MAX_DOY}, got {days[bad[0]]} at "
                f"index {bad[0]}; correct or drop {bad.size} of {dates} dates"
            )
        return days.astype(np.int32)

    def _is_absent(self, orbit: str) -> bool:
        days = DAYS[orbit]
        empty = {
            orbit: orbit not in self.arrays or self.arrays[orbit].shape[:1] == (0,),
            days: days not in self.days or self.days[days].shape == (0,),
        }
        if empty[orbit] != empty[days]:
            have, lack = (days, orbit) if empty[orbit] else (orbit, days)
            raise InputError(
                f"{self.label(lack)}: missing or empty in the {self.where} although "
                f"{have}{self.suffix} is there; give both, or neither for an absent orbit"
                f"{self._near(lack)}"
            )
        return empty[orbit]

    def warn_of_orbits(self) -> None:
        """Log a warning for an orbit that is absent where the source has a name much like it."""
        for orbit in ORBITS:
            near = "" if orbit in self.arrays else self._near(orbit, _VERY_NEAR)
            if near:
                _log.warning("%s: not in the %s%s", self.label(orbit), self.where, near)


def _check_dates(label: str, dates: int) -> None:
    if dates > MAX_DATES:
        raise InputError(f"{label}: expected at most {MAX_DATES} dates, got {dates}; drop some")
