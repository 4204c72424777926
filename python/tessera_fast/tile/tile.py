"""One tile: a year of Sentinel-1 and Sentinel-2 over H x W pixels, checked once, read by rows.

The official layout is a folder of bands.npy, masks.npy, doys.npy, sar_ascending.npy,
sar_ascending_doy.npy, sar_descending.npy, sar_descending_doy.npy and roi.tiff. T dates, C bands.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..packing import Observations, Orbit
from .arrays import MemoryArray, NpyArray, RowArray, map_npy
from .fields import ARRAYS, DAYS, ORBITS, Fields, TileOrbit
from .georeference import UNKNOWN, Georeference, affine, crs_name, read_roi

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
        return sum(a.dtype.itemsize * a.shape[0] * int(np.prod(a.shape[2:])) for a in self._arrays)

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


def open_tile(
    source: Any,
    *,
    name: str | None = None,
    year: int | None = None,
    crs: str | int | None = None,
    transform: Sequence[float] | None = None,
    allow_missing_s1: bool = False,
) -> Tile:
    """Check a tile and return it, reading nothing but headers and days.

    ``source``: path of a folder in the official layout, a dict of arrays under the official names,
    an xarray.Dataset with named bands, or a Tile. ``year``, ``crs`` and ``transform`` (a, b, c, d,
    e, f of the pixel corners) override what the source says; the year is otherwise the only
    19xx or 20xx number in the folder's name, or the calendar year of the Dataset's dates.
    Raises InputError for whatever the model could not read as it was meant.
    """
    if isinstance(source, Tile):
        tile = source
    else:
        fields = _read(source)
        bands, masks, doys = fields.checked_s2()
        orbits = fields.checked_orbits(bands, allow_missing_s1)
        tile = Tile(
            Path(source).resolve().name if isinstance(source, str | PathLike) else "tile",
            bands, masks, doys, orbits, fields.year, fields.georeference, fields.label("masks"),
            fields.where,
        )  # fmt: skip
    georeference = Georeference(crs_name(crs), affine(transform))
    changes: dict[str, Any] = {"name": name, "year": year}
    changes = {key: value for key, value in changes.items() if value is not None}
    if georeference != UNKNOWN:
        changes["georeference"] = georeference.over(tile.georeference)
    return replace(tile, **changes) if changes else tile


def year_in(name: str) -> int | None:
    """The only 19xx or 20xx number in ``name``, or None."""
    found = re.findall(r"(?<!\d)(?:19|20)\d\d(?!\d)", name)
    return int(found[0]) if len(found) == 1 else None


def _read(source: Any) -> Fields:
    if isinstance(source, str | PathLike):
        return _read_folder(Path(source))
    # xarray is heavy, and whoever holds a Dataset has imported it: its name is enough to tell.
    if type(source).__module__.partition(".")[0] == "xarray":
        from .dataset import read_dataset

        return read_dataset(source)
    if isinstance(source, Mapping):
        return _read_mapping(source)
    raise InputError(
        "tile: expected a folder, a dict of arrays, an xarray.Dataset or a Tile, got "
        f"{type(source).__name__}"
    )


def _read_folder(folder: Path) -> Fields:
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing there"
        raise InputError(f"{folder}: expected a folder with bands.npy, masks.npy, ..., got {got}")
    fields = Fields(f"folder {folder}", {}, {}, prefix=f"{folder}/", suffix=".npy")
    fields.year = year_in(folder.resolve().name)
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        if not path.exists():
            continue
        if name in DAYS.values():
            fields.days[name] = np.array(map_npy(path))
        else:
            fields.arrays[name] = NpyArray(path)
    roi = folder / "roi.tiff"
    shape = fields.arrays["bands"].shape if "bands" in fields.arrays else ()
    if roi.exists() and len(shape) == 4 and 0 not in shape:  # others are refused for their shape
        fields.georeference = read_roi(roi, shape[1:3])
    return fields


def _read_mapping(arrays: Mapping[str, Any]) -> Fields:
    unknown = sorted(str(key) for key in arrays if key not in ARRAYS)
    if unknown:
        raise InputError(f"dict: expected keys among {', '.join(ARRAYS)}, got {', '.join(unknown)}")
    given = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
    return Fields(
        "dict",
        {name: MemoryArray(a) for name, a in given.items() if name not in DAYS.values()},
        {name: a for name, a in given.items() if name in DAYS.values()},
    )


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
