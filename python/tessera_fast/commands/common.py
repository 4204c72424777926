"""What the commands share: exit codes and options."""

import argparse
from typing import Any, TypeAlias

from ..errors import FAILED as FAILED
from ..errors import OK as OK
from ..errors import PARTLY as PARTLY
from ..errors import InputError
from ..sizes import parse_bytes
from ..spec import NAMED

# What `add_parser` of argparse is called on; the class has no public name.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """How tiles are opened; `tile_options` gives them to `open_tile`."""
    parser.add_argument("--year", type=int, help="of the tiles, if not in the folder's name")
    parser.add_argument(
        "--period",
        metavar="FIRST/LAST",
        help="only these dates, e.g. 2024-07-01/2025-06-30; a tile needs the dates themselves",
    )
    parser.add_argument(
        "--allow-missing-s1", action="store_true", help="accept tiles without Sentinel-1"
    )
    parser.add_argument(
        "--s1-units",
        choices=("official", "db", "power"),
        help="what Sentinel-1 is in, if the source does not say (default: official int16 scale)",
    )
    parser.add_argument(
        "--s2-offset",
        type=_offset,
        default="removed",
        metavar="present|N",
        help="present: subtract the 1000 added since 2022-01-25; N: subtract N (default: removed)",
    )


def tile_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `open_tile` that were given."""
    return {
        "year": args.year,
        "period": args.period,
        "allow_missing_s1": args.allow_missing_s1,
        "s1_units": args.s1_units,
        "s2_offset": args.s2_offset,
    }


def add_model_options(parser: argparse.ArgumentParser, default: str | None = "v2-medium") -> None:
    """Which model runs, and how."""
    parser.add_argument(
        "--model",
        default=default,
        help=f"{', '.join(NAMED)}, or a checkpoint's path (default {default or 'v2-medium'})",
    )
    parser.add_argument(
        "--weights", help="checkpoint of the named model, or untrained[:SEED] for random weights"
    )
    parser.add_argument("--backend", default="auto", help="auto, cuda, tensorrt, cpu or reference")
    parser.add_argument(
        "--precision",
        default="auto",
        help="auto, fp32, bf16 or int8 (cuda: also fp16, tf32, fp8; tensorrt: fp16, fp8; "
        "reference: fp32, fp64)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        help="default: TESSERA_FAST_THREADS, or the CPUs that the process may use",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the back end's own)")


def size(text: str) -> int:
    try:
        return parse_bytes(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def count_or_auto(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _offset(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text
