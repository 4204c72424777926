"""Features of pixels as images that are read by rows: from a store, files or arrays.

h rows of an image, W its columns, E features of a pixel.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..packages import has, require
from ..products.parts import OutputPart, parts
from ..quantization import QuantizedEmbeddings, dequantize
from ..store.reader import open_embeddings
from ..untrusted.readers import Unreadable, local_path, map_npy

_BLOCK_BYTES = 64 << 20  # of features held at once


@dataclass(frozen=True)
class Image:
    """Features of H x W pixels; nothing is in memory but what was given as an array."""

    name: str
    height: int
    width: int
    dims: int  # E
    read: Callable[[int, int], np.ndarray]  # rows start..stop -> (h, W, E) float32, NaN: no data
    crs: str | None = None
    transform: tuple[float, ...] | None = None  # (a, b, c, d, e, f) of pixel corners
    bytes_per_row: int = 0  # that reading takes beside the result

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row and last + 1 of the blocks that are read together."""
        row = self.width * self.dims * 4 + self.bytes_per_row
        step = max(1, _BLOCK_BYTES // row)
        for start in range(0, self.height, step):
            yield start, min(start + step, self.height)


@dataclass(frozen=True)
class Features:
    """Images of one kind of features, and what made them."""

    images: list[Image]
    provenance: dict[str, Any]  # of the store; empty where it is not known


def open_features(source: Any) -> Features:
    """What `probe` takes as embeddings.

    A store or a folder of .npy files, one .npy file, arrays (H, W, E) or (P, E), float or
    QuantizedEmbeddings, or a list or a dict (by tile) of arrays and files. InputError for others.
    """
    if isinstance(source, str | os.PathLike):
        path = local_path(source, "embeddings")
        if path.suffix == ".npy":
            return Features([_of_array(path.stem, _load(path))], {})
        output = open_embeddings(path)
        found = parts(output)
        names = Counter(part.name for part in found)
        images = [
            _of_part(p, p.name if names[p.name] == 1 else f"{p.layer.name}/{p.name}") for p in found
        ]
        return Features(images, output.provenance)
    if isinstance(source, Mapping):
        return Features([_of_array(str(k), _load(v)) for k, v in source.items()], {})
    if isinstance(source, Sequence) and not isinstance(source, QuantizedEmbeddings):
        return Features([_of_array(f"tile {i}", _load(v)) for i, v in enumerate(source)], {})
    return Features([_of_array("tile", _load(source))], {})


def is_degrees(crs: str | None) -> bool:
    """Whether x is a longitude, which has many names: 181 is -179. False without rasterio."""
    if crs is None or not has("rasterio"):
        return False
    geographic = require("rasterio.crs", "a CRS").CRS.from_user_input(crs).is_geographic
    return bool(geographic)


def _of_part(part: OutputPart, name: str) -> Image:
    layer, top = part.layer, part.rows.start

    def read(start: int, stop: int) -> np.ndarray:
        return layer.values(slice(top + start, top + stop), part.columns)

    crs = transform = None
    if layer.crs is not None and layer.transform is not None:
        crs, transform = part.place
    return Image(name, part.height, part.width, layer.dims, read, crs, transform)


def _load(source: Any) -> Any:
    if not isinstance(source, str | os.PathLike):
        return source
    path = local_path(source, "embeddings")
    try:
        values = map_npy(path)
        if values.dtype == np.int8:
            scales = path.with_name(f"{path.stem}_scales.npy")
            return QuantizedEmbeddings(values, map_npy(scales))
    except (OSError, Unreadable) as error:
        raise InputError(f"{path}: expected a .npy file of embeddings, got {error}") from error
    return values


def _of_array(name: str, values: Any) -> Image:
    if isinstance(values, QuantizedEmbeddings):
        codes, scales = map(np.asarray, values)
        if codes.dtype != np.int8 or scales.shape != codes.shape[:-1] or scales.dtype.kind != "f":
            raise InputError(
                f"embeddings of {name}: expected int8 codes (H, W, E) and float scales (H, W), got "
                f"{codes.dtype} {codes.shape} and {scales.dtype} {scales.shape}"
            )
        values = dequantize(codes, scales)
    array = np.asarray(values)
    if array.ndim == 2:
        array = array[:, None]
    if array.ndim != 3 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(
            f"embeddings of {name}: expected float (H, W, E) or (P, E), or int8 codes with their "
            f"scales, got {array.dtype} {array.shape}"
        )

    def read(start: int, stop: int) -> np.ndarray:
        return np.asarray(array[start:stop], np.float32)

    height, width, dims = array.shape
    return Image(name, height, width, dims, read)
