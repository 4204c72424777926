"""What the commands share: exit codes and options."""

import argparse
from typing import TypeAlias

from ..errors import InputError
from ..pipeline import parse_bytes
from ..spec import RELEASED

OK, FAILED, PARTLY, INTERRUPTED = 0, 1, 3, 130
# What `add_parser` of argparse is called on; the class has no public name.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="v2-medium",
        help=f"{', '.join(RELEASED)}, or a checkpoint's path (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", help="checkpoint of the named model, or untrained[:SEED] for random weights"
    )
    parser.add_argument("--backend", default="auto", help="auto, cuda, tensorrt, cpu or reference")
    parser.add_argument(
        "--precision", default="auto",
        help="auto, fp32, bf16 or int8 (cuda: also fp16, tf32, fp8; tensorrt: fp16, fp8; "
        "reference: fp32, fp64)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, help="default: TESSERA_FAST_THREADS or all CPUs"
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
