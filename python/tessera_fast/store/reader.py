"""What an output holds, read back by windows: a Zarr store, ours or geotessera's, or .npy files.

An output is a list of layers: one UTM zone in one year of a store, or one tile of a folder. h, w
are the rows and columns of a window, E the embedding width.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import StoreError
from .npy_folder import STATE
from .output import COUNT_NAMES
from .zarr_store import PROVENANCE, _import_zarr

_SCALES = "_scales"


class TileRecord(NamedTuple):
    """A finished tile by its marker. In a store the place is that in the zone's own CRS."""

    name: str
    year: int | None
    crs: str | None
    transform: tuple[float, ...] | None  # (a, b, c, d, e, f) of pixel corners
    height: int
    width: int


@dataclass(frozen=True)
class Layer:
    """One raster of embeddings; nothing is read before ``codes`` or ``values``."""

    name: str  # "utm31/2024", or the tile's name
    height: int
    width: int
    dims: int  # E
    quantized: bool  # int8 codes and scales, else float32
    year: int | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None  # (a, b, c, d, e, f) of pixel corners
    tile_side: int = 256  # rows and columns that are cheap to read together
    _arrays: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _time: int = field(default=-1, repr=False, compare=False)  # index on a store's time axis
    _folder: Path | None = field(default=None, repr=False, compare=False)  # of a store's zone

    def codes(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(h, w, E) int8 and scales (h, w) float32: finite valid, +inf or NaN no data."""
        if not self.quantized:
            raise StoreError(f"{self.name}: holds float32 values, not int8 codes and scales")
        return self._codes(rows, columns), self._read("scales", rows, columns)

    def values(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w, E) float32, NaN where there is no data."""
        if not self.quantized:
            return np.array(self._arrays["embeddings"][rows, columns])
        codes, scales = self.codes(rows, columns)
        known = np.isfinite(scales)
        out = codes * np.where(known, scales, np.float32(0))[..., None]
        out[~known] = np.nan
        return out

    def valid(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) bool: where there is an embedding."""
        if self.quantized:
            return np.isfinite(self._read("scales", rows, columns))
        return np.isfinite(self._arrays["embeddings"][rows, columns]).all(axis=-1)

    def counts(self, rows: slice, columns: slice) -> np.ndarray | None:
        """(h, w, 3) uint16 observed dates of the pixel, None where the output has none."""
        if any(name not in self._arrays for name in COUNT_NAMES):
            return None
        return np.stack([self._read(name, rows, columns) for name in COUNT_NAMES], axis=-1)

    def stored(self, side: int = 256) -> list[tuple[slice, slice]]:
        """Windows of at most ``side`` rows and columns, apart, that hold every pixel with data.

        Of a store those whose files are there: a zone is mostly empty.
        """
        height, width = self.height, self.width
        if self._folder is not None:
            scales = self._arrays["scales"]
            height, width = (scales.shards or scales.chunks)[-2:]
        found = []
        for top in range(0, self.height, height):
            for left in range(0, self.width, width):
                if self._folder is not None:
                    index = (self._time, top // height, left // width)
                    key = self._arrays["scales"].metadata.encode_chunk_key(index)
                    if not (self._folder / "scales" / key).exists():
                        continue
                rows = range(top, min(top + height, self.height))
                columns = range(left, min(left + width, self.width))
                found += [
                    (slice(y, min(y + side, rows.stop)), slice(x, min(x + side, columns.stop)))
                    for y in rows[::side]
                    for x in columns[::side]
                ]
        return found

    def _codes(self, rows: slice, columns: slice) -> np.ndarray:
        array = self._arrays["embeddings"]
        if self._time < 0:
            return np.array(array[rows, columns])
        return np.ascontiguousarray(np.moveaxis(array[self._time, :, rows, columns], 0, -1))

    def _read(self, name: str, rows: slice, columns: slice) -> np.ndarray:
        index = (rows, columns) if self._time < 0 else (self._time, rows, columns)
        return np.array(self._arrays[name][index])


@dataclass(frozen=True)
class Embeddings:
    """An output that was opened for reading."""

    path: Path
    layers: tuple[Layer, ...]
    provenance: dict[str, Any]  # of `Provenance.to_json`; empty where another program wrote it
    attributes: dict[str, Any]  # of a store's root

    def layer(self, name: str) -> Layer:
        """The layer called ``name``; StoreError lists those that are there."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise StoreError(f"{self.path}: no layer {name!r}; it has {names}")


def open_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """Open a store or a folder of .npy files for reading; StoreError if it is neither."""
    place = Path(path).expanduser().resolve()
    if (place / "zarr.json").exists():
        return _open_store(place)
    if place.is_dir() and any(place.glob("*.npy")):
        return _open_folder(place)
    got = "nothing" if not place.exists() else "a file" if place.is_file() else "another folder"
    raise StoreError(
        f"{place}: expected a Zarr store of embeddings or a folder of .npy files of them, got {got}"
    )


def tiles_of(path: str | os.PathLike[str]) -> list[TileRecord]:
    """The finished tiles of an output, by name and year; none where its state is not beside it.

    StoreError where a marker cannot be read.
    """
    place = Path(path).expanduser().resolve()
    store = (place / "zarr.json").exists()
    state = place.with_name(place.name + ".state") if store else place / STATE
    found = []
    for file in sorted((state / "done").glob("*.json")):
        try:
            record = json.loads(file.read_text())
            transform = record["transform"]
            found.append(
                TileRecord(
                    record["tile"], record["year"], record["crs"],
                    None if transform is None else tuple(transform), record["height"],
                    record["width"],
                )
            )  # fmt: skip
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{file}: expected a JSON object with tile, year, crs, transform, height and "
                f"width, got {type(error).__name__}: {error}. Embed the tile again"
            ) from error
    return found


def _open_store(path: Path) -> Embeddings:
    root = _import_zarr().open_group(str(path), mode="r")
    layers = []
    for name in sorted(k for k in root.group_keys() if k.startswith("utm")):
        group = root[name]
        arrays = {k: group[k] for k in group.array_keys()}
        if not {"embeddings", "scales", "time"} <= arrays.keys():
            raise StoreError(f"{path}/{name}: expected arrays embeddings, scales and time")
        _, dims, height, width = arrays["embeddings"].shape
        side = (arrays["embeddings"].shards or arrays["embeddings"].chunks)[-1]
        attributes = dict(group.attrs)
        transform = tuple(float(v) for v in attributes["spatial:transform"])
        for t, year in enumerate(arrays["time"][:].tolist()):
            layers.append(
                Layer(
                    f"{name}/{year}", height, width, dims, True, year, attributes["proj:code"],
                    transform, side, arrays, t, path / name,
                )
            )  # fmt: skip
    attributes = dict(root.attrs)
    return Embeddings(path, tuple(layers), dict(attributes.get(PROVENANCE, {})), attributes)


def _open_folder(path: Path) -> Embeddings:
    layers = []
    for file in sorted(path.glob("*.npy")):
        values = np.load(file, mmap_mode="r", allow_pickle=False)
        if values.ndim != 3:  # scales, or something else
            continue
        height, width, dims = values.shape
        scales = file.with_name(f"{file.stem}{_SCALES}.npy")
        arrays = {"embeddings": values}
        if values.dtype == np.int8:
            if not scales.exists():
                raise StoreError(f"{file}: int8 codes without {scales.name} beside them")
            arrays["scales"] = np.load(scales, mmap_mode="r", allow_pickle=False)
        marker = path / STATE / "done" / f"{file.stem}.json"
        known = json.loads(marker.read_text()) if marker.exists() else {}
        layers.append(
            Layer(
                file.stem, height, width, dims, values.dtype == np.int8, known.get("year"),
                known.get("crs"), tuple(known["transform"]) if known.get("transform") else None,
                _arrays=arrays,
            )
        )  # fmt: skip
    record = path / STATE / "provenance.json"
    provenance = json.loads(record.read_text()) if record.exists() else {}
    return Embeddings(path, tuple(layers), provenance, {})
