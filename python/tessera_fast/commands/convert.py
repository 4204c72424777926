"""`tessera-fast convert`: a checkpoint as safetensors."""

import argparse

from ..spec import RELEASED
from .common import OK, Commands


def add(commands: Commands) -> None:
    convert = commands.add_parser("convert", help="rewrite a checkpoint as safetensors")
    convert.add_argument("source", help="official .pt or .safetensors file")
    convert.add_argument("destination", help="NAME.safetensors, with the model's spec inside")
    convert.add_argument("--model", choices=list(RELEASED), help="what the file must be")
    convert.add_argument("--overwrite", action="store_true")
    convert.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..weights import convert, load_weights

    convert(args.source, args.destination, args.model, args.overwrite)
    weights = load_weights(args.destination)
    print(f"{args.destination}: {weights.spec.name}, {len(weights.tensors)} tensors")
    return OK
