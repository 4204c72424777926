"""`tf.export_store`: an output's tiles as GeoTIFF, COG or .npy files, or a Zarr store for GDAL."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..errors import InputError, StoreError
from ..files import refuse_existing
from ..packages import require
from ..progress import Progress, progress_bar
from ..store.disk import RowFile
from ..store.reader import Embeddings, open_embeddings
from ..untrusted.readers import local_target
from ..untrusted.suggest import checks_keywords, one_of
from .files import whole
from .geotiff import Raster, band_names, checked_bands, tags, written
from .parts import BLOCK, OutputPart, parts
from .unsharded import write_unsharded

FORMATS = ("geotiff", "cog", "npy", "zarr")


@checks_keywords()
def export_store(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "geotiff",
    bands: Sequence[int] | None = None,
    tiles: Sequence[str] | None = None,
    years: Sequence[int] | None = None,
    float32: bool = False,
    overwrite: bool = False,
    progress: Progress = None,
) -> list[Path]:
    """Write an output of embeddings in another format; the files, or the one store, written.

    ``store``: a Zarr store or a folder of .npy files. ``format``:

    - "geotiff", "cog": a file a finished tile in the folder ``out``, float32 (E, H, W), NaN where
      there is no data, named grid_LON_LAT_YEAR.tiff by the tile's centre; two tiles that would get
      one name get their own at its end.
    - "npy": <tile>.npy int8 (H, W, E) and <tile>_scales.npy float32 (H, W), or with ``float32``
      <tile>.npy float32 alone.
    - "zarr": the whole store at ``out``, without shards, which GDAL 3.12 needs.

    ``bands``: indices of dimensions; ``tiles``, ``years``: only those. A store without its state
    beside it does not know its tiles: a file a zone and year, of the rectangle with data.

    Memory is bounded by blocks of 256 x 256 pixels. Every file appears whole or not at all.
    Raises InputError for an option that does not go with the format, StoreError if a file exists
    and ``overwrite`` is False, cannot be written, or a tile has no place on a map.
    """
    one_of("format", format, FORMATS)
    if float32 and format != "npy":
        raise InputError(f"float32: expected with format 'npy' alone, got {format!r}")
    output, folder = open_embeddings(store), local_target(out, "out")
    if format == "zarr":
        if (bands, tiles, years) != (None, None, None):
            raise InputError("bands, tiles, years: a store is exported to zarr whole")
        write_unsharded(output, folder, overwrite, progress)
        return [folder]
    chosen = parts(output, tiles=tiles, years=years)
    if not chosen:
        raise InputError(f"{output.path}: no tile of {tiles} is of the years {years}")
    picked = checked_bands(bands, chosen[0].layer.dims)
    if format == "npy":
        names = _npy_names(chosen)
        files = [folder / f"{name}.npy" for name in names]
    else:
        files = [folder / name for name in _grid_names(chosen)]
    refuse_existing(files, overwrite)
    with progress_bar(sum(p.height * p.width for p in chosen), "export", progress) as tick:
        done = 0
        for part, file in zip(chosen, files, strict=True):
            if format == "npy":
                _write_npy(part, file, picked, float32, overwrite)
            else:
                _write_tiff(output, part, file, picked, format == "cog", overwrite)
            done += part.height * part.width
            tick(done)
    return files


def _grid_names(chosen: list[OutputPart]) -> list[str]:
    """grid_LON_LAT_YEAR.tiff of every part; with its own name where that is another's as well."""
    pyproj = require("pyproj", "naming a tile by its place")
    stems = []
    for part in chosen:
        crs, (a, b, c, d, e, f) = part.place
        x, y = part.width / 2, part.height / 2
        to_wgs84 = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
        lon, lat = to_wgs84.transform(a * x + b * y + c, d * x + e * y + f)
        stems.append(f"grid_{lon:.2f}_{lat:.2f}_{part.layer.year}")
    often = Counter(stems)
    return [
        f"{s}_{p.name}.tiff" if often[s] > 1 else f"{s}.tiff"
        for s, p in zip(stems, chosen, strict=True)
    ]


def _npy_names(chosen: list[OutputPart]) -> list[str]:
    """The tile's name; with its year where two years of it are there."""
    often = Counter(p.name for p in chosen)
    return [f"{p.name}_{p.layer.year}" if often[p.name] > 1 else p.name for p in chosen]


def _write_tiff(
    output: Embeddings, part: OutputPart, file: Path, bands: list[int], cog: bool, overwrite: bool
) -> None:
    raster = Raster(
        *part.place,
        part.height,
        part.width,
        len(bands),
        names=band_names(bands),
        tags=tags(output, part.layer.year),
        cog=cog,
    )
    with written(file, raster, overwrite) as write:
        for top, left, window in part.blocks():
            if part.layer.valid(*window).any():
                write(top, left, np.moveaxis(part.layer.values(*window)[..., bands], -1, 0))


def _write_npy(
    part: OutputPart, file: Path, bands: list[int], float32: bool, overwrite: bool
) -> None:
    layer, shape = part.layer, (part.height, part.width)
    quantized = layer.quantized and not float32
    if not layer.quantized and not float32:
        raise StoreError(
            f"{layer.name}: holds float32 values, not codes and scales; give float32 (--float32)"
        )
    with ExitStack() as stack:
        # The scales get their name first: the codes say that both are there.
        target = stack.enter_context(whole(file, overwrite))
        values = RowFile(target, (*shape, len(bands)), np.dtype(np.int8 if quantized else "f4"))
        scales = None
        if quantized:
            beside = stack.enter_context(
                whole(file.with_name(f"{file.stem}_scales.npy"), overwrite)
            )
            scales = RowFile(beside, shape, np.dtype(np.float32))
        step = max(32, BLOCK * BLOCK // part.width)
        for top in range(0, part.height, step):
            rows = slice(part.rows.start + top, min(part.rows.start + top + step, part.rows.stop))
            if scales is None:
                values.write(top, layer.values(rows, part.columns)[..., bands])
                continue
            codes, factors = layer.codes(rows, part.columns)
            values.write(top, codes[..., bands])
            scales.write(top, factors)
        for made in (values, scales):
            if made is not None:
                made.close()
