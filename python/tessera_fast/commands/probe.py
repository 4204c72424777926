"""`tessera-fast probe`: what a small head makes of embeddings and few labels."""

import argparse
from typing import Any

from ..errors import InputError
from ..untrusted.readers import local_target
from .common import OK, Commands, add_tile_options, positive


def add(commands: Commands) -> None:
    probe = commands.add_parser(
        "probe",
        help="fit a small head to few labels, beside baselines",
        description="Fit a small head to a few labelled pixels, judge it on other fields, beside "
        "the untrained model and raw features (docs/probes.md).",
    )
    probe.add_argument(
        "embeddings",
        metavar="EMBEDDINGS",
        help="a .zarr store, a folder of .npy files, a .npy file, or a config.toml with the "
        "options below, which the command line overrules",
    )
    probe.add_argument("-o", "--out", metavar="DIR", help="report, pictures and maps")
    probe.add_argument(
        "--labels",
        action="append",
        metavar="[TILE=]FILE",
        help="raster or .npy file, integers for classes, floats for values; repeatable with TILE=",
    )
    probe.add_argument("--tiles", nargs="+", metavar="TILE", help="of the embeddings: baselines")
    probe.add_argument("--model", help="of the untrained baseline, if the store does not say")
    probe.add_argument(
        "--beside", action="append", metavar="NAME=EMBEDDINGS", help="others to compare; repeatable"
    )
    probe.add_argument("--task", choices=("auto", "classification", "regression"))
    probe.add_argument(
        "--head", help="logistic, knn, mlp, forest for classes; ridge, knn, mlp, forest for values"
    )
    probe.add_argument(
        "--split", help="field (default), tile, block, random, or a raster or .npy file of groups"
    )
    probe.add_argument("--block", type=positive, metavar="PIXELS", help="side of a block (16)")
    probe.add_argument(
        "--per-class",
        type=_numbers,
        metavar="LIST",
        help="labelled pixels a class, or in all for values: 1,5,10,20,50 (default), or all",
    )
    probe.add_argument("--seeds", type=positive, help="default 20")
    probe.add_argument(
        "--classes",
        type=_names,
        metavar="LIST",
        help="e.g. 1110=wheat,1500=barley,1510=barley,60=: names, joined classes, left out ones",
    )
    probe.add_argument("--nodata", type=float, help="label that means none (default 0 of classes)")
    probe.add_argument(
        "--extent", choices=("all", "labelled", "none"), help="pixels to be mapped (default all)"
    )
    probe.add_argument("--name", help="of the embeddings in the report")
    add_tile_options(probe)  # as the tiles were embedded
    probe.add_argument("--threads", type=positive, help="of the untrained model")
    probe.add_argument("--overwrite", action="store_true", help="replace DIR")
    # what is not given does not overrule a config
    probe.set_defaults(run=_run, allow_missing_s1=None, s2_offset=None)


def _run(args: argparse.Namespace) -> int:
    from ..probing import probe
    from ..probing.config import read_config
    from ..probing.output import check_folder

    options = (
        read_config(args.embeddings)
        if args.embeddings.endswith(".toml")
        else {"embeddings": args.embeddings}
    )
    options |= _given(args)
    out = options.pop("out", None)
    if "labels" not in options:
        raise InputError("labels: expected --labels FILE, or labels in the config, got none")
    if options.get("per_class") == "all":
        options["per_class"] = None
    if out is not None:
        check_folder(local_target(out, "out"), args.overwrite)
    report = probe(options.pop("embeddings"), options.pop("labels"), **options)
    print(report.text())
    if out is not None:
        print(f"-> {report.save(out, args.overwrite)}")
    return OK


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Options of the command line that were given."""
    found = {
        name: value
        for name, value in vars(args).items()
        if value is not None
        and name not in ("embeddings", "run", "overwrite", "verbose", "labels", "beside")
    }
    if args.labels is not None:
        named = [text.partition("=") for text in args.labels]
        if len(args.labels) == 1 and not named[0][2]:
            found["labels"] = args.labels[0]
        elif all(file for _, _, file in named):
            found["labels"] = {tile: file for tile, _, file in named}
        else:
            raise InputError(f"--labels: expected one FILE, or TILE=FILE, got {args.labels}")
    if args.beside is not None:
        pairs = [text.partition("=") for text in args.beside]
        if not all(source for _, _, source in pairs):
            raise InputError(f"--beside: expected NAME=EMBEDDINGS, got {args.beside}")
        found["beside"] = {name: source for name, _, source in pairs}
    return found


def _numbers(text: str) -> Any:
    return text if text == "all" else [positive(part) for part in text.split(",")]


def _names(text: str) -> dict[int, str]:
    names = {}
    for part in text.split(","):
        code, equals, name = part.partition("=")
        if not equals or not code.strip().isdecimal():
            raise argparse.ArgumentTypeError(f"expected CODE=NAME,..., got {part!r}")
        names[int(code)] = name.strip()
    return names
