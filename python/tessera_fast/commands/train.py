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
    """A row of the log for a person who waits."""
    from ..training.logbook import line

    say(line(row, steps))


def say(text: str) -> None:
    """A line on what is done, at once; one of several processes says it."""
    if leads():
        print(text, file=sys.stderr, flush=True)


def leads() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _run(args: argparse.Namespace) -> int:
    from ..training import require_torch
    from ..training.config import TwinsPart, read_config

    config = read_config(args.config, TwinsPart)
    say(f"{args.config}: {config.run.steps:,} steps; PyTorch is loaded")
    require_torch()
    from ..training.runs import train

    path = train(
        config, resume=args.resume, report=lambda row: print_row(config.run.steps, row), say=say
    )
    if leads():
        print(path)
    return OK
