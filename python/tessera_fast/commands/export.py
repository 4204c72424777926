"""`tessera-fast export`: a model for other run times, or a store in other formats."""

import argparse
import sys
import time
from pathlib import Path

from ..spec import NAMED
from .common import OK, Commands

_OF_A_MODEL = ("onnx", "tensorrt")
_OF_A_STORE = ("geotiff", "cog", "npy", "zarr")
# Options of one kind, by the names argparse gives them; None, False or empty if not asked for.
_MODEL_OPTIONS = (
    "precision",
    "weights",
    "layout",
    "int8_output",
    "dims",
    "calibrate",
    "target",
    "refittable",
)
_STORE_OPTIONS = ("bands", "tile", "year", "float32")


def add(commands: Commands) -> None:
    export = commands.add_parser(
        "export",
        help="a model as ONNX graphs or TensorRT engines; a store as GeoTIFF, COG or npy",
        description="Write a model as ONNX graphs or TensorRT engines, or the embeddings of a "
        "store in a format that other programs read.",
    )
    export.add_argument(
        "source",
        metavar="MODEL|STORE",
        help=f"{', '.join(NAMED)}, or a checkpoint's path; or a .zarr store or a folder of .npy "
        "files of embeddings",
    )
    export.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="folder (zarr: the new store)"
    )
    export.add_argument(
        "--format",
        choices=(*_OF_A_MODEL, *_OF_A_STORE),
        help="of a model: onnx (default), tensorrt; of a store: geotiff (default), cog, npy, zarr "
        "(without shards, for GDAL 3.12 and later)",
    )
    export.add_argument("--overwrite", action="store_true", help="replace what is there")
    _add_model_options(export.add_argument_group("options of a model"))
    store = export.add_argument_group("options of a store")
    store.add_argument(
        "--gis", action="store_const", dest="format", const="zarr", help="same as --format zarr"
    )
    store.add_argument("--bands", type=bands, metavar="LIST", help="dimensions, e.g. 0-15,20")
    store.add_argument("--tile", action="append", metavar="NAME", help="only it; may be repeated")
    store.add_argument(
        "--year", action="append", type=int, help="only tiles of it; may be repeated"
    )
    store.add_argument("--float32", action="store_true", help="npy: values, not codes and scales")
    export.set_defaults(run=_run, usage=export.error)


def _add_model_options(model: "argparse._ArgumentGroup") -> None:
    model.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8", "fp8"),
        help="default fp32 for onnx; fp16 for tensorrt, bf16 for the teacher",
    )
    model.add_argument(
        "--weights", help="checkpoint of the named model, or untrained[:SEED] for random weights"
    )
    model.add_argument(
        "--layout",
        choices=("packed", "dense"),
        help="onnx: pixels of any numbers of dates together (default), or of one length",
    )
    model.add_argument("--int8-output", action="store_true", help="codes and scales, not float32")
    model.add_argument("--dims", type=int, help="keep a Matryoshka prefix (v2: 16, 32, 64, 128)")
    model.add_argument(
        "--calibrate",
        metavar="TILE",
        help="int8, fp8: tile whose pixels set the ranges (default: a synthetic tile)",
    )
    model.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="CC",
        help="tensorrt-rtx: compute capability to build for, e.g. 8.9; may be repeated "
        "(default: the GPU that is there)",
    )
    model.add_argument(
        "--refittable", action="store_true", help="tensorrt: other parameters can be put in"
    )


def bands(text: str) -> list[int]:
    """Indices of "0-15,20"."""
    found: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.partition("-")
        ends = (first, last if dash else first)
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise argparse.ArgumentTypeError(f"expected indices such as 0-15,20, got {text!r}")
        found += range(int(ends[0]), int(ends[1]) + 1)
    return found


def _run(args: argparse.Namespace) -> int:
    from ..products.parts import is_output

    store = is_output(args.source)
    kind, other = ("store", "model") if store else ("model", "store")
    wrong = [name for name in (_MODEL_OPTIONS if store else _STORE_OPTIONS) if getattr(args, name)]
    if wrong:
        args.usage(
            f"--{wrong[0].replace('_', '-')} is an option of a {other}, and {args.source} "
            f"is {'' if store else 'not '}a store of embeddings"
        )
    formats = _OF_A_STORE if store else _OF_A_MODEL
    if args.format not in (None, *formats):
        args.usage(
            f"--format {args.format} is for a {other}, and {args.source} is "
            f"{'' if store else 'not '}a store of embeddings; a {kind} takes "
            f"{', '.join(formats)}"
        )
    return _export_store(args) if store else _export_model(args)


def _export_model(args: argparse.Namespace) -> int:
    from ..model.export import export

    started = time.perf_counter()
    folder = export(
        args.source,
        args.out,
        format=args.format or "onnx",
        precision=args.precision,
        layout=args.layout,
        int8_output=args.int8_output,
        dims=args.dims,
        weights=args.weights,
        calibration=args.calibrate,
        targets=args.target,
        refittable=args.refittable,
        overwrite=args.overwrite,
    )
    for file in sorted(folder.iterdir()):
        _print_size(file)
    print(f"exported in {time.perf_counter() - started:.1f} s")
    return OK


def _export_store(args: argparse.Namespace) -> int:
    from ..products.export import export_store
    from ..store.reader import tiles_of

    started = time.perf_counter()
    files = export_store(
        args.source,
        args.out,
        format=args.format or "geotiff",
        bands=args.bands,
        tiles=args.tile,
        years=args.year,
        float32=args.float32,
        overwrite=args.overwrite,
    )
    if args.format != "zarr" and not tiles_of(args.source):
        print(
            f"the state of {args.source} is not there, which lists its tiles: a file is all data "
            "of a zone and year, or of an .npy file",
            file=sys.stderr,
        )
    for file in files:
        _print_size(file)
    print(f"exported in {time.perf_counter() - started:.1f} s")
    return OK


def _print_size(path: Path) -> None:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    print(f"{sum(p.stat().st_size for p in files) / 1e6:10.2f} MB  {path}")
