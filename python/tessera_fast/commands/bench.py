"""`tessera-fast bench`: where the time goes."""

import argparse

from ..spec import RELEASED
from .common import OK, Commands, add_model_options, positive

_UNTRAINED = """\
untrained weights: random parameters of this model's sizes, which take the same time; embeddings
made with them mean nothing (--weights PATH takes others)
"""


def add(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="px/s of every stage, share of the hardware's limit")
    bench.add_argument("tile", nargs="?", help="tile folder (default: a synthetic tile)")
    add_model_options(bench)
    bench.add_argument("--size", type=positive, default=64, help="synthetic tile side, pixels")
    bench.add_argument("--rows", type=positive, help="only the first rows of the tile")
    bench.add_argument("--profile", action="store_true", help="and every op of the encoder")
    bench.add_argument(
        "--trace", metavar="FILE.json", help="cuda: a timeline for ui.perfetto.dev, of one pass"
    )
    bench.add_argument("--overwrite", action="store_true", help="replace FILE.json")
    bench.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..diagnostics.profile import report
    from ..files import refuse_existing
    from ..model.model import load_model
    from ..synthetic import synthetic_tile
    from ..tile import open_tile
    from ..untrusted.readers import local_target

    if args.trace:
        refuse_existing([local_target(args.trace, "trace")], args.overwrite)
    tile = open_tile(args.tile) if args.tile else synthetic_tile(args.size, args.size)
    # speed does not depend on what the parameters are, and the hub may be out of reach
    weights = args.weights or ("untrained" if args.model in RELEASED else None)
    with load_model(
        args.model,
        args.device,
        weights=weights,
        backend=args.backend,
        precision=args.precision,
        threads=args.threads,
    ) as model:
        if not model.trained:
            print(_UNTRAINED)
        print(report(tile, model, rows=args.rows, by_op=args.profile, trace=args.trace))
    return OK
