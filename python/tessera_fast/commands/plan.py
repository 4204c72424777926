"""`tessera-fast plan`: what a job takes, before it is run."""

import argparse

from .common import (
    FAILED,
    OK,
    PARTLY,
    Commands,
    add_model_options,
    add_tile_options,
    positive,
    tile_options,
)


def add(commands: Commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="pixels, tokens, bytes, memory and time of a job",
        description="Open every tile and say what embedding them takes. Needs no weights: "
        "--weights is accepted, as embed's, and not read.",
    )
    plan.add_argument(
        "tiles",
        nargs="+",
        metavar="TILE",
        help="as embed takes them: tiles, cubes, URLs, folders of tiles, @LIST.txt",
    )
    plan.add_argument("-o", "--out", metavar="PLAN.parquet", help="keep the plan, a row a tile")
    plan.add_argument(
        "--to",
        metavar="NAME",
        help="where embed will write: NAME.zarr (refuses what a store cannot place) or a folder",
    )
    add_model_options(plan)
    plan.add_argument("--dims", type=int, help="keep a Matryoshka prefix (v2: 16, 32, 64, 128)")
    plan.add_argument("--int8", action="store_true", help=".npy output: codes and scales")
    add_tile_options(plan)
    plan.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="machines like this one that share the tiles (default 1)",
    )
    plan.add_argument("--rate", type=_rate, metavar="PX_PER_S", help="instead of measuring it here")
    plan.add_argument("--no-calibrate", action="store_true", help="no estimate of time")
    plan.add_argument("--overwrite", action="store_true", help="replace PLAN.parquet")
    plan.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..planning.plan import plan
    from ..planning.table import plan_target
    from ..products.files import check_writable

    if args.out:
        target = plan_target(args.out, args.overwrite)  # say so before the tiles are read
        check_writable(target, make_folders=False)
    found = plan(
        args.tiles,
        args.model,
        backend=args.backend,
        precision=args.precision,
        device=args.device,
        threads=args.threads,
        dims=args.dims,
        out=args.to,
        int8=args.int8,
        workers=args.workers,
        calibrate=not args.no_calibrate,
        rate=args.rate,
        on_error="skip",
        **tile_options(args),
    )
    print(found.summary())
    if not found.rows:
        return FAILED
    if args.out:
        found.save(args.out, args.overwrite)
        print(f"\nplan -> {args.out}")
    return PARTLY if found.failed else OK


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"expected px/s above 0, got {text!r}")
    return rate
