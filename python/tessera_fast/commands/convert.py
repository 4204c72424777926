"""`tessera-fast convert`: a checkpoint as safetensors."""

import argparse

from ..spec import NAMED
from .common import OK, Commands


def add(commands: Commands) -> None:
    convert = commands.add_parser("convert", help="rewrite a checkpoint as safetensors")
    convert.add_argument("source", help="official .pt or .safetensors file")
    convert.add_argument("destination", help="NAME.safetensors, with the model's spec inside")
    convert.add_argument("--model", choices=list(NAMED), help="what the file must be")
    convert.add_argument("--name", help="what the model is called from then on")
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32"
    )
    convert.add_argument("--overwrite", action="store_true")
    convert.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..weights import convert, load_weights

    convert(
        args.source, args.destination, args.model, args.overwrite, dtype=args.dtype, name=args.name
    )
    weights = load_weights(args.destination)
    print(f"{args.destination}: {weights.spec.name}, {len(weights.tensors)} tensors")
    return OK
