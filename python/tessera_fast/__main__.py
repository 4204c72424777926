"""The command line: `tessera-fast COMMAND`; each is a file of commands/.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some tiles done and some not, 130 interrupted, 143
ended by SIGTERM, as a batch system does before it kills.
"""

# Little is imported here: a process without memory or open files fails in an import, and `main`
# is where that is said.
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import BROKEN_PIPE, FAILED, INTERRUPTED, TERMINATED, TesseraError
from .version import __version__

if TYPE_CHECKING:
    from .commands.parser import Parser

# What the machine or the installation raises where a limit is reached or a part is missing.
_OF_THE_MACHINE = (MemoryError, OSError, ImportError, SystemError, RuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args: Any = None
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminated():
            args = _parsed(argv)
            code: int = args.run(args)
        if sys.stdout is not None:  # None: it was closed before the start
            sys.stdout.flush()
    except TesseraError as error:
        _say(str(error))
        code = getattr(args, "failure", FAILED)
    except KeyboardInterrupt:
        _say(f"interrupted; {_kept(args)}")
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of the output has seen enough, such as `head`
        _write_no_more()
        code = BROKEN_PIPE
    except _OF_THE_MACHINE as error:
        message = _explained(error)
        if message is None:
            raise
        _write_no_more()
        _say(message)
        _end_quietly()
        code = getattr(args, "failure", FAILED)
    except Terminated:
        _say(f"ended by SIGTERM; {_kept(args)}")
        code = TERMINATED
    return code


def _parsed(argv: Sequence[str] | None) -> Any:
    import logging

    from . import env

    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s"
    )
    # an error of a task of zarr is raised where it is waited for: another copy helps nobody
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    env.warn_of_unknown()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name of a file need not be text of this terminal
            stream.reconfigure(errors="backslashreplace")
    return args


def _explained(error: BaseException) -> str | None:
    """One sentence on an error of the machine; None for one that is a fault of this package."""
    from .packages import last_line, limit_mend

    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(e, MemoryError) for e in chain):
        return (
            "there is not enough memory: give a smaller --memory or fewer --threads, end other "
            "work, or raise the limit (ulimit -v)"
        )
    mends = [mend for e in chain if (mend := limit_mend(str(e)))]
    if mends:
        return f"{last_line(error)}: {mends[0]}"
    if isinstance(error, SystemError):
        return f"{last_line(error)}: the interpreter failed, as it may where memory is short"
    if isinstance(error, OSError):
        return f"{last_line(error)}: check the disk, the rights and the limits of this process"
    if isinstance(error, ImportError) and not str(error.name).startswith(f"{__package__}."):
        return f"{last_line(error)}: install tessera_fast and what it needs again"
    return None


def _say(message: str) -> None:
    """To stderr, which may be closed or on a full disk."""
    with contextlib.suppress(OSError):
        print(f"tessera-fast: {message}", file=sys.stderr)


def _write_no_more() -> None:
    """What is left in the buffer of stdout goes nowhere, where the interpreter flushes it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_quietly() -> None:
    """Libraries that tidy up at the end meet the same limit, and would print where they did."""
    import warnings

    warnings.simplefilter("ignore")
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None


def _kept(args: Any) -> str:
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


def _parser() -> "Parser":
    from .commands import IN_ORDER
    from .commands.parser import Parser

    parser = Parser(
        prog="tessera-fast", description="TESSERA embeddings of Sentinel-1 and Sentinel-2, fast."
    )
    parser.add_argument("--version", action="version", version=f"tessera-fast {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is chosen and why")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for command in IN_ORDER:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
