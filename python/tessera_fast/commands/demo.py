"""`tessera-fast demo`: the main job on a synthetic tile."""

import argparse

from .common import OK, Commands, positive


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
    from ..demo import run_demo

    run_demo(
        args.out, size=args.size, seed=args.seed, threads=args.threads, overwrite=args.overwrite
    )
    return OK
