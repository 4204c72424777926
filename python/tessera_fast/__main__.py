"""The command line: `tessera-fast COMMAND`; each is a file of commands/.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some tiles done and some not, 130 interrupted, 143
ended by SIGTERM, as a batch system does before it kills.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from . import __version__
from .commands import IN_ORDER
from .commands.common import BROKEN_PIPE, FAILED, INTERRUPTED, TERMINATED
from .errors import TesseraError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s"
    )
    try:
        with _terminated():
            code: int = args.run(args)
        sys.stdout.flush()
    except TesseraError as error:
        print(f"tessera-fast: {error}", file=sys.stderr)
        code = getattr(args, "failure", FAILED)
    except KeyboardInterrupt:
        print(f"tessera-fast: interrupted; {_kept(args)}", file=sys.stderr)
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    except Terminated:
        print(f"tessera-fast: ended by SIGTERM; {_kept(args)}", file=sys.stderr)
        code = TERMINATED
    return code


def _kept(args: argparse.Namespace) -> str:
    """What a command that did not end leaves."""
    return getattr(args, "kept", "finished tiles are kept")


class Terminated(BaseException):
    """SIGTERM came; raised in the main thread so that nothing is left behind."""


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Raise Terminated on the first SIGTERM, where signals can be handled: in a main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another would disturb the tidying up
        raise Terminated

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
