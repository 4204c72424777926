"""`tessera-fast distill`: a student from a teacher's embeddings."""

import argparse

from .common import OK, Commands
from .train import add_arguments, leads, print_row, say


def add(commands: Commands) -> None:
    distill = commands.add_parser("distill", help="train a model to give another's embeddings")
    add_arguments(distill)
    distill.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..training import require_torch
    from ..training.config import DistillPart, read_config

    config = read_config(args.config, DistillPart)
    say(f"{args.config}: {config.run.steps:,} steps; PyTorch is loaded")
    require_torch()
    from ..training.runs import distill

    path = distill(
        config, resume=args.resume, report=lambda row: print_row(config.run.steps, row), say=say
    )
    if leads():
        print(path)
    return OK
