"""`tessera-fast demo`: the main job on a synthetic tile, offline, in well under a minute."""

import os
import time
from pathlib import Path

import numpy as np

from .errors import StoreError
from .job import embed_tiles
from .model import load_model
from .pipeline import embed
from .quicklook import quicklook, write_png
from .synthetic import synthetic_tile

MODEL, WEIGHTS, YEAR = "v2-nano", "untrained:1", 2024


def run_demo(
    out: str | os.PathLike[str], *, size: int = 128, seed: int = 0, threads: int | None = None
) -> None:
    """Make a tile, embed it into ``out``/demo.zarr, draw ``out``/demo.png and say what was done.

    The weights are seeded random numbers: the pictures show that the pipeline works, and nothing
    about the land. Raises what `embed_tiles` raises.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: expected a folder that can be made ({error})") from error
    started = time.perf_counter()
    tile = synthetic_tile(size, size, seed=seed, year=YEAR)
    made = time.perf_counter() - started
    with load_model(MODEL, weights=WEIGHTS, threads=threads) as model:
        (report,) = embed_tiles([tile], folder / "demo.zarr", model).tiles
        picture = quicklook(tile, embed(tile, model), model=MODEL, trained=model.trained)
        write_png(folder / "demo.png", picture)
        clear = float(np.mean(tile.s2_masks.rows(0, size)))
        t_s2, t_asc, t_desc = tile.dates
        print(f"tile       {tile.name}: {size} x {size} px, {tile.crs}, made in {made:.1f} s")
        print(f"           {t_s2} Sentinel-2 dates ({clear:.0%} clear), {t_asc} + {t_desc} "
              "Sentinel-1 dates")  # fmt: skip
        print(f"model      {MODEL} with UNTRAINED (seeded random) weights: numbers without meaning")
        print(f"engine     {model.backend} {model.precision}, {model.provenance()['isa']}")
        if report.state == "done":
            rate = report.pixels / report.seconds
            print(f"speed      {report.pixels:,} px in {report.seconds:.1f} s: {rate:,.0f} px/s, "
                  "tile to store")  # fmt: skip
        else:
            print("speed      already in the store: nothing was computed again")
    print(f"store      {folder / 'demo.zarr'}   (xarray.open_zarr(..., group='utm31'))")
    print(f"picture    {folder / 'demo.png'}")
