"""Where a batch runs: a stream, buffers of fixed addresses, and one graph of a model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ... import env
from ...exports import folder, runtime
from ...exports.calibrate import synthetic_calibration
from ...exports.form import Form
from ...spec import S1_BANDS, S2_BANDS
from ...weights import Weights
from ..base import capturing
from . import adapter
from .engines import BATCH_SLOTS, batch_pixels, engines, group_of

# Of the encoders' inputs, and of the rows that a batch's results belong to.
_TYPES = {
    "bands": torch.float32,
    "doy": torch.int32,
    "orbit": torch.int32,
    "rows": torch.int64,
}
_LEAST_WORKSPACE = 256  # bytes: an engine that needs none is given an address all the same


class Module(Protocol):
    """One graph of a model, ready to run."""

    part: str

    def workspace_bytes(self) -> int:
        """Device memory that it works in."""

    def enqueue(self, context: Any, inputs: Mapping[str, Tensor], output: Tensor) -> None:
        """Start the work on the current stream: inputs and output are contiguous, on the device."""

    def context(self, length: int, workspace: Tensor) -> Any:
        """What ``enqueue`` needs to run sequences of this length in ``workspace``."""


class EngineModule:
    """A TensorRT engine."""

    def __init__(self, part: str, engine: adapter.Engine) -> None:
        self.part, self._engine = part, engine

    def workspace_bytes(self) -> int:
        return self._engine.workspace_bytes()

    def context(self, length: int, workspace: Tensor) -> adapter.Context:
        profile = 0 if self.part == "head" else group_of(length)
        stream = torch.cuda.current_stream().cuda_stream
        return self._engine.context(profile, stream, (workspace.data_ptr(), workspace.nbytes))

    def enqueue(self, context: Any, inputs: Mapping[str, Tensor], output: Tensor) -> None:
        places = {name: (tuple(t.shape), t.data_ptr()) for name, t in inputs.items()}
        result = "embedding" if self.part == "head" else "pooled"
        stream = torch.cuda.current_stream().cuda_stream
        context.enqueue(places, {result: output.data_ptr()}, stream)


class EmulatedModule:
    """The same graph in ONNX Runtime on the CPU."""

    def __init__(self, part: str, session: Any) -> None:
        self.part, self._session = part, session

    def workspace_bytes(self) -> int:
        return 0

    def context(self, length: int, workspace: Tensor) -> None:
        return None

    def enqueue(self, context: Any, inputs: Mapping[str, Tensor], output: Tensor) -> None:
        arrays = {name: t.numpy() for name, t in inputs.items()}
        output.copy_(torch.from_numpy(self._session.run(None, arrays)[0]))


def engine_modules(
    weights: Weights, form: Form, device: torch.device
) -> tuple[dict[str, Module], dict[str, Any]]:
    """The engines of a model on a GPU, and what a store should record of them."""
    package = adapter.installed()
    assert package is not None, "why_not has looked"
    card = torch.cuda.get_device_name(device)
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    with torch.cuda.device(device):
        found, where = engines(weights, form, package, capability, card)
    facts = {package.name: package.version, "device": card, "engines": where.name}
    facts |= _calibrated(folder.read_manifest(where))
    return {part: EngineModule(part, engine) for part, engine in found.items()}, facts


def emulated_modules(weights: Weights, form: Form) -> tuple[dict[str, Module], dict[str, Any]]:
    """The graphs of the engines in ONNX Runtime."""
    calibration = synthetic_calibration(weights, form.precision) if form.quantized else None
    with folder.scratch() as place:
        described = folder.write_onnx(weights, form, place, calibration)
        modules: dict[str, Module] = {
            part: EmulatedModule(part, runtime.session(place / graph["file"]))
            for part, graph in described["graphs"].items()
        }
    facts = {"onnxruntime": runtime.version(), "device": "cpu"}
    return modules, facts | _calibrated(described)


def _calibrated(manifest: dict[str, Any]) -> dict[str, str]:
    """Which tile the ranges of int8 and fp8 come from, where there are any."""
    calibration = manifest["calibration"]
    return {"calibration": calibration["source"]} if calibration else {}


class Workspace:
    """Device memory that the engines of several lanes work in, one after the other."""

    def __init__(self, modules: Sequence[Module], device: torch.device) -> None:
        size = max(_LEAST_WORKSPACE, *(module.workspace_bytes() for module in modules))
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._free = torch.cuda.Event() if device.type == "cuda" else None

    @contextmanager
    def turn(self, stream: "torch.cuda.Stream | None") -> Iterator[None]:
        """What is enqueued on ``stream`` here comes after the turns before, of any stream."""
        if stream is None or self._free is None:
            yield
            return
        stream.wait_event(self._free)
        try:
            yield
        finally:
            self._free.record(stream)


class Lane:
    """Runs batches of one module, one after the other, on a stream of its own.

    A batch goes through buffers at fixed addresses, so that the launches of a full batch can be
    replayed as a CUDA graph (TESSERA_FAST_TENSORRT_GRAPHS=1): each graph has a context of its own,
    as TensorRT ties a context's state to the shapes it was captured with.
    """

    def __init__(
        self, module: Module, device: torch.device, workspace: Workspace, capturable: bool
    ) -> None:
        self._module, self._device = module, device
        self._cuda = device.type == "cuda"
        self._capture = self._cuda and capturable and env.tensorrt_graphs()
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._idle = torch.cuda.Event() if self._cuda else None
        self._workspace = workspace
        if self._stream is not None:
            workspace.memory.record_stream(self._stream)
        self._contexts: dict[int, Any] = {}  # by profile
        self._graphs: dict[int, tuple[Any, Any]] = {}  # by length: a context and what was captured
        if module.part == "head":
            self.inputs: tuple[str, ...] = ()
            return
        radar = module.part == "s1_encoder"
        self.bands = len(S1_BANDS if radar else S2_BANDS)
        self.inputs = ("bands", "doy", "orbit") if radar else ("bands", "doy")
        widths = {"bands": self.bands}
        with self._on_stream():
            self._host, self._buffers = (
                {
                    name: torch.empty(
                        BATCH_SLOTS * widths.get(name, 1),
                        dtype=_TYPES[name],
                        device=place,
                        pin_memory=self._cuda and place == "cpu",
                    )
                    for name in (*self.inputs, "rows")
                }
                for place in ("cpu", device)
            )
        self._output: Tensor | None = None

    def follow(self) -> None:
        """Later work comes after what the caller's stream holds now."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def join(self) -> None:
        """The caller's stream waits for the work so far."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def run(self, inputs: dict[str, np.ndarray], pooled: Tensor, rows: np.ndarray) -> None:
        """Write ``rows`` of ``pooled`` from the inputs of an encoder (P, T, ...)."""
        if self._idle is not None:
            self._idle.synchronize()  # the last copy from the pinned buffers has ended
        arrays = {**inputs, "rows": rows}
        for name, array in arrays.items():
            flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1))
            self._host[name][: flat.numel()].copy_(flat)
        with self._on_stream():
            if self._output is None:
                self._output = torch.empty(batch_pixels(1), pooled.shape[1], device=self._device)
            for name, array in arrays.items():
                size = prod(array.shape)
                self._buffers[name][:size].copy_(self._host[name][:size], non_blocking=True)
            if self._idle is not None:
                self._idle.record()
            there = {n: self._buffers[n][: prod(a.shape)].view(a.shape) for n, a in arrays.items()}
            places, output = there.pop("rows"), self._output[: len(rows)]
            with self._workspace.turn(self._stream):
                self._launch(there, output)
                pooled.index_copy_(0, places, output)

    def run_on_device(self, inputs: dict[str, Tensor], output: Tensor) -> None:
        """Write ``output`` from tensors that lie on the device already."""
        with self._on_stream(), self._workspace.turn(self._stream):
            self._module.enqueue(self._context(0), inputs, output)

    def _launch(self, inputs: dict[str, Tensor], output: Tensor) -> None:
        length = inputs["doy"].shape[1]
        if not self._capture or len(output) < batch_pixels(length):
            self._module.enqueue(self._context(length), inputs, output)
            return
        if length not in self._graphs:
            context = self._module.context(length, self._workspace.memory)
            self._module.enqueue(context, inputs, output)  # a first run does more: not captured
            assert self._stream is not None
            with capturing(self._stream) as graph:
                self._module.enqueue(context, inputs, output)
            self._graphs[length] = context, graph
        self._graphs[length][1].replay()

    def _context(self, length: int) -> Any:
        profile = 0 if self._module.part == "head" else group_of(length)
        if profile not in self._contexts:
            self._contexts[profile] = self._module.context(length, self._workspace.memory)
        return self._contexts[profile]

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
