"""Tiles to an output on disk: what `tessera-fast embed` and `demo` run."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .errors import InputError, StoreError
from .model import Model
from .pipeline import band_rows, embed_rows
from .progress import Progress, progress_bar
from .quantization import QuantizedEmbeddings
from .store import Provenance, TileKey, open_output
from .tile import Tile, open_tile


@dataclass
class TileReport:
    """What became of one tile."""

    name: str
    pixels: int
    state: str  # "done" | "skipped"
    seconds: float = 0.0
    no_data: int = 0


def open_tiles(
    sources: Sequence[Any], *, year: int | None = None, allow_missing_s1: bool = False
) -> list[Tile]:
    """Open and check every tile before any work; the first bad one is an InputError."""
    tiles = [open_tile(s, year=year, allow_missing_s1=allow_missing_s1) for s in sources]
    if not tiles:
        raise InputError("tiles: expected at least one tile, got none")
    return tiles


def embed_tiles(
    tiles: Sequence[Tile],
    out: str | os.PathLike[str],
    model: Model,
    *,
    dims: int | None = None,
    int8: bool = False,
    memory: int | str | None = None,
    seed: int = 0,
    repeats: int = 1,
    progress: Progress = None,
    report: Callable[[TileReport], None] = lambda _: None,
) -> list[TileReport]:
    """Embed every tile into ``out``: a Zarr store (name ends in .zarr) or a folder of .npy files.

    A tile appears whole or not at all; one that an earlier run finished with the same inputs,
    weights and settings is skipped. ``int8`` concerns .npy output: a store always holds int8.
    ``report`` is called after each tile. Raises StoreError if ``out`` holds anything made
    differently, cannot be placed or cannot be written.
    """
    in_store = Path(out).suffix == ".zarr"
    quantized = int8 or in_store
    width = model.width(dims)
    model.check_repeats(repeats)
    drawn = model.spec.sampling == "v1.0"
    provenance = Provenance(
        model=model.spec.name,
        weights_sha256=model.weights.sha256,
        weights_source=model.weights.source,
        trained=model.trained,
        precision=model.precision,
        dims=width,
        dtype="int8" if quantized else "float32",
        prefixes=tuple(d for d in model.spec.matryoshka if d < width) if quantized else (),
        seed=seed if drawn else None,
        repeats=repeats if drawn else None,
        backend=model.backend,
        isa=model.provenance().get("isa"),
        package_version=__version__,
    )
    for tile in tiles:
        band_rows(tile, model, memory)  # refuse a memory setting that is too small before writing
    keys = [tile_key(tile, georeferenced=in_store) for tile in tiles]
    reports = []
    with contextlib.closing(open_output(out, keys, provenance)) as output:
        for tile, key in zip(tiles, keys, strict=True):
            done = TileReport(tile.name, tile.height * tile.width, "skipped")
            if not output.is_done(key):
                started = time.perf_counter()
                writer = output.begin(key)
                try:
                    with progress_bar(done.pixels, tile.name, progress) as tick:
                        for band in embed_rows(
                            tile, model, dims=dims, quantized=quantized, memory=memory, seed=seed,
                            repeats=repeats, progress=tick,
                        ):  # fmt: skip
                            done.no_data += int((band.counts.sum(-1) == 0).sum())
                            if isinstance(band.values, QuantizedEmbeddings):
                                writer.write_rows(band.start, *band.values, band.counts)
                            else:
                                writer.write_rows(band.start, band.values, None, band.counts)
                    writer.commit()
                finally:
                    writer.abort()  # does nothing after a commit
                done.state = "done"
                done.seconds = time.perf_counter() - started
            reports.append(done)
            report(done)
    return reports


def tile_key(tile: Tile, *, georeferenced: bool) -> TileKey:
    """What an output needs to know of a tile; StoreError where a store cannot place it."""
    place: dict[str, Any] = {}
    if georeferenced:
        place = {"crs": tile.crs, "transform": tile.transform, "year": tile.year}
        missing = [what for what, value in place.items() if value is None]
        if missing:
            raise StoreError(
                f"tile {tile.name}: a Zarr store needs its {' and '.join(missing)}: the CRS and "
                "transform come from roi.tiff, the year from --year or the folder's name. Or write "
                ".npy files (an output name without .zarr)"
            )
    return TileKey(tile.name, tile.height, tile.width, tile.fingerprint(), **place)
