"""Maps of where two outputs differ: a picture of each layer, and a GeoTIFF where it has a place."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing.quicklook import side_by_side, write_png
from ..errors import StoreError
from ..packages import has, require
from .pairs import Pair

_LEAST = 0.5  # decades that the colours span: about equal values look about equal
LONGEST = 1600  # pixels of a picture's longer side; a larger layer shows the worst of each block
# Dark blue to yellow, in steps of about equal lightness: worse is brighter.
_RAMP = np.array(
    [
        (38, 20, 84),
        (84, 20, 112),
        (140, 35, 104),
        (190, 55, 82),
        (228, 97, 50),
        (250, 160, 30),
        (250, 225, 80),
    ]
)
_SAME, _ALONE = (222, 228, 232), (0, 170, 90)  # every bit the same; data on one side alone


class Maps:
    """The sink of `compare.stream` that draws; ``files`` is what it wrote."""

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self._folder = folder
        self._tiff: _GeoTiff | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: no folder for maps can be made there ({error})") from error

    def close(self) -> None:
        """Remove what was begun and not ended."""
        if self._tiff is not None:
            self._tiff.discard()

    def begin(self, pair: Pair, windows: list[tuple[slice, slice]]) -> None:
        self._pair = pair
        self._name = pair.name.replace("/", "_")
        self._top, self._left = (min((w[k].start for w in windows), default=0) for k in (0, 1))
        bottom, right = (max((w[k].stop for w in windows), default=0) for k in (0, 1))
        size = (bottom - self._top, right - self._left)
        self._block = max(1, math.ceil(max(size) / LONGEST))
        shape = [math.ceil(n / self._block) for n in size]
        self._images = np.full((2, *shape), np.nan, np.float32)  # deviation, 1 - cosine
        self._tiff = _GeoTiff.begin(
            self._folder / f"{self._name}.tif", pair, self._top, self._left, size
        )

    def add(self, rows: slice, columns: slice, deviation: np.ndarray, distance: np.ndarray) -> None:
        top, left = rows.start - self._top, columns.start - self._left
        both = np.stack([deviation, distance])
        if self._tiff is not None:
            self._tiff.write(top, left, both)
        _, r, c = np.nonzero(~np.isnan(both[:1]))
        for image, values in zip(self._images, both, strict=True):
            at = (top + r) // self._block, (left + c) // self._block
            np.fmax.at(image, at, values[r, c])

    def end(self) -> None:
        if self._tiff is not None:
            self.files.append(self._tiff.finish())
            self._tiff = None
        shown = np.argwhere(~np.isnan(self._images[0]))
        if not len(shown):
            return
        (top, left), (bottom, right) = shown.min(axis=0), shown.max(axis=0) + 1
        panels, captions = [], []
        for image, what in zip(self._images, ("largest difference", "1 - cosine"), strict=True):
            panel, scale = _coloured(image[top:bottom, left:right])
            panels.append(panel)
            captions.append(f"{self._name}: {what} | {scale}")
        picture = side_by_side(panels, captions, upscale=max(1, 400 // max(panels[0].shape[:2])))
        self.files.append(write_png(self._folder / f"{self._name}.png", picture))


def _coloured(image: np.ndarray) -> tuple[np.ndarray, str]:
    """(h, w) float32 as (h', w, 4) uint8 with the scale's strip below, and what the scale says."""
    differs = np.isfinite(image) & (image > 0)
    out = np.zeros((*image.shape, 4), np.uint8)
    out[image == 0] = (*_SAME, 255)
    out[np.isposinf(image)] = (*_ALONE, 255)
    scale = "identical"
    strip = np.zeros((0, image.shape[1], 4), np.uint8)
    if differs.any():
        values = np.log10(image[differs])
        high = float(values.max())
        low = min(float(values.min()), high - _LEAST)
        out[differs] = _ramp((np.log10(image[differs]) - low) / (high - low))
        scale = f"log scale, dark {10**low:.2g} to bright {10**high:.2g}"
        if (image == 0).any():
            scale += ", grey identical"
        height = max(1, image.shape[0] // 24)
        strip = np.zeros((2 * height, image.shape[1], 4), np.uint8)
        strip[height:] = _ramp(np.linspace(0, 1, image.shape[1]))
    if np.isposinf(image).any():
        scale += ", green on one side only"
    return np.concatenate([out, strip]), scale


def _ramp(values: np.ndarray) -> np.ndarray:
    """(n,) in 0..1 as (n, 4) uint8."""
    at = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(values, at, _RAMP[:, k]) for k in range(3)]
    return np.stack([*channels, np.full(len(values), 255.0)], axis=-1).astype(np.uint8)


class _GeoTiff:
    """float32, two bands, NaN: no data, +inf: data on one side alone. Written by windows."""

    def __init__(self, path: Path, partial: Path, dataset: Any) -> None:
        self._path, self._partial, self._dataset = path, partial, dataset

    @classmethod
    def begin(
        cls, path: Path, pair: Pair, top: int, left: int, size: tuple[int, int]
    ) -> _GeoTiff | None:
        """None where rasterio is not there, the layer has no place, or nothing will come."""
        if not has("rasterio") or pair.transform is None or 0 in size:
            return None
        rasterio = require("rasterio", "a map of differences")
        a, b, c, d, e, f = pair.transform
        transform = rasterio.Affine(a, b, c + a * left + b * top, d, e, f + d * left + e * top)
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        dataset = rasterio.open(
            partial,
            "w",
            driver="GTiff",
            height=size[0],
            width=size[1],
            count=2,
            dtype="float32",
            nodata=math.nan,
            crs=pair.crs,
            transform=transform,
            tiled=True,
            compress="deflate",
            BIGTIFF="IF_SAFER",
            SPARSE_OK=True,
        )
        dataset.set_band_description(1, "largest |A - B| of a value")
        dataset.set_band_description(2, "1 - cosine")
        return cls(path, partial, dataset)

    def write(self, top: int, left: int, bands: np.ndarray) -> None:
        from rasterio.windows import Window

        _, h, w = bands.shape
        self._dataset.write(bands, window=Window(left, top, w, h))

    def finish(self) -> Path:
        try:
            self._dataset.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise StoreError(f"{self._path}: could not be written ({error})") from error
        finally:
            self.discard()
        return self._path

    def discard(self) -> None:
        self._dataset.close()
        self._partial.unlink(missing_ok=True)
