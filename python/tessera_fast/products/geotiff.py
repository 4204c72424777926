"""GeoTIFF and COG files, written window by window and read back before they get their name."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import StoreError
from ..packages import require
from ..store.reader import Embeddings
from ..version import __version__
from .files import whole

_CACHE = 32 << 20  # bytes of GDAL's block cache: a block of 256 x 256 x 128 float32
_SIDE = 256  # pixels of a block of the file


@dataclass(frozen=True)
class Raster:
    """What a GeoTIFF is, but for its pixels."""

    crs: str
    transform: Sequence[float]  # (a, b, c, d, e, f)
    height: int
    width: int
    count: int  # bands
    dtype: str = "float32"
    nodata: float | None = math.nan
    names: Sequence[str] = ()  # of the bands
    tags: dict[str, str] = field(default_factory=dict)
    rgba: bool = False  # red, green, blue, alpha
    cog: bool = False
    colours: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # of uint8, uint16


class Write(Protocol):
    """Takes (bands, h, w) for the window that begins at row ``top`` and column ``left``."""

    def __call__(self, top: int, left: int, pixels: np.ndarray) -> None: ...


@contextmanager
def written(path: Path, raster: Raster, overwrite: bool) -> Iterator[Write]:
    """Yields what writes windows, each once; the file is at ``path`` after the block.

    Windows that are not written hold no data. The file is read back, because GDAL tells nobody of
    a block that the disk refused when the file was closed.
    """
    rasterio = require("rasterio", "writing a GeoTIFF")
    sums: dict[tuple[int, int, int, int], int] = {}
    with whole(path, overwrite) as partial, _environment(rasterio):
        plain = partial.with_name("plain.tif") if raster.cog else partial
        # A COG is copied from a file that is gone a moment later: quickly compressed.
        with rasterio.open(plain, "w", **_profile(rasterio, raster, 1 if raster.cog else 6)) as to:
            to.update_tags(**raster.tags)
            for band, name in enumerate(raster.names, 1):
                to.set_band_description(band, name)
            if raster.colours:
                shown = {code: (*rgb, 255) for code, rgb in raster.colours.items()}
                if raster.nodata is not None:
                    shown[int(raster.nodata)] = (0, 0, 0, 0)
                to.write_colormap(1, shown)

            def write(top: int, left: int, pixels: np.ndarray) -> None:
                window = (left, top, pixels.shape[2], pixels.shape[1])
                pixels = np.ascontiguousarray(pixels)
                sums[window] = zlib.crc32(pixels.data)
                to.write(pixels, window=rasterio.windows.Window(*window))

            yield write
        if raster.cog:
            _copy_as_cog(rasterio, plain, partial, raster)
            plain.unlink()
        with rasterio.open(partial) as back:
            for window, expected in sums.items():
                pixels = back.read(window=rasterio.windows.Window(*window))
                if zlib.crc32(np.ascontiguousarray(pixels).data) != expected:
                    raise OSError(f"pixels at {window} were read back otherwise than written")


def _environment(rasterio: Any) -> Any:
    # no .aux.xml files; blocks of the cache are written when it is full, so memory stays flat
    return rasterio.Env(GDAL_CACHEMAX=_CACHE, GDAL_PAM_ENABLED="NO")


def _profile(rasterio: Any, raster: Raster, level: int) -> dict[str, Any]:
    colours = {"photometric": "RGB", "alpha": "NON-PREMULTIPLIED"} if raster.rgba else {}
    return {
        "driver": "GTiff",
        "height": raster.height,
        "width": raster.width,
        "count": raster.count,
        "dtype": raster.dtype,
        "nodata": raster.nodata,
        "crs": raster.crs,
        "transform": rasterio.Affine(*raster.transform),
        "SPARSE_OK": True,
        **_layout(raster, level),
        **colours,
    }


def _layout(raster: Raster, level: int) -> dict[str, Any]:
    """Options of GDAL's driver; ``level``: of deflate."""
    # Band by band, so that a picture of three of 128 bands reads three, and a block is 256 KiB.
    return {
        "tiled": True,
        "blockxsize": _SIDE,
        "blockysize": _SIDE,
        "interleave": "pixel" if raster.rgba else "band",
        "compress": "deflate",
        "zlevel": level,
        "predictor": 3 if raster.dtype == "float32" else 2,
        "BIGTIFF": "IF_SAFER",
    }


def _copy_as_cog(rasterio: Any, plain: Path, path: Path, raster: Raster) -> None:
    """Add overviews to ``plain`` and copy it in the order of a COG: directories, then the overviews
    from the smallest on, then the pixels.

    Not GDAL's driver COG, which before GDAL 3.11 knows pixel by pixel alone: with 128 bands that
    takes three times as long and memory that grows with the file.
    """
    levels = [2**k for k in range(1, 32) if max(raster.height, raster.width) > _SIDE * 2 ** (k - 1)]
    # Codes cannot be averaged: they have scales of their own.
    how = (
        rasterio.enums.Resampling.nearest
        if raster.dtype == "int8"
        else (rasterio.enums.Resampling.average)
    )
    if levels:
        overviews = {"GDAL_TIFF_OVR_BLOCKSIZE": _SIDE, "SPARSE_OK_OVERVIEW": "ON"}
        with rasterio.Env(**overviews), rasterio.open(plain, "r+") as raw:
            raw.build_overviews(levels, how)
    require("rasterio.shutil", "writing a COG").copy(
        plain, path, driver="GTiff", COPY_SRC_OVERVIEWS=True, SPARSE_OK=True, **_layout(raster, 6)
    )


def tags(output: Embeddings, year: int | None) -> dict[str, str]:
    """What made the embeddings, as tags of a file. Never the name of a published data set."""
    p = output.provenance
    found: dict[str, Any] = {"TESSERA_YEAR": year}
    found["TESSERA_SOFTWARE"] = f"tessera_fast {__version__}"
    if p:
        state = "" if p["trained"] else ":untrained"
        found |= {
            "TESSERA_DATASET_VERSION": f"tessera_fast-{p['package_version']}",
            "TESSERA_DATASET_VARIANT": f"tessera_fast:{p['model']}{state}",
            "TESSERA_MODEL": p["model"],
            "TESSERA_WEIGHTS_SHA256": p["weights_sha256"],
            "TESSERA_PRECISION": p["precision"],
            "TESSERA_UNTRAINED": "NO" if p["trained"] else "YES",
            "TESSERA_PERIOD": p.get("period"),
        }
    elif "geoemb:model" in output.attributes:  # another program's store
        found["TESSERA_MODEL"] = output.attributes["geoemb:model"]
    return {k: str(v) for k, v in found.items() if v is not None}


def checked_bands(bands: Sequence[int] | None, dims: int) -> list[int]:
    """Indices of dimensions 0 .. E-1; StoreError if one is not there."""
    chosen = list(range(dims)) if bands is None else [int(b) for b in bands]
    if not chosen or any(not 0 <= b < dims for b in chosen):
        raise StoreError(f"bands: expected indices of dimensions 0..{dims - 1}, got {chosen}")
    return chosen


def band_names(bands: Sequence[int]) -> list[str]:
    return [f"embedding {b}" for b in bands]
