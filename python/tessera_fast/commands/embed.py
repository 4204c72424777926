"""`tessera-fast embed`: tiles into a store or a folder."""

import argparse
import re
import sys
from typing import Any

from ..errors import TesseraError
from ..planning.table import Plan
from ..untrusted.readers import Unreadable, parse_json, printable, shown
from .common import (
    FAILED,
    OK,
    PARTLY,
    Commands,
    add_model_options,
    add_tile_options,
    count_or_auto,
    positive,
    size,
    tile_options,
)


def add(commands: Commands) -> None:
    embed = commands.add_parser("embed", help="embed tiles into a Zarr store or .npy files")
    embed.add_argument(
        "tiles",
        nargs="+",
        metavar="TILE",
        help="folder in the d-pixel layout or of such folders, Zarr or netCDF cube, URL, @LIST.txt "
        "with one of these a line, or one PLAN.parquet",
    )
    embed.add_argument(
        "-o",
        "--out",
        required=True,
        help="NAME.zarr for a store in geotessera's layout, else a folder of .npy files",
    )
    add_model_options(embed, default=None)
    embed.add_argument("--dims", type=int, help="keep a Matryoshka prefix (v2: 16, 32, 64, 128)")
    embed.add_argument("--int8", action="store_true", help=".npy output: codes and scales")
    embed.add_argument(
        "--memory",
        type=size,
        help="bound on working memory, e.g. 512MiB (default 1GiB, more with many threads, less "
        "where less is free)",
    )
    add_tile_options(embed)
    embed.add_argument(
        "--window",
        type=positive,
        metavar="PIXELS",
        help="cut larger tiles and cubes into tiles of PIXELS x PIXELS, each done by itself",
    )
    embed.add_argument("--seed", type=int, default=0, help="of v1.0's random dates (default 0)")
    embed.add_argument("--repeats", type=int, default=1, help="v1.0: draws to average (default 1)")
    embed.add_argument(
        "--dry-run", action="store_true", help="say what it would take, as plan does, and end"
    )
    job = embed.add_argument_group("many tiles")
    job.add_argument(
        "--workers",
        type=count_or_auto,
        metavar="N",
        help="supervised processes on this machine; auto: one per GPU or NUMA node",
    )
    job.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="only every N-th tile from I = 0 on: a part of an array job; all write one output",
    )
    job.add_argument(
        "--ray",
        type=count_or_auto,
        metavar="N",
        help="actors on a Ray cluster (RAY_ADDRESS), or on this machine; auto: one per GPU or node",
    )
    job.add_argument(
        "--ray-resources",
        type=_resources,
        metavar="JSON",
        help="of an actor, e.g. '{\"num_gpus\": 0.5}'",
    )
    job.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at a tile that cannot be embedded (default), or go on without it",
    )
    job.add_argument(
        "--retries", type=int, default=2, help="of a tile whose worker was killed (default 2)"
    )
    job.add_argument(
        "--report",
        metavar="FILE.json",
        help="what became of every tile; written too when an error or a signal ends the job",
    )
    embed.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..jobs.embed_tiles import embed_tiles
    from ..jobs.runner import TileReport
    from ..spec import DEMO
    from ..store import Provenance

    def started(provenance: Provenance) -> None:
        if not provenance.trained:
            print("untrained weights: these embeddings mean nothing", file=sys.stderr)
        elif provenance.model == DEMO.name:
            print(f"{DEMO.name}: made for demonstrations, not for maps", file=sys.stderr)

    def report(tile: TileReport) -> None:
        name = printable(tile.name)
        if tile.error is not None:
            print(f"{name}: failed: {printable(str(tile.error))}", file=sys.stderr)
            return
        args.failure = PARTLY
        for warning in tile.warnings:
            print(f"{name}: warning: {warning}", file=sys.stderr)
        if tile.state == "skipped":
            print(f"{name}: already done")
        else:
            rate = tile.pixels / max(tile.seconds, 1e-9)
            missing = f", {tile.no_data:,} without data" if tile.no_data else ""
            print(f"{name}: {tile.pixels:,} px in {tile.seconds:.1f} s, {rate:,.0f} px/s{missing}")

    tiles, model, dims, options = _what(args)
    if args.dry_run:
        return _dry_run(args, tiles, model, dims, options)
    executor, workers = "process", None
    if args.workers is not None or args.ray is not None:
        executor = "local" if args.ray is None else "ray"
        count = args.workers if args.ray is None else args.ray
        workers = None if count == "auto" else count
    result = embed_tiles(
        tiles,
        args.out,
        model,
        weights=args.weights,
        backend=args.backend,
        precision=args.precision,
        device=args.device,
        threads=args.threads,
        dims=dims,
        int8=args.int8,
        memory=args.memory,
        seed=args.seed,
        repeats=args.repeats,
        on_error=args.on_error,
        executor=executor,
        workers=workers,
        retries=args.retries,
        resources=args.ray_resources,
        shard=args.shard,
        window=args.window,
        report=report,
        started=started,
        report_file=args.report,
        **options,
    )
    print(printable(result.summary()))
    failed = result.count("failed")
    return OK if not failed else FAILED if failed == len(result.tiles) else PARTLY


def _what(args: argparse.Namespace) -> tuple[Any, str, int | None, dict[str, Any]]:
    """Tiles or a plan, the model, its width, and how tiles are opened: as planned, or as given."""
    if len(args.tiles) != 1 or not args.tiles[0].endswith(".parquet"):
        return args.tiles, args.model or "v2-medium", args.dims, tile_options(args)
    try:
        plan = Plan.load(args.tiles[0])
    except TesseraError as error:
        if args.report and not args.dry_run:
            from ..jobs.report import JobReport

            JobReport(args.out, error=f"{type(error).__name__}: {error}").save(args.report)
        raise
    return plan, args.model or plan.options["model"], args.dims or plan.options["dims"], {}


def _dry_run(
    args: argparse.Namespace, tiles: Any, model: str, dims: int | None, options: dict[str, Any]
) -> int:
    from ..planning.plan import plan

    if not isinstance(tiles, Plan):
        tiles = plan(
            tiles,
            model,
            backend=args.backend,
            precision=args.precision,
            device=args.device,
            threads=args.threads,
            dims=dims,
            out=args.out,
            int8=args.int8,
            on_error="skip",
            **options,
        )
    print(tiles.summary())
    return FAILED if not tiles.rows else PARTLY if tiles.failed else OK


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N with 0 <= I < N, got {shown(text)}")
    return int(match[1]), int(match[2])


def _resources(text: str) -> dict[str, float]:
    try:
        return parse_json(text)
    except Unreadable as error:
        raise argparse.ArgumentTypeError(
            f"expected a JSON object, got {shown(text)}: {error}"
        ) from error
