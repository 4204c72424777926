"""`tessera-fast bench` on a GPU: px/s from raw bands to int8, every op, and the share of the peak.

A multiply-add counts as 2 FLOP. The peak is that of a large matrix product in the same run.
"""

import time

import numpy as np
import torch

from ..backends.cuda.encoder import CudaEncoder
from ..errors import BackendUnavailable, InputError
from ..model.flop import work
from ..model.model import Model
from ..packing import Observations, pack
from ..quantization import QuantizedEmbeddings
from ..tile import Tile
from ..untrusted.readers import local_target

_REPEATS = 5
_PEAK_SIZE = 8192  # rows, columns and depth of the product: 1.1 TFLOP fill any GPU
_PEAK_TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}


def report_gpu(
    tile: Tile, model: Model, *, rows: int | None, by_op: bool, trace: str | None
) -> str:
    """Text for the first ``rows`` rows of a tile (default: all), after a first pass that compiles.

    ``trace``: where a timeline of one pass is written, for ui.perfetto.dev.
    """
    encoder = model.encoder
    if not isinstance(encoder, CudaEncoder):
        raise BackendUnavailable(f"bench: expected the cuda back end, got {model.backend}")
    if trace is not None and not local_target(trace, "trace").parent.is_dir():
        raise InputError(f"trace: expected a file in an existing folder, got {trace}")
    rows = min(rows or tile.height, tile.height)
    started = time.perf_counter()
    observations = tile.rows(0, rows)
    read = time.perf_counter() - started
    pixels = rows * tile.width
    out = QuantizedEmbeddings(
        np.empty((pixels, model.repr_dim), np.int8), np.empty(pixels, np.float32)
    )

    def once() -> float:
        started = time.perf_counter()
        encoder.encode_window(observations, out, binary_masks=True)
        return time.perf_counter() - started

    first = once()
    seconds = float(np.median([once() for _ in range(_REPEATS)]))
    with encoder.ranges.timed() as ops:
        once()
    if trace is not None:
        _write_trace(encoder, observations, out, trace)
    s2, s1, _ = pack(observations, model.spec)
    flop = sum(work(model.spec, s2, s1).values())
    lines = [
        f"{model.label}, {model.precision} on {encoder.provenance['device']}, {tile.name}: "
        f"{pixels:,} px, {len(s2.doy) / pixels:.0f} + {len(s1.doy) / pixels:.0f} dates a pixel",
        "",
        f"{'stage':24}{'seconds':>10}{'px/s':>12}",
        f"{'read':24}{read:10.4f}{pixels / read:12,.0f}",
        f"{'raw bands to int8':24}{seconds:10.4f}{pixels / seconds:12,.0f}",
        f"{'the first time':24}{first:10.4f}   (compiles kernels, takes memory)",
        "",
        f"{flop / pixels / 1e9:.3f} GFLOP a pixel: {flop / seconds / 1e12:,.1f} TFLOP/s"
        + _share(flop / seconds, encoder),
    ]
    if by_op:
        busy = sum(ops.values())
        lines += ["", f"{'op':24}{'seconds':>10}{'share':>8}"]
        lines += [f"{op:24}{s:10.4f}{s / busy:8.1%}" for op, s in ops.items()]
        lines.append(
            "(between events of their stream; upload and pack with the device idle around it)"
        )
    return "\n".join(lines)


def _write_trace(
    encoder: CudaEncoder, observations: Observations, out: QuantizedEmbeddings, trace: str
) -> None:
    with encoder.ranges.marked(), torch.profiler.profile() as profiler:
        encoder.encode_window(observations, out, binary_masks=True)
    profiler.export_chrome_trace(trace)


def _share(achieved: float, encoder: CudaEncoder) -> str:
    """How much of a large matrix product's rate that is, in the model's own element."""
    if encoder.device.type != "cuda":
        return ""
    dtype = _PEAK_TYPES.get(encoder.precision, torch.bfloat16)
    a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, device=encoder.device, dtype=dtype) for _ in "ab")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = encoder.precision == "tf32"
    try:
        times = []
        with torch.cuda.device(encoder.device):  # events are recorded on the current device
            for _ in range(_REPEATS):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
                start.record()
                a @ b
                stop.record()
                stop.synchronize()
                times.append(start.elapsed_time(stop) / 1e3)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    peak = 2 * _PEAK_SIZE**3 / float(np.median(times))
    return (
        f", {achieved / peak:.0%} of the {peak / 1e12:,.0f} TFLOP/s that a {dtype} product of "
        f"{_PEAK_SIZE} x {_PEAK_SIZE} reaches here"
    )
