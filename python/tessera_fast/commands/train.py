"""`tessera-fast train`: a model from unlabelled tiles."""

import argparse
import os
import sys

from .common import OK, Commands


def add(commands: Commands) -> None:
    train = commands.add_parser("train", help="train a model on tiles, without labels")
    add_arguments(train)
    train.set_defaults(run=_run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train` and `distill` share."""
    parser.add_argument("config", help="a TOML file (docs/training.md)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in its folder")
    parser.set_defaults(kept="--resume goes on from the last save")


def print_row(steps: int, row: dict[str, float]) -> None:
    """A line of the log for whoever waits."""
    from ..training.logbook import line

    print(line(row, steps), file=sys.stderr, flush=True)


def _run(args: argparse.Namespace) -> int:
    from ..training import require_torch
    from ..training.config import TwinsPart, read_config

    config = read_config(args.config, TwinsPart)
    require_torch()
    from ..training.runs import train

    path = train(config, resume=args.resume, report=lambda row: print_row(config.run.steps, row))
    if int(os.environ.get("RANK", 0)) == 0:
        print(path)
    return OK
