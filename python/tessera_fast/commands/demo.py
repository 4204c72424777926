"""`tessera-fast demo`: the main job on a synthetic tile, offline, in well under a minute."""

import argparse
import os
import time

import numpy as np

from ..errors import StoreError
from ..untrusted.readers import local_path
from .common import OK, Commands, positive

YEAR = 2024
LABELS = 10  # pixels of a class whose name the map is told
_COLOURS = {
    "winter wheat": (232, 190, 80),
    "winter barley": (250, 226, 150),
    "maize": (214, 120, 40),
    "sugar beet": (170, 70, 120),
    "potato": (130, 95, 180),
    "grassland": (140, 200, 100),
    "deciduous forest": (60, 140, 60),
    "coniferous forest": (20, 85, 65),
    "water": (60, 120, 200),
    "built-up": (200, 60, 60),
    "road": (150, 150, 150),
}


def add(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="a synthetic tile, end to end and offline")
    demo.add_argument("-o", "--out", default="demo_output", help="folder (default %(default)s)")
    demo.add_argument("--size", type=int, default=128, help="tile side in pixels (default 128)")
    demo.add_argument("--seed", type=int, default=0, help="of the tile (default 0)")
    demo.add_argument("--threads", type=positive, help="default: all that the process may use")
    demo.add_argument(
        "--overwrite", action="store_true", help="replace the picture of another tile"
    )
    demo.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    run_demo(
        args.out, size=args.size, seed=args.seed, threads=args.threads, overwrite=args.overwrite
    )
    return OK


def run_demo(
    out: str | os.PathLike[str],
    *,
    size: int = 128,
    seed: int = 0,
    threads: int | None = None,
    overwrite: bool = False,
) -> None:
    """Make a tile, embed it into ``out``/demo.zarr, draw ``out``/demo.png and say what was done.

    The model is demo-nano, whose weights are part of the package. Its picture has the tile in true
    colour, the principal components of the embeddings, and the classes that ten labelled pixels
    each make of them. Raises what `embed_tiles` raises, and StoreError where demo.png is there and
    not of this tile, unless ``overwrite``.
    """
    from ..drawing.legend import legend
    from ..drawing.quicklook import pca_image, side_by_side, true_colour, write_png
    from ..files import refuse_existing
    from ..jobs.embed_tiles import embed_tiles
    from ..model.model import load_model
    from ..pipeline.embed import embed
    from ..spec import DEMO
    from ..store.reader import tiles_of
    from ..synthetic import CLASSES, synthetic_classes, synthetic_tile

    folder = local_path(out, "out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: expected a folder that can be made ({error})") from error
    started = time.perf_counter()
    tile = synthetic_tile(size, size, seed=seed, year=YEAR)
    truth = synthetic_classes(size, size, seed=seed, year=YEAR)
    made = time.perf_counter() - started
    if tile.name not in [record.name for record in tiles_of(folder / "demo.zarr")]:
        refuse_existing([folder / "demo.png"], overwrite)
    with load_model(DEMO.name, threads=threads) as model:
        (report,) = embed_tiles([tile], folder / "demo.zarr", model).tiles
        values = embed(tile, model)
        found = classified(values, truth, seed)
        captions = [
            f"{tile.name} | true colour (median)",
            f"{DEMO.name}: PCA",
            f"classes, from {LABELS} labelled pixels each",
        ]
        palette = np.array([_COLOURS[name] for name in CLASSES], np.uint8)
        picture = side_by_side([true_colour(tile), pca_image(values), palette[found]], captions)
        shown = [(CLASSES[k], _COLOURS[CLASSES[k]]) for k in np.unique(found)]
        names = legend(shown, picture.shape[1])
        write_png(folder / "demo.png", np.concatenate([picture, names]))
        clear = float(np.mean(tile.s2_masks.rows(0, size)))
        t_s2, t_asc, t_desc = tile.dates
        print(f"tile       {tile.name}: {size} x {size} px, {tile.crs}, made in {made:.1f} s")
        print(
            f"           {t_s2} Sentinel-2 dates ({clear:.0%} clear), {t_asc} + {t_desc} "
            "Sentinel-1 dates"
        )
        print(f"model      {DEMO.name}: trained for a demonstration, not for maps")
        print(f"engine     {model.backend} {model.precision}, {model.provenance()['isa']}")
        if report.state == "done":
            rate = report.pixels / report.seconds
            print(
                f"speed      {report.pixels:,} px in {report.seconds:.1f} s: {rate:,.0f} px/s, "
                "tile to store"
            )
        else:
            print("speed      already in the store: nothing was computed again")
        right = float(np.mean(found == truth))
        print(f"classes    {right:.0%} of the pixels right, from {LABELS} labelled ones of each")
    print(f"store      {folder / 'demo.zarr'}   (xarray.open_zarr(..., group='utm31'))")
    print(f"picture    {folder / 'demo.png'}")


def classified(values: np.ndarray, truth: np.ndarray, seed: int) -> np.ndarray:
    """(H, W) classes of the nearest mean, by cosine, of LABELS pixels of each class in ``truth``.

    ``values`` (H, W, E) float; a pixel without an embedding gets the first class. A class of too
    few pixels for a sample to be one is left out.
    """
    valid = np.isfinite(values).all(axis=-1)
    flat = values[valid] - values[valid].mean(axis=0)
    names = truth[valid]
    classes = [k for k in np.unique(names) if np.sum(names == k) >= 2 * LABELS]
    rng = np.random.default_rng(seed)
    means = np.stack(
        [flat[rng.choice(np.flatnonzero(names == k), LABELS, False)].mean(0) for k in classes]
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    out = np.zeros(truth.shape, truth.dtype)
    out[valid] = np.array(classes, truth.dtype)[(flat @ means.T).argmax(axis=1)]
    return out
