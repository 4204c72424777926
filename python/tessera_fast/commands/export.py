"""`tessera-fast export`: a model as ONNX graphs or TensorRT engines."""

import argparse
import time

from ..spec import RELEASED
from .common import OK, Commands


def add(commands: Commands) -> None:
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
    export.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from ..exporting import export

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
