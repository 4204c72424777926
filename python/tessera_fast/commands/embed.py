"""`tessera-fast embed`: tiles into a store or a folder."""

import argparse
import sys
import time

from .common import OK, PARTLY, Commands, add_model_options, size


def add(commands: Commands) -> None:
    embed = commands.add_parser("embed", help="embed tiles into a Zarr store or .npy files")
    embed.add_argument("tiles", nargs="+", metavar="TILE", help="folder in the d-pixel layout")
    embed.add_argument(
        "-o", "--out", required=True,
        help="NAME.zarr for a store in geotessera's layout, else a folder of .npy files",
    )  # fmt: skip
    add_model_options(embed)
    embed.add_argument("--dims", type=int, help="keep a Matryoshka prefix (v2: 16, 32, 64, 128)")
    embed.add_argument("--int8", action="store_true", help=".npy output: codes and scales")
    embed.add_argument("--year", type=int, help="of the tiles, if not in the folder's name")
    embed.add_argument(
        "--memory", type=size,
        help="bound on working memory, e.g. 512MiB (default 1GiB, more with many threads)",
    )  # fmt: skip
    embed.add_argument(
        "--allow-missing-s1", action="store_true", help="accept tiles without Sentinel-1"
    )
    embed.add_argument("--seed", type=int, default=0, help="of v1.0's random dates (default 0)")
    embed.add_argument("--repeats", type=int, default=1, help="v1.0: draws to average (default 1)")
    embed.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..job import TileReport, embed_tiles, open_tiles
    from ..model import load_model

    tiles = open_tiles(args.tiles, year=args.year, allow_missing_s1=args.allow_missing_s1)
    model = load_model(
        args.model, args.device, weights=args.weights, backend=args.backend,
        precision=args.precision, threads=args.threads,
    )  # fmt: skip
    if not model.trained:
        print("untrained weights: these embeddings mean nothing", file=sys.stderr)

    def report(tile: TileReport) -> None:
        args.failure = PARTLY
        if tile.state == "skipped":
            print(f"{tile.name}: already done")
        else:
            rate = tile.pixels / max(tile.seconds, 1e-9)
            missing = f", {tile.no_data:,} without data" if tile.no_data else ""
            print(f"{tile.name}: {tile.pixels:,} px in {tile.seconds:.1f} s, {rate:,.0f} px/s"
                  f"{missing}")  # fmt: skip

    started = time.perf_counter()
    reports = embed_tiles(
        tiles, args.out, model, dims=args.dims, int8=args.int8, memory=args.memory,
        seed=args.seed, repeats=args.repeats, report=report,
    )  # fmt: skip
    done = sum(r.state == "done" for r in reports)
    print(
        f"{done} of {len(reports)} tiles embedded with {model.label} "
        f"({model.backend}, {model.precision}) in {time.perf_counter() - started:.1f} s "
        f"-> {args.out}"
    )
    return OK
