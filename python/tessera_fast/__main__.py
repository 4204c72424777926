"""The command line: `tessera-fast COMMAND`, one function below for each.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some tiles done and then a failure, 130 interrupted.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import InputError, TesseraError
from .pipeline import parse_bytes
from .spec import RELEASED

OK, FAILED, PARTLY, INTERRUPTED = 0, 1, 3, 130


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

    embed = commands.add_parser("embed", help="embed tiles into a Zarr store or .npy files")
    embed.add_argument("tiles", nargs="+", metavar="TILE", help="folder in the d-pixel layout")
    embed.add_argument(
        "-o", "--out", required=True,
        help="NAME.zarr for a store in geotessera's layout, else a folder of .npy files",
    )  # fmt: skip
    _add_model_options(embed)
    embed.add_argument("--dims", type=int, help="keep a Matryoshka prefix (v2: 16, 32, 64, 128)")
    embed.add_argument("--int8", action="store_true", help=".npy output: codes and scales")
    embed.add_argument("--year", type=int, help="of the tiles, if not in the folder's name")
    embed.add_argument(
        "--memory", type=_size,
        help="bound on working memory, e.g. 512MiB (default 1GiB, more with many threads)",
    )  # fmt: skip
    embed.add_argument(
        "--allow-missing-s1", action="store_true", help="accept tiles without Sentinel-1"
    )
    embed.add_argument("--seed", type=int, default=0, help="of v1.0's random dates (default 0)")
    embed.add_argument("--repeats", type=int, default=1, help="v1.0: draws to average (default 1)")
    embed.set_defaults(run=_embed)

    demo = commands.add_parser("demo", help="a synthetic tile, end to end and offline")
    demo.add_argument("-o", "--out", default="demo_output", help="folder (default %(default)s)")
    demo.add_argument("--size", type=int, default=128, help="tile side in pixels (default 128)")
    demo.add_argument("--seed", type=int, default=0, help="of the tile (default 0)")
    demo.add_argument("--threads", type=_positive, help="default: all CPUs")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="px/s of every stage, share of the hardware's limit")
    bench.add_argument("tile", nargs="?", help="tile folder (default: a synthetic tile)")
    _add_model_options(bench)
    bench.add_argument("--size", type=_positive, default=64, help="synthetic tile side, pixels")
    bench.add_argument("--rows", type=_positive, help="only the first rows of the tile")
    bench.add_argument("--profile", action="store_true", help="and every op of the encoder")
    bench.add_argument(
        "--trace", metavar="FILE.json", help="cuda: a timeline for ui.perfetto.dev, of one pass"
    )
    bench.set_defaults(run=_bench)

    convert = commands.add_parser("convert", help="rewrite a checkpoint as safetensors")
    convert.add_argument("source", help="official .pt or .safetensors file")
    convert.add_argument("destination", help="NAME.safetensors, with the model's spec inside")
    convert.add_argument("--model", choices=list(RELEASED), help="what the file must be")
    convert.add_argument("--overwrite", action="store_true")
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="write ONNX graphs or TensorRT engines")
    export.add_argument(
        "model", help=f"{', '.join(RELEASED)}, or a checkpoint's path", metavar="MODEL"
    )
    export.add_argument("-o", "--out", required=True, metavar="DIR", help="folder, made whole")
    export.add_argument("--format", choices=("onnx", "tensorrt"), default="onnx")
    export.add_argument(
        "--precision", choices=("fp32", "fp16", "bf16", "int8", "fp8"),
        help="default fp32 for onnx; fp16 for tensorrt, bf16 for the teacher",
    )  # fmt: skip
    export.add_argument(
        "--weights", help="checkpoint of the named model, or untrained[:SEED] for random weights"
    )
    export.add_argument(
        "--layout", choices=("packed", "dense"),
        help="onnx: pixels of any numbers of dates together (default), or of one length",
    )  # fmt: skip
    export.add_argument("--int8-output", action="store_true", help="codes and scales, not float32")
    export.add_argument("--dims", type=int, help="keep a Matryoshka prefix (v2: 16, 32, 64, 128)")
    export.add_argument(
        "--calibrate", metavar="TILE",
        help="int8, fp8: tile whose pixels set the ranges (default: a synthetic tile)",
    )  # fmt: skip
    export.add_argument(
        "--target", action="append", default=[], metavar="CC",
        help="tensorrt-rtx: compute capability to build for, e.g. 8.9; may be repeated "
        "(default: the GPU that is there)",
    )  # fmt: skip
    export.add_argument(
        "--refittable", action="store_true", help="tensorrt: other parameters can be put in"
    )
    export.add_argument("--overwrite", action="store_true")
    export.set_defaults(run=_export)

    repository = commands.add_parser(
        "model-repository", help="an export as models of Triton Inference Server"
    )
    repository.add_argument("export", metavar="EXPORT", help="folder written by export")
    repository.add_argument("-o", "--out", required=True, metavar="DIR", help="new, or added to")
    repository.add_argument("--name", help="of the models (default: tessera-MODEL)")
    repository.add_argument("--version", type=_positive, default=1, help="default 1")
    repository.add_argument("--max-batch", type=_positive, default=256, help="pixels; default 256")
    repository.add_argument("--cpu", action="store_true", help="run on the server's processors")
    repository.set_defaults(run=_model_repository)

    info = commands.add_parser("info", help="versions, instruction sets, back ends, models")
    info.set_defaults(run=_info)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
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
        "--threads", type=_positive, help="default: TESSERA_FAST_THREADS or all CPUs"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the back end's own)")


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _embed(args: argparse.Namespace) -> int:
    from .job import TileReport, embed_tiles, open_tiles
    from .model import load_model

    tiles = open_tiles(args.tiles, year=args.year, allow_missing_s1=args.allow_missing_s1)
    model = load_model(
        args.model, args.device, weights=args.weights, backend=args.backend,
        precision=args.precision, threads=args.threads,
    )  # fmt: skip
    if not model.trained:
        print("untrained weights: these embeddings mean nothing", file=sys.stderr)

    def report(tile: TileReport) -> None:
        args.failure = PARTLY
        if tile.state == "skipped":
            print(f"{tile.name}: already done")
        else:
            rate = tile.pixels / max(tile.seconds, 1e-9)
            missing = f", {tile.no_data:,} without data" if tile.no_data else ""
            print(f"{tile.name}: {tile.pixels:,} px in {tile.seconds:.1f} s, {rate:,.0f} px/s"
                  f"{missing}")  # fmt: skip

    started = time.perf_counter()
    reports = embed_tiles(
        tiles, args.out, model, dims=args.dims, int8=args.int8, memory=args.memory,
        seed=args.seed, repeats=args.repeats, report=report,
    )  # fmt: skip
    done = sum(r.state == "done" for r in reports)
    print(
        f"{done} of {len(reports)} tiles embedded with {model.label} "
        f"({model.backend}, {model.precision}) in {time.perf_counter() - started:.1f} s "
        f"-> {args.out}"
    )
    return OK


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo

    run_demo(args.out, size=args.size, seed=args.seed, threads=args.threads)
    return OK


def _bench(args: argparse.Namespace) -> int:
    from .model import load_model
    from .profiling import report
    from .synthetic import synthetic_tile
    from .tile import open_tile

    tile = open_tile(args.tile) if args.tile else synthetic_tile(args.size, args.size)
    # speed does not depend on what the parameters are, and the hub may be out of reach
    weights = args.weights or ("untrained" if args.model in RELEASED else None)
    with load_model(
        args.model, args.device, weights=weights, backend=args.backend,
        precision=args.precision, threads=args.threads,
    ) as model:  # fmt: skip
        print(report(tile, model, rows=args.rows, by_op=args.profile, trace=args.trace))
    return OK


def _convert(args: argparse.Namespace) -> int:
    from .weights import convert, load_weights

    convert(args.source, args.destination, args.model, args.overwrite)
    weights = load_weights(args.destination)
    print(f"{args.destination}: {weights.spec.name}, {len(weights.tensors)} tensors")
    return OK


def _export(args: argparse.Namespace) -> int:
    from .exporting import export

    started = time.perf_counter()
    folder = export(
        args.model, args.out, format=args.format, precision=args.precision, layout=args.layout,
        int8_output=args.int8_output, dims=args.dims, weights=args.weights,
        calibration=args.calibrate, targets=args.target, refittable=args.refittable,
        overwrite=args.overwrite,
    )  # fmt: skip
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size / 1e6:10.2f} MB  {file}")
    print(f"exported in {time.perf_counter() - started:.1f} s")
    return OK


def _model_repository(args: argparse.Namespace) -> int:
    from .exports.repository import write_repository

    export, out = Path(args.export), Path(args.out)
    write_repository(
        export, out, name=args.name, version=args.version, max_batch=args.max_batch, cpu=args.cpu
    )
    for folder in sorted(p.parent for p in out.glob("*/config.pbtxt")):
        versions = sorted(p.name for p in folder.iterdir() if p.is_dir())
        print(f"{folder}: version {', '.join(versions)}")
    return OK


def _info(args: argparse.Namespace) -> int:
    from .info import describe

    print(describe())
    return OK


if __name__ == "__main__":
    sys.exit(main())
