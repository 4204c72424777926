"""A tile as a folder in the official layout: one .npy file per array, and roi.tiff."""

import functools
import os
import re
from pathlib import Path

import numpy as np

from ..untrusted.readers import Unreadable, read_bytes
from .arrays import NpyArray
from .fields import ARRAYS, DAYS, ORBITS, SCL, Fields
from .georeference import read_roi
from .npy import SMALL_BYTES, parse_array, unreadable

ZARR_MARKERS = ("zarr.json", ".zgroup", ".zmetadata")
# Optional files with the real dates of a stream, datetime64. The first that is there counts.
DATES = {
    "bands": ("s2_datetime",),
    "sar_ascending": ("sar_ascending_datetime", "s1_ascending_datetime"),
    "sar_descending": ("sar_descending_datetime", "s1_descending_datetime"),
}
ONE_ORBIT = "s1_datetime"  # of the orbit, where only one is there


def year_in(name: str) -> int | None:
    """The only 19xx or 20xx number in ``name``, or None.

    None too for names of the official preprocessing, which are four pixel numbers.
    """
    if re.fullmatch(r"\d+(?:_\d+){3}", name):
        return None
    found = re.findall(r"(?<!\d)(?:19|20)\d\d(?!\d)", name)
    return int(found[0]) if len(found) == 1 else None


def given_name(path: Path) -> str:
    """The last name of ``path`` as it was given: that of a link, not of what the link leads to.

    "." and ".." are no names of their own: they stand for the real name of the folder.
    """
    return path.name if path.name not in ("", "..") else Path(os.path.realpath(path)).name


def is_cube(name: str, names: set[str]) -> bool:
    """Whether a folder called ``name`` that holds ``names`` is a Zarr store."""
    return name.endswith(".zarr") or not names.isdisjoint(ZARR_MARKERS)


def dates_files(names: set[str]) -> dict[str, str]:
    """Stream -> the file of its dates, of those among ``names``."""
    found = {
        stream: name
        for stream, stems in DATES.items()
        for name in [next((f"{s}.npy" for s in stems if f"{s}.npy" in names), None)]
        if name
    }
    orbits = [orbit for orbit in ORBITS if f"{orbit}.npy" in names]
    if len(orbits) == 1 and f"{ONE_ORBIT}.npy" in names:
        found.setdefault(orbits[0], f"{ONE_ORBIT}.npy")
    return found


def read_folder(folder: Path, names: set[str]) -> Fields:
    """The arrays, days, year and georeference of a folder that holds the files ``names``."""
    fields = Fields(f"folder {folder}", {}, {}, form="folder", prefix=f"{folder}/", suffix=".npy")
    fields.year = year_in(given_name(folder))
    fields.others = tuple(sorted(names - {f"{name}.npy" for name in (*ARRAYS, SCL)}))
    for name in (*ARRAYS, SCL):
        file = f"{name}.npy"
        if file not in names:
            continue
        if name in DAYS.values():
            fields.days[name] = _read_array(folder / file)
        else:
            fields.arrays[name] = NpyArray(folder / file)
    for stream, file in dates_files(names).items():
        fields.dates[stream] = functools.partial(_read_array, folder / file)
    shape = fields.arrays["bands"].shape if "bands" in fields.arrays else ()
    if "roi.tiff" in names and len(shape) == 4 and 0 not in shape:  # others are refused for it
        fields.georeference = read_roi(
            folder / "roi.tiff", shape[1:3], beside="roi.tiff.aux.xml" in names
        )
    return fields


def names_in(folder: str | os.PathLike[str]) -> set[str]:
    """Names of what a folder holds."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _read_array(path: Path) -> np.ndarray:
    """A small array, whole."""
    data = b""
    try:
        data = read_bytes(path, SMALL_BYTES)
        return parse_array(data)
    except (Unreadable, OSError) as error:
        raise unreadable(path, len(data), error) from error
