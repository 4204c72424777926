"""`tessera_fast.export`: a model as ONNX graphs or TensorRT engines, in a folder of its own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackendUnavailable, InputError
from ..exports.form import PRECISIONS, Form
from ..packages import require
from ..spec import ModelSpec
from ..tile import open_tile
from ..untrusted.readers import local_target
from ..untrusted.suggest import checks_keywords, one_of
from ..weights import Weights, load_weights

if TYPE_CHECKING:
    from ..exports.calibrate import ActivationRanges

FORMATS = ("onnx", "tensorrt")


@checks_keywords()
def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "onnx",
    precision: str | None = None,
    layout: str | None = None,
    int8_output: bool = False,
    dims: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    calibration: Any = None,
    targets: Sequence[str] = (),
    refittable: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write a model's Sentinel-2 encoder, Sentinel-1 encoder and head, and a manifest; the folder.

    ``model`` and ``weights``: as for `load_model`. ``format``: "onnx" (opset 23), or "tensorrt":
    those graphs and an engine for each. ``precision``: fp32, fp16, bf16, int8 or fp8; default fp32
    for ONNX, fp16 for engines (bf16 for the teacher). ``layout`` (ONNX; engines are dense):
    "packed" graphs take pixels of different numbers of dates side by side, "dense" ones sequences
    of one length, in types that TensorRT reads. ``int8_output``: codes and scales instead of
    float32. ``dims``: a Matryoshka prefix. ``calibration``: a tile (as for `embed`) whose pixels
    give int8 and fp8 their ranges; None: the synthetic tile. ``targets``: compute capabilities such
    as "8.9" that TensorRT-RTX builds for; none: the GPU that is there. ``refittable``: engines for
    that GPU whose parameters can be replaced: `load_model` then builds none for other weights of
    the same model.

    The folder ``out`` appears whole or not at all. Raises InputError for an option that does not go
    with another, StoreError if ``out`` exists and ``overwrite`` is False, WeightsError, and
    BackendUnavailable where a package is missing or TensorRT refuses.
    """
    from ..exports import runtime

    one_of("format", format, FORMATS)
    engines = format == "tensorrt"
    if engines and layout not in (None, "dense"):
        raise InputError(f"layout: engines take the dense layout, got {layout!r}")
    if not engines and (targets or refittable):
        raise InputError("targets, refittable: expected with format 'tensorrt' alone")
    runtime.require("onnx")
    loaded = load_weights(model, weights)
    form = Form(
        precision or _default_precision(loaded.spec, engines),
        layout or ("dense" if engines else "packed"),
        int8_output,
        _checked_dims(loaded.spec, dims),
    )
    if calibration is not None and not form.quantized:
        raise InputError(
            f"calibration: expected with precision int8 or fp8 alone, got {form.precision}"
        )
    folder = local_target(out, "out")
    from ..exports import folder as exports

    with exports.whole(folder, overwrite) as made:
        measured = _calibrate(loaded, form, calibration)
        if engines:
            _write_engines(loaded, form, made, tuple(targets), refittable, measured)
        else:
            exports.write_onnx(loaded, form, made, measured)
    return folder


def _default_precision(spec: ModelSpec, engines: bool) -> str:
    from ..backends.base import RunOptions
    from ..backends.tensorrt import precision_of

    return precision_of(spec, RunOptions()) if engines else PRECISIONS[0]


def _checked_dims(spec: ModelSpec, dims: int | None) -> int | None:
    if dims is not None and dims not in spec.prefixes():
        raise InputError(
            f"dims: model {spec.name} can be cut to {', '.join(map(str, spec.prefixes()))} "
            f"dimensions, got {dims}"
        )
    return dims


def _calibrate(weights: Weights, form: Form, source: Any) -> "ActivationRanges | None":
    if not form.quantized:
        return None
    from ..exports.calibrate import ActivationRanges, calibrated_ranges, synthetic_calibration

    if source is None:
        return synthetic_calibration(weights, form.precision)
    tile = open_tile(source)
    window = tile.rows(0, tile.height)
    ranges = calibrated_ranges(weights.spec, weights.tensors, window, form.precision)
    return ActivationRanges(tile.name, ranges)


def _write_engines(
    weights: Weights,
    form: Form,
    folder: Path,
    targets: tuple[str, ...],
    refittable: bool,
    calibration: "ActivationRanges | None",
) -> None:
    from ..backends.tensorrt import adapter
    from ..backends.tensorrt.engines import write_engines

    package = adapter.installed()
    if package is None:
        raise BackendUnavailable(
            "no TensorRT is installed: pip install tensorrt-rtx for RTX cards and to build without "
            "a GPU, tensorrt for others, or on Jetson that of JetPack"
        )
    reason = adapter.too_old(package)
    if reason is not None:
        raise BackendUnavailable(reason)
    device = ""
    if not targets:
        torch = require("torch", "building engines", BackendUnavailable, extra="tensorrt")
        if not torch.cuda.is_available():
            known = ", ".join(adapter.capabilities(package)) or "none"
            raise BackendUnavailable(
                f"no GPU is found to build for; {package.name} builds without one for targets: "
                f"{known}"
            )
        device = torch.cuda.get_device_name()
    write_engines(
        weights,
        form,
        package,
        folder,
        targets=targets,
        device=device,
        refittable=refittable,
        calibration=calibration,
    )
