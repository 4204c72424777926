"""The stock ways to run the official model on a CPU, as contenders of compare_stock.py.

All of them get the official module, our weights and standardised sequences padded by the official
rule, in memory. All but eager torch in float32 get one favour: the sines of the day of year come
from a table, which changes no value and makes ONNX Runtime and OpenVINO 10-15 % faster on v2-nano.
P pixels, T steps, C bands; a sequence is (P, T, C + 1) float32, the day of year last.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import official
from tessera_fast.packing import PackedTokens
from tessera_fast.reference import ops
from tessera_fast.reference.model import padded_steps
from tessera_fast.spec import MAX_DOY, ModelSpec
from tessera_fast.weights import Weights

PACKAGES = ("onnx", "onnxruntime", "openvino")
# What changes how engines run without a word of code: see compare_stock.py.
VARIABLES = (
    "TESSERA_FAST_ISA",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "OV_CPU_MAX_ISA",
    "GOMP_SPINCOUNT",
    "OMP_WAIT_POLICY",
)


@dataclass(frozen=True)
class Padded:
    """Pixels of equal padded lengths."""

    rows: np.ndarray  # (P,) places in the output
    s2: np.ndarray  # (P, T, 11)
    s1: np.ndarray  # (P, T, 3)

    @property
    def lengths(self) -> tuple[int, int]:
        return self.s2.shape[1], self.s1.shape[1]

    def chunks(self, size: int) -> Iterator["Padded"]:
        """Batches of at most ``size`` pixels, as views."""
        for i in range(0, len(self.rows), size):
            part = slice(i, i + size)
            yield Padded(self.rows[part], self.s2[part], self.s1[part])


def pad(spec: ModelSpec, s2: PackedTokens, s1: PackedTokens) -> list[Padded]:
    """Packed tokens as the sequences that the official code gives its model, by lengths."""
    streams = [_sequences(spec, packed) for packed in (s2, s1)]
    by_lengths: dict[tuple[int, int], list[int]] = {}
    for p, pair in enumerate(zip(*streams, strict=True)):
        by_lengths.setdefault((len(pair[0]), len(pair[1])), []).append(p)
    return [
        Padded(np.array(rows), *(np.stack([stream[p] for p in rows]) for stream in streams))
        for _, rows in sorted(by_lengths.items())
    ]


def _sequences(spec: ModelSpec, packed: PackedTokens) -> list[np.ndarray]:
    """(T, C + 1) of every pixel; without a date, zeros in standardised units on day 0."""
    bands = torch.from_numpy(packed.bands.astype(np.float32))
    mean, std = ops.statistics_rows(spec.statistics, bands.shape[1])
    row = torch.from_numpy(packed.orbit.astype(np.int64))
    values = ops.standardize(bands, row, mean, std).numpy()
    tokens = np.column_stack([values, packed.doy.astype(np.float32)])
    nothing = np.zeros((spec.empty_steps, tokens.shape[1]), np.float32)
    steps = (padded_steps(packed, p) for p in range(packed.pixels))
    return [tokens[s] if len(s) else nothing for s in steps]


class DayTable(nn.Module):
    """An official positional encoder, tabulated."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        days = torch.arange(MAX_DOY + 1)
        self.register_buffer("table", encoder(days[None])[0])

    def forward(self, doy: torch.Tensor) -> torch.Tensor:
        return self.table[doy.long()]


def build_with_table(checkout: Path, weights: Weights) -> nn.Module:
    net = official.build(checkout, weights).requires_grad_(False)
    for backbone in (net.s2_backbone, net.s1_backbone):
        backbone.temporal_encoder = DayTable(backbone.temporal_encoder)
    return net


Call = Callable[[Padded], np.ndarray]
Run = Callable[[np.ndarray], None]  # fills (P, E)


def _in_turn(batches: list[Padded], call: Call) -> Run:
    def run(out: np.ndarray) -> None:
        for batch in batches:
            out[batch.rows] = call(batch)[:, : out.shape[1]]

    return run


class Torch:
    """Eager or compiled: frozen, a program for every shape (a dynamic one is slower)."""

    side_by_side = False

    def __init__(self, net: nn.Module, autocast: bool = False, compiled: bool = False) -> None:
        self.precision = "bf16" if autocast else "fp32"
        self.compiled = compiled
        self.engine = {"torch": torch.__version__}
        self._net = net
        if compiled:
            from torch._dynamo import config as dynamo
            from torch._inductor import config as inductor

            inductor.freezing = True
            dynamo.recompile_limit = 1_000_000  # beyond it torch runs eagerly
            dynamo.accumulated_recompile_limit = 1_000_000
            self._net = torch.compile(net, dynamic=False)

    def load(self, batches: list[Padded], lanes: int) -> Run:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

        def call(batch: Padded) -> np.ndarray:
            with torch.no_grad(), autocast:
                values = self._net(torch.from_numpy(batch.s2), torch.from_numpy(batch.s1))
            return values.float().numpy()

        return _in_turn(batches, call)


class Exports:
    """ONNX files of a module, one per pair of lengths: v1.1 unrolls its GRU over them."""

    def __init__(self, net: nn.Module, folder: Path) -> None:
        self._net, self._folder = net, folder

    def path(self, batch: Padded) -> Path:
        path = self._folder / "fp32_{}_{}.onnx".format(*batch.lengths)
        if not path.exists():
            self._export(batch, path)
        return path

    def _export(self, batch: Padded, path: Path) -> None:
        # Two pixels, as a batch of one would become a constant. The fast path of eager torch has
        # no ONNX counterpart. The exporter of torch.export gives no faster file and takes longer.
        sample = tuple(torch.from_numpy(np.repeat(x[:1], 2, 0)) for x in (batch.s2, batch.s1))
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # lengths become constants, as they should
                torch.onnx.export(
                    self._net,
                    sample,
                    str(path),
                    dynamo=False,
                    input_names=["s2", "s1"],
                    output_names=["e"],
                    dynamic_axes={name: {0: "p"} for name in ("s2", "s1", "e")},
                )
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)

    def quantized(self, batch: Padded) -> Path:
        """Dynamic int8. Without VNNI, weights of 7 bits: sums of 8-bit products saturate there."""
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        path = self._folder / "int8_{}_{}.onnx".format(*batch.lengths)
        if not path.exists():
            cpuinfo = Path("/proc/cpuinfo")
            flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
            saturates = "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni"}
            # Folds constants: the GRU's weights are transposed at every step otherwise, in fp32.
            quant_pre_process(self.path(batch), path, skip_symbolic_shape=True)
            quantize_dynamic(path, path, per_channel=True, reduce_range=saturates)
        return path


class OnnxRuntime:
    """``lanes`` batches side by side, the threads shared out among them."""

    compiled = False
    side_by_side = True

    def __init__(self, exports: Exports, threads: int, int8: bool = False) -> None:
        import onnxruntime

        self.precision = "int8" if int8 else "fp32"
        self.engine = {"onnxruntime": onnxruntime.__version__}
        self._file = exports.quantized if int8 else exports.path
        self._threads = threads

    def load(self, batches: list[Padded], lanes: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads // lanes
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        sessions: dict[tuple[int, int], Any] = {}
        for batch in batches:
            if batch.lengths not in sessions:
                sessions[batch.lengths] = onnxruntime.InferenceSession(
                    str(self._file(batch)), options, providers=["CPUExecutionProvider"]
                )

        def call(batch: Padded) -> np.ndarray:
            return sessions[batch.lengths].run(["e"], {"s2": batch.s2, "s1": batch.s1})[0]

        if lanes == 1:
            return _in_turn(batches, call)
        pool = ThreadPoolExecutor(lanes)

        def run(out: np.ndarray) -> None:
            for batch, values in zip(batches, pool.map(call, batches), strict=True):
                out[batch.rows] = values[:, : out.shape[1]]

        return run


class OpenVino:
    """Compiled for every shape, in ``lanes`` streams."""

    compiled = False
    side_by_side = True

    def __init__(self, exports: Exports, threads: int, bf16: bool = False) -> None:
        import openvino

        self.precision = "bf16" if bf16 else "fp32"
        self.engine = {"openvino": openvino.__version__}
        self._exports = exports
        self._core = openvino.Core()
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "ENABLE_HYPER_THREADING": True,  # threads are counted as the others count them
        }

    @staticmethod
    def has_bf16() -> bool:
        import openvino

        return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def load(self, batches: list[Padded], lanes: int) -> Run:
        import openvino

        hint = "THROUGHPUT" if lanes > 1 else "LATENCY"
        options = {**self._options, "PERFORMANCE_HINT": hint, "NUM_STREAMS": lanes}
        shapes: dict[tuple[int, ...], list[Padded]] = {}
        for batch in batches:
            shapes.setdefault((len(batch.rows), *batch.lengths), []).append(batch)
        queues = {}
        for shape, members in shapes.items():
            model = self._core.read_model(self._exports.path(members[0]))
            model.reshape({"s2": list(members[0].s2.shape), "s1": list(members[0].s1.shape)})
            queue = openvino.AsyncInferQueue(self._core.compile_model(model, "CPU", options))
            queue.set_callback(_store)
            queues[shape] = queue

        def run(out: np.ndarray) -> None:
            for shape, members in shapes.items():
                for batch in members:
                    queues[shape].start_async({"s2": batch.s2, "s1": batch.s1}, (out, batch.rows))
                queues[shape].wait_all()

        return run


def _store(request: Any, place: tuple[np.ndarray, np.ndarray]) -> None:
    out, rows = place
    out[rows] = request.get_output_tensor(0).data[:, : out.shape[1]]


def failures() -> tuple[type[Exception], ...]:
    """What torch, ONNX Runtime and OpenVINO raise where they cannot take a model."""
    if importlib.util.find_spec("onnxruntime") is None:
        return (RuntimeError,)
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return RuntimeError, state.Fail, state.InvalidGraph, state.NotImplemented


OFFICIAL = "official eager fp32"


def contenders(
    checkout: Path, weights: Weights, threads: int, scratch: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """The contenders by label, OFFICIAL first, and why others are left out."""
    net = build_with_table(checkout, weights)
    there: dict[str, Any] = {
        OFFICIAL: Torch(official.build(checkout, weights).requires_grad_(False))
    }
    there["torch autocast bf16"] = Torch(net, autocast=True)
    there["torch.compile fp32"] = Torch(net, compiled=True)
    there["torch.compile bf16"] = Torch(net, autocast=True, compiled=True)
    labels = ("ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO fp32", "OpenVINO bf16")
    missing = [p for p in PACKAGES if importlib.util.find_spec(p) is None]
    if missing:
        return there, dict.fromkeys(labels, f"not installed: pip install {' '.join(missing)}")
    exports = Exports(net, scratch)
    there[labels[0]] = OnnxRuntime(exports, threads)
    there[labels[1]] = OnnxRuntime(exports, threads, int8=True)
    there[labels[2]] = OpenVino(exports, threads)
    if not OpenVino.has_bf16():
        return there, {labels[3]: "OpenVINO has no bf16 on this processor"}
    there[labels[3]] = OpenVino(exports, threads, bf16=True)
    return there, {}
