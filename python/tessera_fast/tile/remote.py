"""A tile behind a URL that fsspec reads: a folder in the official layout, or a Zarr cube.

Files are read by byte ranges, those of a band together. Credentials and other options are those of
fsspec's own configuration.
"""

import functools
import itertools
from typing import Any

import numpy as np

from ..errors import InputError
from ..packages import require
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import Unreadable, named, npy_header_length, parse_npy_header
from .arrays import StoredArray, scatter
from .cube import NETCDF, read_cube
from .fields import ARRAYS, DAYS, SCL, Fields
from .folder import DATES, ONE_ORBIT, ZARR_MARKERS, dates_files, year_in
from .georeference import read_roi
from .npy import HEADER_BYTES, SMALL_BYTES, parse_array, spans, unreadable

# Runs nearer than this are one request: at 10 MB/s and more, 64 KiB take less than its round trip.
_GAP = 64 << 10
_SPAN = 8 << 20  # bytes of a request
_AT_ONCE = 64 << 20  # bytes asked for together


DATES_FILES = tuple(f"{name}.npy" for name in (*itertools.chain(*DATES.values()), ONE_ORBIT))
LARGE = tuple(name for name in (*ARRAYS, SCL) if name not in DAYS.values())  # read by ranges
_ROI_BYTES = 64 << 20
# Read whole, and the most bytes of each.
SMALL = dict.fromkeys((*(f"{name}.npy" for name in DAYS.values()), *DATES_FILES), SMALL_BYTES)
SMALL["roi.tiff"] = _ROI_BYTES


def is_url(source: object) -> bool:
    """Whether ``source`` is text such as "s3://bucket/tiles/a_2024"."""
    return isinstance(source, str) and "://" in source


class RemoteNpyArray(StoredArray):
    """A .npy file behind a URL, of which every band is asked for anew, with its header."""

    def __init__(self, files: "Files", name: str, start: bytes) -> None:
        """``start`` holds the first HEADER_BYTES of the file, or all of it."""
        self._files = files
        self._name = name
        where = f"{files.url}/{name}"
        try:
            missing = npy_header_length(start) > len(start)
            if missing:
                start = files.ranges([(name, 0, npy_header_length(start))])[0]
            header = parse_npy_header(start)
        except Unreadable as error:
            raise unreadable(where, len(start), error) from error
        if header.fortran:
            raise InputError(
                f"{where}: expected row-major order behind a URL, got column-major (Fortran) "
                "order; save np.ascontiguousarray(array)"
            )
        self._set(where, header)

    def _fetch(self, starts: np.ndarray, runs: np.ndarray) -> None:
        waiting: list[tuple[int, int, int, int]] = []
        size = 0
        for span in spans(starts, runs.shape[1], _GAP, _SPAN):
            waiting.append(span)
            size += span[3] - span[2]
            if size >= _AT_ONCE:
                self._fill_runs(waiting, starts, runs)
                waiting, size = [], 0
        self._fill_runs(waiting, starts, runs)

    def _fill_runs(
        self, waiting: list[tuple[int, int, int, int]], starts: np.ndarray, runs: np.ndarray
    ) -> None:
        if not waiting:
            return
        ranges = [(self._name, 0, self.header.offset), *((self._name, *s[2:]) for s in waiting)]
        head, *found = self._files.ranges(ranges)
        try:
            self.check_header(self.where, parse_npy_header(head))
        except Unreadable as error:
            raise unreadable(self.where, len(head), error) from error
        for (k0, k1, first, last), data in zip(waiting, found, strict=True):
            if len(data) != last - first:
                raise self.cut(self.where)
            scatter(np.frombuffer(data, np.uint8), starts[k0:k1] - first, runs[k0:k1])

    @property
    def bytes_per_row(self) -> int:
        return 2 * super().bytes_per_row  # as it came, and as an array


def _absent(name: str) -> tuple[type[OSError], ...]:
    """Errors that say that a file is not there. A store that may not be listed denies what it does
    not have: taken for absence only of files that most tiles lack."""
    if name in DATES_FILES or name in (f"{SCL}.npy", *ZARR_MARKERS):
        return FileNotFoundError, PermissionError
    return (FileNotFoundError,)


class Files:
    """The files of one folder behind a URL."""

    def __init__(self, url: str) -> None:
        fsspec = require("fsspec", f"{url}: reading a URL", InputError)
        self.url = url.rstrip("/")
        try:
            self._system, path = fsspec.core.url_to_fs(self.url)
        except damaged() as error:  # a protocol that needs a package or settings, or is none
            raise InputError(
                f"{named(url)}: fsspec cannot open it ({first_line(error)}); check the address, or "
                "install what its protocol needs, such as s3fs, gcsfs, adlfs or aiohttp"
            ) from error
        self._path = path.rstrip("/")

    def find(self, ranges: list[tuple[str, int, int | None]]) -> list[bytes | None]:
        """The bytes [start, stop) of files, asked for together; None for a file that is absent."""
        names, starts, stops = zip(*ranges, strict=True)
        try:
            found: list[Any] = self._system.cat_ranges(
                [f"{self._path}/{name}" for name in names],
                list(starts),
                list(stops),
                on_error="return",
            )
        except damaged() as error:  # of what is below the file system, such as a cache or archive
            raise InputError(
                f"{self.url}: cannot be read ({first_line(error)}); check the address, the network "
                "and the rights"
            ) from error
        for (name, start, stop), data in zip(ranges, found, strict=True):
            if isinstance(data, bytes) and stop is not None and len(data) > stop - start:
                raise InputError(
                    f"{self.url}/{name}: expected {stop - start} bytes of it, got {len(data)}; its "
                    "server must answer requests for byte ranges"
                )
            if isinstance(data, BaseException) and not isinstance(data, _absent(name)):
                raise InputError(
                    f"{self.url}/{name}: cannot be read ({type(data).__name__}: {data}); check the "
                    "address, the network and the rights"
                ) from data
        return [None if isinstance(data, BaseException) else data for data in found]

    def ranges(self, ranges: list[tuple[str, int, int]]) -> list[bytes]:
        """As `find`, of files that are there."""
        found = self.find(list(ranges))
        for (name, _, _), data in zip(ranges, found, strict=True):
            if data is None:
                raise InputError(f"{self.url}/{name}: was there and is gone; open the tile again")
        return [data for data in found if data is not None]

    def parsed(self, name: str, data: bytes) -> np.ndarray:
        """The array of the whole file ``name``."""
        try:
            return parse_array(data)
        except Unreadable as error:
            raise unreadable(f"{self.url}/{name}", len(data), error) from error


def read_url(url: str) -> Fields:
    """The arrays, days, year and georeference behind ``url``; InputError if they cannot be read."""
    address = url.rstrip("/")
    if address.endswith(NETCDF):
        raise InputError(
            f"{url}: expected a Zarr cube or a folder of .npy files behind a URL, got netCDF; "
            "copy the file here, or write it as Zarr"
        )
    if address.endswith(".zarr"):
        Files(url)  # says what is missing if fsspec or the protocol's package is
        return read_cube(address)
    files = Files(url)
    wanted: list[tuple[str, int, int | None]] = [(f"{name}.npy", 0, HEADER_BYTES) for name in LARGE]
    wanted += [(name, 0, most + 1) for name, most in SMALL.items()]
    found = {w[0]: data for w, data in zip(wanted, files.find(wanted), strict=True) if data}
    for name, most in SMALL.items():
        if len(found.get(name, b"")) > most:
            raise InputError(f"{files.url}/{name}: expected at most {most} bytes, got more")
    if "bands.npy" in found:
        return _read_folder(files, found)
    if any(files.find([(name, 0, 1) for name in ZARR_MARKERS])):
        return read_cube(address)
    raise InputError(
        f"{url}: expected a folder with bands.npy, masks.npy, ... or a Zarr cube, got neither"
    )


def _read_folder(files: Files, found: dict[str, bytes]) -> Fields:
    where = f"folder {files.url}"
    fields = Fields(where, {}, {}, form="folder", prefix=f"{files.url}/", suffix=".npy")
    fields.year = year_in(files.url.rpartition("/")[2])
    arrays = {
        name: RemoteNpyArray(files, f"{name}.npy", found[f"{name}.npy"])
        for name in LARGE
        if f"{name}.npy" in found
    }
    sizes = {f"{name}.npy": array.header.size for name, array in arrays.items()}
    ends = files.find([(name, size - 1, size) for name, size in sizes.items()])
    for (name, size), last in zip(sizes.items(), ends, strict=True):
        if not last:
            raise unreadable(f"{files.url}/{name}", 0, Unreadable(f"{size} bytes are needed"))
    fields.arrays = dict(arrays)
    for name in DAYS.values():
        if f"{name}.npy" in found:
            fields.days[name] = files.parsed(f"{name}.npy", found[f"{name}.npy"])
    for stream, file in dates_files(set(found)).items():
        fields.dates[stream] = functools.partial(files.parsed, file, found[file])
    shape = arrays["bands"].shape
    if "roi.tiff" in found and len(shape) == 4 and 0 not in shape:
        fields.georeference = read_roi(f"{files.url}/roi.tiff", shape[1:3], data=found["roi.tiff"])
    return fields
