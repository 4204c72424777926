"""The cuda back end: packing and encoding on an NVIDIA GPU. Triton and CUDA kernels, torch memory.

On device "interpreter" the same code runs on the CPU, in Triton's interpreter and an emulation of
CUDA: slowly, for tests. That needs TRITON_INTERPRET=1 and a build with TESSERA_TEST_ISAS.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ...errors import BackendUnavailable
from ...packages import has, how_to_install, problem
from ...spec import ModelSpec
from ...weights import Weights
from ..base import RunOptions
from .device import INTERPRETER, interpreted

if TYPE_CHECKING:
    from .encoder import CudaEncoder

PRECISIONS = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8")
AUTOMATIC_PRECISION = "bf16"
# The first compute capability with the instructions of a precision; others need 8.0.
_NEEDS = {"fp8": (8, 9)}
_OLDEST = (8, 0)


class CudaBackend:
    name = "cuda"

    def why_not(self, spec: ModelSpec, options: RunOptions) -> str | None:
        """None if ``load`` would run here, else the reason as a sentence."""
        if options.precision not in ("auto", *PRECISIONS):
            return f"the cuda back end runs {', '.join(PRECISIONS)}, not {options.precision}"
        for package in ("torch", "triton"):
            if not has(package):
                return f"{package} is not installed: {how_to_install(package, 'gpu')}"
        kind, _, index = (options.device or "cuda").partition(":")
        if options.device == INTERPRETER:
            if not interpreted():
                return f"device {INTERPRETER!r} is for tests and needs TRITON_INTERPRET=1"
            return _why_no_native("_cuda_emulated", "TESSERA_TEST_ISAS=ON")
        if kind != "cuda" or not (index or "0").isdigit():
            return f"the cuda back end runs on device cuda or cuda:N, not {options.device!r}"
        reason = _why_no_native(
            "_cuda", "nvcc in the path, or TESSERA_CUDA=ON to see what it lacks"
        )
        return reason or _why_no_gpu(int(index or 0), options.precision)

    def load(self, spec: ModelSpec, weights: Weights, options: RunOptions) -> "CudaEncoder":
        """Prepare a model; raises BackendUnavailable with ``why_not``'s sentence."""
        reason = self.why_not(spec, options)
        if reason is not None:
            raise BackendUnavailable(f"back end {self.name}: {reason}")
        import torch

        from .encoder import CudaEncoder

        device = torch.device("cpu" if options.device == INTERPRETER else options.device or "cuda")
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        precision = AUTOMATIC_PRECISION if options.precision == "auto" else options.precision
        return CudaEncoder(spec, weights, device, precision, _native(device.type))


def _native(kind: str) -> Any:
    name = "_cuda" if kind == "cuda" else "_cuda_emulated"
    return importlib.import_module(f"tessera_fast.{name}")


def _why_no_native(name: str, needs: str) -> str | None:
    try:
        importlib.import_module(f"tessera_fast.{name}")
    except ImportError as error:
        return f"the extension module tessera_fast.{name} is missing ({error}): build with {needs}"
    return None


def _why_no_gpu(index: int, precision: str) -> str | None:
    # the driver before torch, which takes a second and 200 MB
    reason = _native("cuda").why_no_device() or problem("torch", "gpu")
    if reason is not None:
        return reason
    import torch

    found = torch.cuda.device_count()
    if found == 0:
        built = torch.version.cuda
        if built is None:
            return "this torch was built without CUDA: install a CUDA build of torch"
        return f"torch (CUDA {built}) finds no GPU: check the driver with nvidia-smi"
    if index >= found:
        return f"device cuda:{index} was asked for, and torch finds {found} CUDA devices"
    if interpreted():
        return "TRITON_INTERPRET=1 is set, which runs no kernel on a GPU: unset it"
    capability = torch.cuda.get_device_capability(index)
    needed = max(_NEEDS.get(precision, _OLDEST), _OLDEST)
    if capability < needed:
        return (
            f"{torch.cuda.get_device_name(index)} has compute capability "
            f"{capability[0]}.{capability[1]}, and {'fp8' if precision == 'fp8' else 'this'} "
            f"needs {needed[0]}.{needed[1]}"
        )
    return None


cuda = CudaBackend()
