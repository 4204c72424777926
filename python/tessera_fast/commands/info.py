"""`tessera-fast info`: what runs here."""

import argparse

from . import doctor
from .common import OK, Commands


def add(commands: Commands) -> None:
    info = commands.add_parser("info", help="versions, instruction sets, back ends, models")
    info.add_argument("--check", action="store_true", help="test them, as the command doctor does")
    doctor.add_options(info)
    info.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..diagnostics.info import describe

    if args.check:
        return doctor.run(args)
    print(describe())
    return OK
