"""The arrays of a tile, read one band of rows at a time. Axes (T, H, W) or (T, H, W, C)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..untrusted.readers import (
    NpyHeader,
    Unreadable,
    npy_header_length,
    open_file,
    parse_npy_header,
)
from .npy import HEADER_BYTES, spans, unreadable

ALL = slice(None)
Picks = slice | np.ndarray  # of dates: a range with step 1, or positions

# Runs of a file nearer than this are read as one: 16 KiB more take as long as another read().
_GAP = 16 << 10
_SPAN = 4 << 20  # bytes read at once


class RowArray(ABC):
    """An array on disk, in memory, behind a URL or xarray, that is never read whole."""

    shape: tuple[int, ...]
    dtype: np.dtype  # in native byte order

    @abstractmethod
    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        """A window of some dates, (D, h, w[, C]); slices have step 1.

        Native byte order and C-contiguous in the last two axes; a view where the source is so.
        """

    @abstractmethod
    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        """The K image rows (dates[k], rows[k]) as (K, w[, C])."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Image rows ``start..stop`` of every date, (T, stop - start, W[, C])."""
        return self.read(ALL, slice(start, stop), ALL)

    @property
    def bytes_per_row(self) -> int:
        """Bytes that hold one image row of every date once it is read."""
        return self.dtype.itemsize * self.shape[0] * math.prod(self.shape[2:])


def packable(array: np.ndarray) -> np.ndarray:
    """``array`` as the packer reads it: a view if it can be, else a native row-major copy."""
    inner = array[(0,) * (array.ndim - 2)]
    if inner.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return np.asarray(array)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


class MemoryArray(RowArray):
    """A numpy array that the caller holds."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape = array.shape
        self.dtype = array.dtype.newbyteorder("=")

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        return packable(self._array[dates, rows, columns])

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        return self._array[dates, rows, columns].astype(self.dtype, copy=False)


class StoredArray(RowArray):
    """An array whose rows lie in a file in row-major order: what to read, without how."""

    where: object  # the file, for messages
    header: NpyHeader

    def _set(self, where: object, header: NpyHeader) -> None:
        self.where = where
        self.header = header
        self.shape = header.shape
        self.dtype = header.dtype.newbyteorder("=")

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        count, height, width = self.shape[:3]
        picks = np.arange(count)[dates]
        y0, y1, _ = rows.indices(height)
        x0, x1, _ = columns.indices(width)
        out = self._room(len(picks), y1 - y0, x1 - x0, *self.shape[3:])
        if x1 - x0 == width:
            starts = (picks * height + y0) * width
        else:
            starts = ((picks[:, None] * height + np.arange(y0, y1)) * width + x0).reshape(-1)
        self._fill(starts, out)
        return packable(out)

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        height, width = self.shape[1:3]
        x0, x1, _ = columns.indices(width)
        out = self._room(len(dates), x1 - x0, *self.shape[3:])
        self._fill((dates * height + rows) * width + x0, out)
        return out.astype(self.dtype, copy=False)

    def _room(self, *shape: int) -> np.ndarray:
        try:
            return np.empty(shape, self.header.dtype)
        except MemoryError as error:  # a file may claim any width and be a hole on the disk
            raise InputError(
                f"{self.where}: {self.shape} {self.dtype}, whose rows do not fit in memory "
                f"({error}); cut the tile into smaller ones"
            ) from error

    def _fill(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with equal runs that begin at ``pixels``, counted over rows and dates."""
        if out.size == 0:
            return
        step = self.header.dtype.itemsize * math.prod(self.shape[3:])
        runs = out.reshape(len(pixels), -1).view(np.uint8)
        self._fetch(pixels * step + self.header.offset, runs)

    @abstractmethod
    def _fetch(self, starts: np.ndarray, runs: np.ndarray) -> None:
        """Fill ``runs`` (K, n) uint8 with the n bytes of the file from each of ``starts`` (K,)."""

    def check_header(self, where: object, found: NpyHeader) -> None:
        """InputError if the file is not the one that was opened."""
        if found != self.header:
            raise InputError(
                f"{where}: expected {self.shape} {self.dtype} as when the tile was opened, got "
                f"{found.shape} {found.dtype.newbyteorder('=')}; open the tile again once the file "
                "is final"
            )

    def cut(self, where: object) -> InputError:
        """The error of a file that ends too early."""
        return InputError(
            f"{where}: expected {self.shape} {self.dtype}, got a file that was cut while it was "
            "read; copy or write the file again"
        )


class NpyArray(StoredArray):
    """A .npy file, of which every band is read anew.

    Mapping it would be as short, but what a map keeps resident is the kernel's choice: Linux 6.18
    maps whole folios of 2 MiB around every page touched, 130 MB for 3 MB of a 500 x 500 tile. And
    where a file shrinks or its disk fails, a read is an error, a map the end of the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file, header = self._open()
        except OSError as error:
            raise unreadable(path, 0, error) from error
        file.close()
        self._set(path, header)

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        if self.header.fortran:
            return packable(self._map()[dates, rows, columns])
        return super().read(dates, rows, columns)

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        if self.header.fortran:
            return np.asarray(self._map()[dates, rows, columns]).astype(self.dtype, copy=False)
        return super().lines(dates, rows, columns)

    def _open(self) -> tuple[BufferedReader, NpyHeader]:
        """The file and what it says; InputError if it is cut, pickled or not a .npy file."""
        size = 0
        try:
            file, size = open_file(self.path)
            try:
                start = file.read(HEADER_BYTES)
                if (missing := npy_header_length(start) - len(start)) > 0:
                    start += file.read(missing)
                header = parse_npy_header(start)
                if size < header.size:
                    raise Unreadable(f"{header.size} bytes are needed")
            except BaseException:
                file.close()
                raise
        except Unreadable as error:
            raise unreadable(self.path, size, error) from error
        return file, header

    def _map(self) -> np.ndarray:
        """A file in column-major order, whose rows lie nowhere together."""
        header = self.header
        try:
            file, found = self._open()
            with file:
                self.check_header(self.path, found)
                return np.memmap(file, header.dtype, "r", header.offset, header.shape, "F")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error}); check the disk") from error

    def _fetch(self, starts: np.ndarray, runs: np.ndarray) -> None:
        try:
            file, found = self._open()
            with file:
                self.check_header(self.path, found)
                for k0, k1, first, last in spans(starts, runs.shape[1], _GAP, _SPAN):
                    file.seek(first)
                    into = runs[k0:k1].reshape(-1)
                    joined = last - first == into.nbytes  # else with bytes that nobody asked for
                    data = into if joined else np.empty(last - first, np.uint8)
                    if file.readinto(data.data) != len(data):
                        raise self.cut(self.path)
                    if not joined:
                        scatter(data, starts[k0:k1] - first, runs[k0:k1])
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error}); check the disk") from error


def scatter(data: np.ndarray, starts: np.ndarray, runs: np.ndarray) -> None:
    """Copy what begins at ``starts`` (K,) of the bytes ``data`` to the rows of ``runs`` (K, n)."""
    length = runs.shape[1]
    for run, start in zip(runs, starts.tolist(), strict=True):
        run[:] = data[start : start + length]


class Part(RowArray):
    """Some dates, rows and columns of an array."""

    def __init__(
        self, source: RowArray, dates: Picks = ALL, rows: slice = ALL, columns: slice = ALL
    ) -> None:
        count, height, width = source.shape[:3]
        self._source = source
        self._dates = np.arange(count)[dates]
        self._rows = range(height)[rows]
        self._columns = range(width)[columns]
        sizes = len(self._dates), len(self._rows), len(self._columns)
        self.shape = (*sizes, *source.shape[3:])
        self.dtype = source.dtype

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        picks = _as_slice(self._dates[dates])
        return packable(self._source.read(picks, self._at(rows), self._across(columns)))

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        rows = rows + self._rows.start
        return self._source.lines(self._dates[dates], rows, self._across(columns))

    def _at(self, rows: slice) -> slice:
        found = self._rows[rows]
        return slice(found.start, found.stop)

    def _across(self, columns: slice) -> slice:
        found = self._columns[columns]
        return slice(found.start, found.stop)

    @property
    def bytes_per_row(self) -> int:
        whole = math.prod(self._source.shape[:1]) * self._source.shape[2]
        share = self.shape[0] * self.shape[2]
        return -(-self._source.bytes_per_row * share // max(1, whole))


def _as_slice(picks: np.ndarray) -> Picks:
    """A range where it is one: reading it gives a view, and one request of a cube."""
    if len(picks) and np.array_equal(picks, np.arange(picks[0], picks[0] + len(picks))):
        return slice(int(picks[0]), int(picks[0]) + len(picks))
    return picks


# Values of some dates (K, ...), and which dates they are (K,), to converted values.
Convert = Callable[[np.ndarray, np.ndarray], np.ndarray]
_AT_ONCE = 1 << 20  # values converted at once: bounds what a conversion takes beside its result


class Converted(RowArray):
    """An array whose values are converted as they are read."""

    def __init__(self, source: RowArray, dtype: np.dtype, convert: Convert) -> None:
        self._source = source
        self._convert = convert
        self.shape = source.shape
        self.dtype = dtype

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        values = self._source.read(dates, rows, columns)
        return self._converted(values, np.arange(self.shape[0])[dates])

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        return self._converted(self._source.lines(dates, rows, columns), dates)

    def _converted(self, values: np.ndarray, dates: np.ndarray) -> np.ndarray:
        out = np.empty(values.shape, self.dtype)
        step = max(1, _AT_ONCE // max(1, math.prod(values.shape[1:])))
        for k in range(0, len(values), step):
            out[k : k + step] = self._convert(values[k : k + step], dates[k : k + step])
        return out

    @property
    def bytes_per_row(self) -> int:
        return super().bytes_per_row + self._source.bytes_per_row
