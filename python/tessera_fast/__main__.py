"""The command line: `tessera-fast COMMAND`; each is a file of commands/.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some tiles done and then a failure, 130 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from . import __version__
from .commands import IN_ORDER
from .commands.common import FAILED, INTERRUPTED
from .errors import TesseraError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s"
    )
    try:
        code: int = args.run(args)
    except TesseraError as error:
        print(f"tessera-fast: {error}", file=sys.stderr)
        code = getattr(args, "failure", FAILED)
    except KeyboardInterrupt:
        print("tessera-fast: interrupted; finished tiles are kept", file=sys.stderr)
        code = INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tessera-fast", description="TESSERA embeddings of Sentinel-1 and Sentinel-2, fast."
    )
    parser.add_argument("--version", action="version", version=f"tessera-fast {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is chosen and why")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in IN_ORDER:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
