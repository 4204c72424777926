"""The arrays of a tile, read one band of rows at a time. Axes (T, H, W) or (T, H, W, C)."""

import math
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import InputError


class RowArray(Protocol):
    """An array on disk, in memory or behind xarray, that is never read whole."""

    shape: tuple[int, ...]
    dtype: np.dtype  # in native byte order

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Image rows ``start..stop`` of every date, (T, stop - start, W[, C]).

        Native byte order and C-contiguous in the last two axes; a view where the source is so.
        """

    def lines(self, dates: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The K image rows (dates[k], rows[k]) as (K, W[, C])."""


def packable(array: np.ndarray) -> np.ndarray:
    """``array`` as the packer reads it: a view if it can be, else a native row-major copy."""
    inner = array[(0,) * (array.ndim - 2)]
    if inner.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return np.asarray(array)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


class MemoryArray:
    """A numpy array that the caller holds."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype = array.dtype.newbyteorder("=")

    def rows(self, start: int, stop: int) -> np.ndarray:
        return packable(self._array[:, start:stop])

    def lines(self, dates: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._array[dates, rows].astype(self.dtype, copy=False)


class NpyArray:
    """A .npy file, of which every band is read anew.

    Mapping it would be as short, but what a map keeps resident is the kernel's choice: Linux 6.18
    maps whole folios of 2 MiB around every page touched, 130 MB for 3 MB of a 500 x 500 tile. And
    where a file shrinks or its disk fails, a read is an error, a map the end of the process.
    """

    def __init__(self, path: Path) -> None:
        array = map_npy(path)
        self.path = path
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype = array.dtype.newbyteorder("=")

    def rows(self, start: int, stop: int) -> np.ndarray:
        array = self._map()
        if not array.flags.c_contiguous:
            return packable(array[:, start:stop])
        firsts = np.arange(self.shape[0]) * self.shape[1] + start
        return packable(self._read(array, firsts, (stop - start, *self.shape[2:])))

    def lines(self, dates: np.ndarray, rows: np.ndarray) -> np.ndarray:
        array = self._map()
        if not array.flags.c_contiguous:
            return np.asarray(array[dates, rows]).astype(self.dtype, copy=False)
        found = self._read(array, dates * self.shape[1] + rows, self.shape[2:])
        return found.astype(self.dtype, copy=False)

    def _map(self) -> np.memmap:
        """Checked against what the tile was opened with; no page of it is touched yet."""
        array = map_npy(self.path)
        if array.shape != self.shape or array.dtype.newbyteorder("=") != self.dtype:
            raise InputError(
                f"{self.path}: expected {self.shape} {self.dtype} as when the tile was opened, got "
                f"{array.shape} {array.dtype}; open the tile again once the file is final"
            )
        return array

    def _read(self, array: np.memmap, firsts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(K, *shape): what begins at the image rows ``firsts``, counted over all dates."""
        out = np.empty((len(firsts), *shape), array.dtype)
        row = array.dtype.itemsize * math.prod(self.shape[2:])
        try:
            with self.path.open("rb") as file:
                for part, first in zip(out, firsts.tolist(), strict=True):
                    file.seek(array.offset + first * row)
                    if file.readinto(part.reshape(-1).view(np.uint8)) != part.nbytes:
                        raise InputError(
                            f"{self.path}: expected {self.shape} {self.dtype}, got a file that was "
                            "cut while it was read; copy or write the file again"
                        )
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error}); check the disk") from error
        return out


def map_npy(path: Path) -> np.memmap:
    """Map a .npy file read-only; InputError if it is truncated, pickled or not a .npy file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError) as error:
        reason = str(error).partition(". ")[0]  # numpy goes on to advise loading pickles
        raise InputError(
            f"{path}: expected a complete .npy file of plain numbers, got {path.stat().st_size} "
            f"bytes that cannot be read as one ({reason}); copy or write the file again"
        ) from error
    if not isinstance(array, np.memmap):
        array.close()
        raise InputError(f"{path}: expected one array as np.save writes it, got an .npz archive")
    return array
