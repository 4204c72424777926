"""The tensorrt back end: compiled encoders behind the seam, for GPU boxes that run TensorRT.

Never chosen by "auto" until a measurement shows where it beats the cuda back end. On device
"onnxruntime" the same batches run through the same graphs in ONNX Runtime on the CPU, for tests.
"""

from typing import TYPE_CHECKING

from ...errors import BackendUnavailable
from ...exports.form import PRECISIONS, Form
from ...packages import has, how_to_install, problem
from ...spec import ModelSpec
from ...weights import Weights
from ..base import RunOptions
from . import adapter
from .device import EMULATED

if TYPE_CHECKING:
    from .encoder import TensorrtEncoder

# The first compute capability with the products of a precision.
_NEEDS = {"bf16": (8, 0), "fp8": (8, 9)}
_OLDEST = (7, 5)


class TensorrtBackend:
    name = "tensorrt"

    def why_not(self, spec: ModelSpec, options: RunOptions) -> str | None:
        """None if ``load`` would run here, else the reason as a sentence."""
        if options.precision not in ("auto", *PRECISIONS):
            return f"the tensorrt back end runs {', '.join(PRECISIONS)}, not {options.precision}"
        for needed, extra in (("onnx", "onnx"), ("torch", "tensorrt")):
            if not has(needed):
                return f"{needed} is not installed: {how_to_install(needed, extra)}"
        if options.device == EMULATED or _quantized(options):
            if not has("onnxruntime"):
                return f"onnxruntime is not installed: {how_to_install('onnxruntime')}"
            if options.device == EMULATED:
                return None
        kind, _, index = (options.device or "cuda").partition(":")
        if kind != "cuda" or not (index or "0").isdigit():
            return f"the tensorrt back end runs on device cuda or cuda:N, not {options.device!r}"
        package = adapter.installed()
        if package is None:
            return (
                "no TensorRT is installed: pip install tensorrt-rtx for RTX cards, tensorrt for "
                "others, or on Jetson that of JetPack"
            )
        reason = adapter.too_old(package)
        if reason is not None:
            return reason
        return _why_no_gpu(package, int(index or 0), precision_of(spec, options))

    def load(self, spec: ModelSpec, weights: Weights, options: RunOptions) -> "TensorrtEncoder":
        """Prepare a model, building its engines where no cached ones fit (minutes for TensorRT);
        raises BackendUnavailable with ``why_not``'s sentence."""
        reason = self.why_not(spec, options)
        if reason is not None:
            raise BackendUnavailable(f"back end {self.name}: {reason}")
        from .encoder import TensorrtEncoder

        form = Form(precision_of(spec, options), "dense")
        return TensorrtEncoder(weights, form, options.device or "cuda")


def precision_of(spec: ModelSpec, options: RunOptions) -> str:
    """What "auto" is: fp16, which keeps three more bits than bf16 at its speed; bf16 where the
    residual stream is never normalised (the teacher) and might outgrow float16."""
    if options.precision != "auto":
        return options.precision
    return "bf16" if spec.pre_norm else "fp16"


def _quantized(options: RunOptions) -> bool:
    return options.precision in ("int8", "fp8")


def _why_no_gpu(package: adapter.Package, index: int, precision: str) -> str | None:
    reason = problem("torch", "tensorrt")
    if reason is not None:
        return reason
    import torch

    found = torch.cuda.device_count()
    if found == 0:
        return "torch finds no GPU: check with nvidia-smi, and that torch is a CUDA build"
    if index >= found:
        return f"device cuda:{index} was asked for, and torch finds {found} CUDA devices"
    capability = torch.cuda.get_device_capability(index)
    written = "{}.{}".format(*capability)
    card = f"{torch.cuda.get_device_name(index)} has compute capability {written}"
    needed = max(_NEEDS.get(precision, _OLDEST), _OLDEST)
    if capability < needed:
        return f"{card}, and {precision} needs {needed[0]}.{needed[1]}"
    known = adapter.capabilities(package)
    if known and written not in known:
        return (
            f"{card}, and {package.name} {package.version} builds for {', '.join(known)}: install "
            "tensorrt instead"
        )
    return None


tensorrt = TensorrtBackend()
