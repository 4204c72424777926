"""Labels of images: arrays of the same pixels, or a raster with a place, which may have another
grid and then gives each pixel the value that its centre lies in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..packages import require
from ..products.globe import near
from ..products.target import Target
from ..tile.remote import is_url
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import Unreadable, local_path, map_npy
from .images import Image

_MOST = 1 << 22  # pixels of a raster read at once
Labels = tuple[np.ndarray, np.ndarray]  # (H, W) numbers, and (H, W) bool where they are known


def read_labels(source: Any, images: Sequence[Image], what: str = "labels") -> list[Labels]:
    """Numbers (H, W) of every image, integers or floats, and where they are known (H, W): not NaN,
    and of a raster inside and not masked.

    ``source``: an array or a .npy file of the one image, a raster that covers all, or a list or a
    dict (by name) of these, one an image.
    """
    if isinstance(source, Mapping):
        missing = [image.name for image in images if image.name not in source]
        if missing:
            raise InputError(
                f"{what}: expected those of {missing[0]!r} too, got {', '.join(map(str, source))}"
            )
        return [_of_image(source[image.name], image, what) for image in images]
    if isinstance(source, list | tuple):
        if len(source) != len(images):
            raise InputError(f"{what}: expected {len(images)}, one a tile, got {len(source)}")
        return [_of_image(s, image, what) for s, image in zip(source, images, strict=True)]
    raster = isinstance(source, str | os.PathLike) and Path(source).suffix != ".npy"
    if len(images) > 1 and not raster:
        names = ", ".join(image.name for image in images[:6])
        raise InputError(
            f"{what}: expected a dict or a list of {len(images)} ({names}), or one raster that "
            "covers all, got one array"
        )
    return [_of_image(source, image, what) for image in images]


def _of_image(source: Any, image: Image, what: str) -> Labels:
    if isinstance(source, str | os.PathLike):
        url = is_url(source)
        path = Path(source) if url else local_path(source, what)
        if path.suffix != ".npy":
            return _sampled(str(source) if url else path, image, what)
        try:
            source = map_npy(path)
        except (OSError, Unreadable) as error:
            raise InputError(f"{what} {path}: expected a .npy file, got {error}") from error
    values = np.asarray(source)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.ndim == 1 and image.width == 1:
        values = values[:, None]
    if values.shape != (image.height, image.width) or values.dtype.kind not in "iuf":
        raise InputError(
            f"{what} of {image.name}: expected ({image.height}, {image.width}) numbers, as its "
            f"embeddings have pixels, got {values.dtype} {values.shape}"
        )
    return values, np.isfinite(values)


def _sampled(path: str | Path, image: Image, what: str) -> Labels:
    """Values of a raster at the centres of an image's pixels."""
    rasterio = require("rasterio", "reading a raster of labels")
    if image.crs is None or image.transform is None:
        raise InputError(
            f"{what} {path}: {image.name} has no place on a map; give a .npy file of its pixels"
        )
    grid = Target(image.crs, image.transform, image.height, image.width)
    x, y = grid.centres(slice(0, image.height), slice(0, image.width))
    try:
        with rasterio.open(path) as raster:
            if raster.crs is None:
                raise InputError(f"{what} {path}: expected a raster with a CRS, got none")
            if raster.crs != rasterio.crs.CRS.from_user_input(image.crs):
                warp = require("rasterio.warp", "labels in another CRS")
                moved = warp.transform(image.crs, raster.crs, x.ravel(), y.ravel())
                x, y = (np.asarray(v).reshape(x.shape) for v in moved)
            if raster.crs.is_geographic:
                x = near(x, (raster.bounds.left + raster.bounds.right) / 2)
            a, b, c, d, e, f = tuple(~raster.transform)[:6]
            columns, rows = a * x + b * y + c, d * x + e * y + f
            return _pick(rasterio, raster, np.floor(rows), np.floor(columns))
    except InputError:
        raise
    except damaged() as error:
        raise InputError(f"{what} {path}: expected a raster, got {first_line(error)}") from error


def _pick(rasterio: Any, raster: Any, rows: np.ndarray, columns: np.ndarray) -> Labels:
    """Pixels of band 1, and which of them are inside and have data."""
    integers = np.dtype(raster.dtypes[0]).kind in "iu"
    out = np.zeros(rows.shape, np.int64 if integers else np.float32)
    known = (rows >= 0) & (rows < raster.height) & (columns >= 0) & (columns < raster.width)
    if not known.any():
        return out, known
    r, c = rows[known].astype(np.int64), columns[known].astype(np.int64)
    values, there = np.zeros(len(r), out.dtype), np.zeros(len(r), bool)
    groups = [np.arange(len(r))]
    while groups:
        index = groups.pop()
        y, x = r[index], c[index]
        if (np.ptp(x) + 1) * (np.ptp(y) + 1) > _MOST and len(index) > 1:
            # far apart, as on both sides of the 180th meridian: each half by itself
            along = x if np.ptp(x) >= np.ptp(y) else y
            west = along <= (along.min() + along.max()) / 2
            groups += [index[west], index[~west]]
            continue
        window = rasterio.windows.Window(x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
        picked = raster.read(1, window=window, masked=True)[y - y.min(), x - x.min()]
        values[index] = picked.filled(0)
        there[index] = ~np.ma.getmaskarray(picked) & np.isfinite(picked.filled(0))
    out[known], known[known] = values, there
    return out, known
