"""Where a tile lies: its coordinate reference system and the affine transform of its pixels."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, TesseraError


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


def affine(transform: Sequence[float] | None) -> tuple[float, ...] | None:
    """Six floats of ``transform``, which may be a rasterio Affine (nine numbers)."""
    if transform is None:
        return None
    numbers = tuple(float(v) for v in transform)
    if len(numbers) not in (6, 9) or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"transform: expected six finite numbers (a, b, c, d, e, f), got {transform}"
        )
    return numbers[:6]


def crs_name(crs: Any) -> str | None:
    """``crs`` as text: an EPSG number, a string or a CRS object of pyproj or rasterio."""
    return f"EPSG:{crs}" if isinstance(crs, int) else None if crs is None else str(crs)


def read_roi(path: Path, shape: tuple[int, ...]) -> Georeference:
    """CRS and transform of roi.tiff, whose size must be ``shape`` (H, W).

    Without rasterio the tile still opens: embedding to an array needs no CRS.
    """
    try:
        import rasterio
    except ImportError:
        return Georeference(
            unreadable=f"{path}: reading the CRS needs rasterio; pip install 'tessera_fast[geo]', "
            "or pass crs= and transform="
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as roi:
                crs, transform, size = roi.crs, roi.transform, roi.shape
    except rasterio.errors.RasterioIOError as error:
        raise InputError(
            f"{path}: expected a GeoTIFF, got {error}; write it again or remove it"
        ) from error
    if size != tuple(shape):
        raise InputError(
            f"{path}: expected {tuple(shape)} pixels to match bands.npy, got {size}; "
            "the georeference belongs to other pixels"
        )
    code = crs.to_epsg() if crs else None
    name = f"EPSG:{code}" if code else crs.to_wkt() if crs else None
    return Georeference(name, None if transform.is_identity else tuple(transform)[:6])
