"""What an output holds, read back by windows: a Zarr store, ours or geotessera's, or .npy files.

An output is a list of layers: one UTM zone in one year of a store, or one tile of a folder. h, w
are the rows and columns of a window, E the embedding width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import StoreError
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import (
    Unreadable,
    local_path,
    parse_npy_header,
    read_json,
    read_start,
    shown,
    take,
    take_numbers,
    take_or_none,
    take_whole,
)
from .base import COUNT_NAMES
from .metadata import PROVENANCE, check_metadata, import_zarr
from .state import STATE

_SCALES = "_scales"
_PREFIX = "embeddings_d"


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

    @property
    def rasters(self) -> frozenset[str]:
        """Names of the arrays with pixels: embeddings, scales, prefixes, counts."""
        return frozenset(k for k, a in self._arrays.items() if self._time < 0 or a.ndim > 2)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Widths K of the arrays embeddings_dK, which repeat the first K codes."""
        names = (k.removeprefix(_PREFIX) for k in self.rasters if k.startswith(_PREFIX))
        return tuple(sorted(int(k) for k in names if k.isdecimal()))

    def prefix(self, width: int, rows: slice, columns: slice) -> np.ndarray:
        """(K, h, w) int8, as stored, of the array of ``width`` K, which is one of ``prefixes``."""
        return np.array(self._arrays[f"{_PREFIX}{width}"][self._time, :, rows, columns])

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
        codes = self._read("embeddings", rows, columns)
        if self._time < 0:
            return codes
        return np.ascontiguousarray(np.moveaxis(codes, 0, -1))

    def _read(self, name: str, rows: slice, columns: slice) -> np.ndarray:
        """A window of an array as it lies there: of a store, bands come first."""
        index = (rows, columns) if self._time < 0 else (self._time, ..., rows, columns)
        with self._decoding(name):
            return np.array(self._arrays[name][index])

    @contextmanager
    def _decoding(self, name: str) -> Iterator[None]:
        """StoreError for what zarr raises where a shard is damaged."""
        try:
            yield
        except damaged() as error:
            raise StoreError(
                f"{self._folder or self.name}: {name} cannot be decoded ({first_line(error)}); "
                "`tessera-fast verify` of the output names what is damaged"
            ) from error


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
    place = local_path(path, "output").resolve()
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
    place = local_path(path, "output").resolve()
    store = (place / "zarr.json").exists()
    state = place.with_name(place.name + ".state") if store else place / STATE
    found = []
    for file in sorted((state / "done").glob("*.json")):
        try:
            record = read_json(file)
            found.append(
                TileRecord(
                    take(record, "tile", str),
                    take_or_none(record, "year", int),
                    take_or_none(record, "crs", str),
                    _transform(record),
                    take_whole(record, "height", 1, 2**31),
                    take_whole(record, "width", 1, 2**31),
                )
            )
        except (OSError, Unreadable) as error:
            raise StoreError(
                f"{file}: expected a JSON object with tile, year, crs, transform, height and "
                f"width, got {type(error).__name__}: {error}. Embed the tile again"
            ) from error
    return found


def _transform(record: Mapping[str, Any]) -> tuple[float, ...] | None:
    return None if record.get("transform") is None else take_numbers(record, "transform", 6)


def _open_store(path: Path) -> Embeddings:
    zarr = import_zarr()
    check_metadata(path)
    layers = []
    try:
        root = zarr.open_group(str(path), mode="r")
        attributes = dict(root.attrs)
        for name in sorted(k for k in root.group_keys() if k.startswith("utm")):
            layers += _zone_layers(path, name, root[name])
    except Unreadable as error:
        raise StoreError(f"{path}: expected a store of embeddings, got {error}") from error
    except StoreError:
        raise
    except damaged() as error:
        raise StoreError(
            f"{path}: cannot be read ({first_line(error)}); restore it from a copy"
        ) from error
    provenance = attributes.get(PROVENANCE, {})
    if not isinstance(provenance, dict):
        raise StoreError(f"{path}: expected a provenance, got {shown(provenance)}")
    return Embeddings(path, tuple(layers), dict(provenance), attributes)


def _zone_layers(path: Path, name: str, group: Any) -> list[Layer]:
    """A layer for each year of a zone."""
    arrays = {k: group[k] for k in group.array_keys()}
    if not {"embeddings", "scales", "time"} <= arrays.keys():
        raise StoreError(f"{path}/{name}: expected arrays embeddings, scales and time")
    if arrays["embeddings"].ndim != 4 or arrays["time"].ndim != 1:
        raise Unreadable(f"{name}: embeddings that are not (time, band, y, x)")
    times, dims, height, width = arrays["embeddings"].shape
    for k, array in arrays.items():
        flat = k == "scales" or k in COUNT_NAMES
        if flat and array.shape != (times, height, width):
            raise Unreadable(f"{name}/{k} of shape {array.shape}")
    side = (arrays["embeddings"].shards or arrays["embeddings"].chunks)[-1]
    attributes = dict(group.attrs)
    crs = take(attributes, "proj:code", str)
    transform = take_numbers(attributes, "spatial:transform", 6)
    years = arrays["time"][:].tolist()
    return [
        Layer(
            f"{name}/{year}",
            height,
            width,
            dims,
            True,
            year,
            crs,
            transform,
            side,
            arrays,
            t,
            path / name,
        )
        for t, year in enumerate(years)
    ]


def _open_folder(path: Path) -> Embeddings:
    layers = []
    for file in sorted(path.glob("*.npy")):
        values = _mapped(file)
        if values.ndim != 3:  # scales, or something else
            continue
        if 0 in values.shape:
            raise StoreError(
                f"{file}: expected embeddings (H, W, E), got an array without values, of shape "
                f"{values.shape}; write it again"
            )
        height, width, dims = values.shape
        scales = file.with_name(f"{file.stem}{_SCALES}.npy")
        arrays = {"embeddings": values}
        if values.dtype == np.int8:
            if not scales.exists():
                raise StoreError(f"{file}: int8 codes without {scales.name} beside them")
            arrays["scales"] = _mapped(scales)
            if arrays["scales"].shape != (height, width):
                raise StoreError(
                    f"{scales}: expected the shape {(height, width)} of {file.name}, got "
                    f"{arrays['scales'].shape}"
                )
        known = _record(path / STATE / "done" / f"{file.stem}.json")
        try:
            year, crs = take_or_none(known, "year", int), take_or_none(known, "crs", str)
            transform = _transform(known)
        except Unreadable as error:
            raise StoreError(f"{file}: its marker cannot be read ({error})") from error
        layers.append(
            Layer(
                file.stem,
                height,
                width,
                dims,
                values.dtype == np.int8,
                year,
                crs,
                transform,
                _arrays=arrays,
            )
        )
    return Embeddings(path, tuple(layers), _record(path / STATE / "provenance.json"), {})


def _mapped(file: Path) -> np.ndarray:
    """The array of a .npy file, which is read where it is used."""
    try:
        header = parse_npy_header(read_start(file, 1024))
        if file.stat().st_size < header.size:
            raise Unreadable(f"{header.size} bytes are needed")
        if header.dtype.kind not in "iuf":
            raise Unreadable(f"values {header.dtype}")
        if not header.size - header.offset:
            return np.zeros(header.shape, header.dtype)
        values = np.memmap(file, header.dtype, "r", header.offset, math.prod(header.shape))
        return values.reshape(header.shape, order="F" if header.fortran else "C")
    except (OSError, Unreadable) as error:
        raise StoreError(f"{file}: expected a .npy file of embeddings, got {error}") from error


def _record(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    try:
        return read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, Unreadable) as error:
        raise StoreError(
            f"{file}: cannot be read ({error}); `tessera-fast verify {file.parents[1]}` checks "
            "all of the output"
        ) from error
