"""`tessera-fast verify`: are two outputs the same embeddings, and is one of them sound?"""

import argparse
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError, StoreError
from ..files import refuse_existing
from ..untrusted.readers import local_target
from .common import FAILED, OK, Commands

WIDEST = 100  # columns of the report in a terminal


def add(commands: Commands) -> None:
    verify = commands.add_parser(
        "verify",
        help="compare two outputs pixel by pixel, or check that one is sound",
        description="Compare two outputs pixel by pixel, or check that one is sound. What only one "
        "of two holds (zones, years, tiles, pixels, arrays) is a difference.",
    )
    verify.add_argument("a", metavar="A", help="a .zarr store or a folder of .npy files")
    verify.add_argument("b", metavar="B", nargs="?", help="another; without it A is checked alone")
    verify.add_argument(
        "--gate", help="exact, fp32, bf16, int8 or fp8 (default: the laxer of what both record)"
    )
    verify.add_argument("--maps", metavar="DIR", help="draw where the two differ")
    verify.add_argument("--json", metavar="FILE", help="write the report as JSON as well")
    verify.add_argument(
        "--ignore-provenance",
        action="store_true",
        help="judge the numbers though models, weights or periods differ",
    )
    verify.add_argument(
        "--ignore-missing",
        action="store_true",
        help="compare the common part only: what one side lacks is no difference",
    )
    verify.add_argument("--overwrite", action="store_true", help="replace FILE, and files in DIR")
    verify.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..verification import Check, Comparison, check, verify

    result: Check | Comparison
    if args.json:
        refuse_existing([local_target(args.json, "--json")], args.overwrite)
    if args.b is None:
        asked = [
            o for o in ("gate", "maps", "ignore_provenance", "ignore_missing") if getattr(args, o)
        ]
        if asked:
            raise InputError(f"--{asked[0].replace('_', '-')} compares: give a second output, B")
        result = check(args.a)
        good = result.sound
    else:
        result = verify(
            args.a,
            args.b,
            gate=args.gate or "auto",
            maps=args.maps,
            overwrite=args.overwrite,
            ignore_provenance=args.ignore_provenance,
            ignore_missing=args.ignore_missing,
        )
        good = result.same
    print(result.text(_columns()))
    if args.json:
        _write_json(local_target(args.json, "--json"), result.to_json())
    return OK if good else FAILED


def _columns() -> int | None:
    """Those of the terminal, 100 at most; None where the report goes to a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    return max(40, min(shutil.get_terminal_size().columns, WIDEST))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        partial.replace(path)
    except OSError as error:
        raise StoreError(f"{path}: the report could not be written ({error})") from error
    finally:
        with suppress(OSError):
            partial.unlink()
