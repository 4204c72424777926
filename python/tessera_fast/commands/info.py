"""`tessera-fast info`: what runs here."""

import argparse

from .common import OK, Commands


def add(commands: Commands) -> None:
    info = commands.add_parser("info", help="versions, instruction sets, back ends, models")
    info.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..info import describe

    print(describe())
    return OK
