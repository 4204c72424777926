"""A store again without shards: GDAL 3.12 reads it, and QGIS with that.

The layout and all attributes stay. A chunk is a file: 128 x 128 pixels, 2 MiB of codes at E = 128,
where the store has 32 x 32 in shards of 256 x 256.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..packages import require
from ..progress import Progress, progress_bar
from ..store.reader import Embeddings
from .files import whole

CHUNK = 128


def write_unsharded(output: Embeddings, path: Path, overwrite: bool, progress: Progress) -> None:
    """Copy the store ``output`` to ``path``, block by block where it holds something."""
    zarr = require("zarr", "writing a Zarr store")
    if not (output.path / "zarr.json").exists():
        raise StoreError(
            f"{output.path}: a folder of .npy files has no grid to become a store; export its "
            "tiles as geotiff, or embed them into a .zarr"
        )
    if output.path in (path.resolve(), *path.resolve().parents):
        raise StoreError(f"{path}: is the store itself or lies in it; write beside it")
    source = zarr.open_group(str(output.path), mode="r")
    windows = {layer.name: layer.stored(CHUNK) for layer in output.layers}
    total = sum((r.stop - r.start) * (c.stop - c.start) for w in windows.values() for r, c in w)
    done = 0
    with whole(path, overwrite) as partial, progress_bar(total, "export", progress) as tick:
        root = zarr.create_group(str(partial), zarr_format=3, attributes=dict(source.attrs))
        for name in sorted({layer.name.split("/")[0] for layer in output.layers}):
            group = root.create_group(name, attributes=dict(source[name].attrs))
            arrays = {
                key: (source[name][key], _like(group, key, source[name][key]))
                for key in sorted(source[name].array_keys())
            }
            for old, new in arrays.values():
                if not _holds_pixels(old):
                    new[...] = old[...]
            years = source[name]["time"][:].tolist()
            for t, year in enumerate(years):
                for rows, columns in windows[f"{name}/{year}"]:
                    for old, new in arrays.values():
                        if _holds_pixels(old):
                            new[t, ..., rows, columns] = old[t, ..., rows, columns]
                    done += (rows.stop - rows.start) * (columns.stop - columns.start)
                    tick(done)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(str(partial))


def _holds_pixels(array: Any) -> bool:
    return bool(array.ndim >= 3)  # (time, y, x) or (time, band, y, x); coordinates have one axis


def _like(group: Any, name: str, old: Any) -> Any:
    """An array as ``old`` without shards and without pixels."""
    from zarr.codecs import ZstdCodec

    chunks = old.shape
    if _holds_pixels(old):
        sides = (min(CHUNK, n) for n in old.shape[-2:])
        chunks = (1, *old.shape[1:-2], *sides)
    return group.create_array(
        name,
        shape=old.shape,
        dtype=old.dtype,
        chunks=chunks,
        fill_value=old.fill_value,
        compressors=ZstdCodec(level=3) if old.ndim else None,
        attributes=dict(old.attrs),
        dimension_names=old.metadata.dimension_names,
    )
