"""Where a tile lies: its coordinate reference system and the affine transform of its pixels."""

import contextlib
import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, TesseraError
from ..packages import why_not
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import Unreadable, read_start, shown
from .geotiff import START_BYTES, read_plain


@dataclass(frozen=True)
class Georeference:
    """``transform`` (a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f.

    Columns and rows count from the outer corner of the first pixel, as in rasterio.
    """

    crs: str | None = None
    transform: tuple[float, ...] | None = None
    unreadable: str | None = None  # why what is there could not be read

    def get_crs(self) -> str | None:
        """The CRS, None if the source has none; TesseraError if it could not be read."""
        if self.crs is None and self.unreadable:
            raise TesseraError(self.unreadable)
        return self.crs

    def get_transform(self) -> tuple[float, ...] | None:
        """The transform, None if the source has none; TesseraError if it could not be read."""
        if self.transform is None and self.unreadable:
            raise TesseraError(self.unreadable)
        return self.transform

    def over(self, other: "Georeference") -> "Georeference":
        """Self, with what it lacks taken from ``other``."""
        return Georeference(
            other.crs if self.crs is None else self.crs,
            other.transform if self.transform is None else self.transform,
            other.unreadable,
        )


UNKNOWN = Georeference()


def affine(transform: Sequence[Any] | None) -> tuple[float, ...] | None:
    """Six floats of ``transform``, which may be a rasterio Affine (nine numbers)."""
    if transform is None:
        return None
    try:
        numbers = tuple(float(v) for v in transform)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) not in (6, 9) or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"transform: expected six finite numbers (a, b, c, d, e, f), got {shown(transform)}"
        )
    return numbers[:6]


def crs_name(crs: Any) -> str | None:
    """``crs`` as text: an EPSG number, a string or a CRS object of pyproj or rasterio."""
    return f"EPSG:{crs}" if isinstance(crs, int) else None if crs is None else str(crs)


@functools.lru_cache(maxsize=64)
def check_crs(text: str) -> None:
    """InputError unless ``text`` is a CRS that pyproj reads."""
    from pyproj import CRS

    try:
        CRS.from_user_input(text)
    except damaged() as error:
        raise InputError(
            f"crs: expected one that pyproj reads, such as EPSG:32631, got {shown(text)} "
            f"({first_line(error)})"
        ) from error


def read_roi(
    path: Path | str, shape: tuple[int, ...], *, data: bytes | None = None, beside: bool = False
) -> Georeference:
    """CRS and transform of roi.tiff, whose size must be ``shape`` (H, W).

    ``data`` is its content if ``path`` is a URL; ``beside`` says that GDAL finds an .aux.xml beside
    it. Without rasterio the tile still opens: embedding to an array needs no CRS.
    """
    size: tuple[int, ...]
    plain = None if beside else read_plain(_beginning(path) if data is None else data)
    if plain is not None:
        size, found = plain.shape, Georeference(f"EPSG:{plain.epsg}", plain.transform)
    else:
        try:
            size, found = _read_any(path, data)
        except ImportError as error:
            needed = why_not("rasterio", error)
            return Georeference(
                unreadable=f"{path}: reading the CRS needs {needed}, or pass crs= and transform="
            )
    if size != tuple(shape):
        raise InputError(
            f"{path}: expected {tuple(shape)} pixels to match bands.npy, got {size}; "
            "the georeference belongs to other pixels"
        )
    return found


def _beginning(path: Path | str) -> bytes:
    try:
        return read_start(path, START_BYTES)
    except (OSError, Unreadable) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the disk") from error


def _read_any(path: Path | str, data: bytes | None) -> tuple[tuple[int, ...], Georeference]:
    """Size and georeference of a GeoTIFF that rasterio opens."""
    import rasterio

    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")  # of georeferences that are not there, or damaged
            source = path if data is None else stack.enter_context(rasterio.MemoryFile(data))
            # No other format: some are lists of further files and addresses.
            roi = stack.enter_context(rasterio.open(source, driver="GTiff"))
            crs, transform, size = roi.crs, roi.transform, roi.shape
            code = crs.to_epsg() if crs else None
            name = f"EPSG:{code}" if code else crs.to_wkt() if crs else None
    except damaged() as error:
        raise InputError(
            f"{path}: expected a GeoTIFF, got {first_line(error)}; write it again or remove it"
        ) from error
    found = Georeference(name, None if transform.is_identity else affine(transform))
    return size, found
