"""What the device can do, measured: the ceilings that gpu_check.py reads its figures by.

    python bench/gpu_peaks.py --device cuda:0 --rows out.jsonl

Copies count bytes read and bytes written; products count a multiply-add as 2 FLOP. Operands are
random: zeros run faster. Every figure is the median of several runs.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import timing

ROUNDS = 7
SIDE, COPY_BYTES, HOST_BYTES = 8192, 4 << 30, 512 << 20  # the copy is far larger than any L2
SMALL_SIDE, SMALL_BYTES = 128, 1 << 20  # of a dry run
FP8_SINCE = (8, 9)  # compute capability


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Of one run: by the device's own clock where there is one."""
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    with torch.cuda.device(device):  # events are recorded on the current device
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        stop.record()
        stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def median(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a run, after two that are not timed."""
    run(), run()
    return statistics.median(seconds(run, device) for _ in range(ROUNDS))


def peaks(device: torch.device, small: bool = False) -> dict[str, float]:
    """GB/s and TFLOP/s by name; small sizes for a run whose figures mean nothing."""
    side = SMALL_SIDE if small else SIDE
    return {
        **_copies(device, *((SMALL_BYTES,) * 2 if small else (COPY_BYTES, HOST_BYTES))),
        "bf16_tflop_s": _product(device, torch.bfloat16, side),
        "fp16_tflop_s": _product(device, torch.float16, side),
        **_fp8(device, side),
    }


def _copies(device: torch.device, size: int, host_size: int) -> dict[str, float]:
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * size / median(lambda: target.copy_(source), device)
    pinned = torch.randint(0, 256, (host_size,), dtype=torch.uint8)
    if device.type == "cuda":
        pinned = pinned.pin_memory()
    part = target[:host_size]
    up = host_size / median(lambda: part.copy_(pinned, non_blocking=True), device)
    down = host_size / median(lambda: pinned.copy_(part, non_blocking=True), device)
    return {"copy_gb_s": copy / 1e9, "upload_gb_s": up / 1e9, "download_gb_s": down / 1e9}


def _product(device: torch.device, dtype: torch.dtype, side: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=device)
    return 2 * side**3 / median(lambda: torch.mm(a, b, out=out), device) / 1e12


def _fp8(device: torch.device, side: int) -> dict[str, float]:
    """The framework's e4m3 product with one scale per operand, where the device has one."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_SINCE:
        return {}
    one = torch.ones((), device=device)
    a, b = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))

    def run() -> None:  # it wants its right operand column by column
        torch._scaled_mm(a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return {"fp8_tflop_s": 2 * side**3 / median(run, device) / 1e12}


def machine(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """What a row needs to be read later."""
    row: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if shutil.which("git"):
        row = {**timing.machine(), **row}
    if commit is not None:
        row["commit"] = commit
    if device.type == "cuda":
        row["gpu"] = torch.cuda.get_device_name(device)
    return row


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, after those that are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only that it runs")
    parser.add_argument("--commit")
    parser.add_argument("--rows", type=Path, required=True, help="file that a row is added to")
    args = parser.parse_args()
    device = torch.device(args.device)
    measured = peaks(device, args.small)
    append_rows(args.rows, [{"bench": "gpu_peaks", **measured, **machine(device, args.commit)}])
    print("  ".join(f"{name} {value:,.0f}" for name, value in measured.items()))


if __name__ == "__main__":
    main()
