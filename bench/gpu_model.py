"""One model of the GPU benchmark: model only beside the stock engines, then tile to int8.

    python bench/gpu_model.py --model v2-nano --dates 50 60 --rows out.jsonl --compiler inductor

gpu_check.py calls it once for every model. Contenders take turns in one process; each runs at the
fastest of a few batches; medians of rounds are compared. Nothing gets a figure outside its gate.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import gpu_case
import gpu_stock
import tessera_fast as tf
from gpu_case import Case
from gpu_peaks import append_rows, machine, seconds
from tessera_fast import backends
from tessera_fast.backends.base import Plan
from tessera_fast.model.flop import work
from tessera_fast.model.model import Model
from tessera_fast.weights import Weights, load_weights

ROUNDS, ROUND_SECONDS = 5, 0.06
POOL_TOKENS = 8 << 20  # of both streams: some 150 MB packed, more than any L2 holds
STOCK_BATCHES = (4096, 1024, 16384)  # the first is the one that torch.compile gets
OUR_BATCHES = (4096, 16384, 1 << 30)
TILE_TOKENS = 8 << 20  # of a tile, about: a second of the widest model
TILE_ROUNDS = 3
TOP_KERNELS = 12


class Entry(NamedTuple):
    """A contender at one batch size."""

    run: Callable[[int], Any]  # batch i of the pool; returns (P, E)
    batch: int
    precision: str
    ours: bool


def main() -> None:
    args = arguments().parse_args()
    device = torch.device("cpu" if args.device == "interpreter" else args.device)
    loaded = load_weights(args.model, "untrained")
    weights = replace(loaded, tensors=dict(loaded.tensors))  # drawn once
    lengths = gpu_case.dates(weights.spec, tuple(args.dates))
    pool = max(args.pool or POOL_TOKENS // sum(lengths), gpu_case.SAMPLE if not args.pool else 1)
    case = Case(weights.spec, lengths, pool)
    if args.warm:
        warm(case, weights, device, args)
        return
    common = {"model": args.model, **machine(device, args.commit)}
    rows, models = model_only(case, weights, device, args)
    append_rows(args.rows, [{**common, **row} for row in rows])
    if not args.no_tile:
        for model in models:
            row = tile_to_int8(case, model, device, args, rows)
            append_rows(args.rows, [{**common, **row}])
            rows.append(row)
    ours = [r for r in rows if r["contender"].startswith("ours")]
    wrong = [r["contender"] for r in ours if not r["equal"] and not r.get("unavailable")]
    if wrong:
        raise SystemExit(f"{args.model}: failed or outside the gate: {', '.join(wrong)}")
    if not models:
        raise SystemExit(f"{args.model}: none of ours could run")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dates", type=int, nargs=2, default=[50, 60], metavar=("S2", "S1"))
    parser.add_argument("--device", default="cuda:0", help="or cpu, or interpreter")
    parser.add_argument("--backend", default="cuda", help="ours")
    parser.add_argument(
        "--precisions", nargs="+", default=["bf16"],
        help="ours; bf16+fused is the whole network in one CUDA kernel a stream",
    )  # fmt: skip
    parser.add_argument("--official", type=Path, help="checkout of ucam-eo/tessera")
    parser.add_argument("--compiler", help="back end of torch.compile (default: leave it out)")
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--no-tile", action="store_true")
    parser.add_argument("--pool", type=int, help="pixels of the pool (default: beyond the L2)")
    parser.add_argument("--tile-size", type=int, help="side of the tile (default: by the model)")
    parser.add_argument("--warm", type=Path, help="only compile for torch.compile, then touch this")
    parser.add_argument("--peak", type=float, help="bf16 TFLOP/s, for the share of it")
    parser.add_argument("--commit")
    parser.add_argument("--rows", type=Path, help="file that rows are added to")
    return parser


# ---- model only


def model_only(
    case: Case, weights: Weights, device: torch.device, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Model]]:
    """Rows of all contenders, and our models."""
    entries: dict[str, Entry] = {}
    extra: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    models: list[Model] = []
    for asked in args.precisions:
        label, before = f"ours {asked}", _allocated(device)
        precision, _, fused = asked.partition("+")
        plan = Plan(precision, None if args.backend == "cpu" else args.device)
        os.environ["TESSERA_FAST_FUSED"] = "1" if fused else "0"
        try:
            name, encoder = backends.load(args.backend, case.spec, weights, plan)
        except tf.BackendUnavailable as error:
            left_out[label] = f"unavailable: {error}"
            continue
        model = Model(weights, name, encoder, plan)
        build = partial(_our_run, case, model, device)
        entry = best(label, build, OUR_BATCHES, case, device, precision, ours=True)
        if isinstance(entry, str):
            left_out[label] = entry
            continue
        entries[label] = entry
        if not fused:
            models.append(model)
        extra[label] = {
            "engine": model.provenance(), "peak_memory": _peak(device) - before,
            "invariant": invariant(case, model, entry), **ops(case, model, entry, device),
        }  # fmt: skip
    if not args.no_stock:
        pool = case.sequences(device)
        found = gpu_stock.contenders(weights, device, args.official, args.compiler, STOCK_BATCHES)
        for label, contender in found.items():
            before = _allocated(device)
            build = partial(_stock_run, case, cache(contender.build), pool)
            entry = best(label, build, contender.batches, case, device, contender.precision)
            if isinstance(entry, str):
                left_out[label] = entry
                continue
            entries[label] = entry
            extra[label] = {"peak_memory": _peak(device) - before}
    rows = measured(case, weights, device, entries, args.peak)
    for row in rows:
        row |= extra[row["contender"]]
    for label, reason in left_out.items():
        print(f"  {label:34} left out: {reason}", flush=True)
        rows.append({"bench": "gpu", "workload": case.name, "contender": label, "equal": False,
                     "px_s": None, "gate": reason,
                     "unavailable": reason.startswith("unavailable")})  # fmt: skip
    return rows, models


def _our_run(case: Case, model: Model, device: torch.device, batch: int) -> Callable[[int], Any]:
    place = device if device.type == "cuda" else None
    parts = [
        case.packed(first, first + batch, place)
        for first in range(0, case.pixels - batch + 1, batch)
    ]
    out: Any = np.full((batch, case.spec.saved_dim), np.nan, np.float32)
    if place is not None:
        out = torch.from_numpy(out).to(place)

    def run(i: int) -> Any:
        model.encoder.encode(*parts[i % len(parts)], out)
        return out

    return run


def _stock_run(
    case: Case, build: Callable[[], gpu_stock.Call], pool: tuple[torch.Tensor, ...], batch: int
) -> Callable[[int], Any]:
    count, call = case.pixels // batch, build()

    def run(i: int) -> Any:
        first = i % count * batch
        return call(*(x[first : first + batch] for x in pool))

    return run


def best(
    label: str,
    build: Callable[[int], Callable[[int], Any]],
    batches: tuple[int, ...],
    case: Case,
    device: torch.device,
    precision: str,
    ours: bool = False,
) -> Entry | str:
    """The contender at its fastest batch, or why it has none."""
    found: dict[int, float] = {}
    failed = ""
    for batch in sorted({min(batch, case.pixels) for batch in batches}):
        try:
            run = build(batch)
            run(0)
            found[batch] = min(seconds(partial(run, i), device) for i in (1, 2)) / batch
        except failures() as error:
            failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if not found:
        return f"failed: {failed}"
    batch = min(found, key=lambda b: found[b])
    print(f"  {label:34} " + "  ".join(f"{b}: {1 / s:,.0f}" for b, s in found.items()), flush=True)
    return Entry(build(batch), batch, precision, ours)


def failures() -> tuple[type[Exception], ...]:
    """What torch and Triton raise where they cannot run something, out of memory included."""
    errors: tuple[type[Exception], ...] = (RuntimeError, NotImplementedError)
    try:
        from triton.errors import TritonError
    except ImportError:  # a torch without Triton
        return errors
    return (*errors, TritonError)


def measured(
    case: Case, weights: Weights, device: torch.device, entries: dict[str, Entry],
    peak: float | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Gates, then rounds in which the contenders take turns."""
    sample = min(gpu_case.SAMPLE, *(e.batch for e in entries.values())) if entries else 0
    tokens = case.packed(0, sample)
    expected = gpu_case.reference(case.spec, weights, *tokens, device) if entries else None
    flop = sum(work(case.spec, *case.packed(0, 1)).values())
    repeats: dict[str, int] = {}
    times: dict[str, list[float]] = {label: [] for label in entries}
    rows = []
    for label, entry in entries.items():
        got = to_numpy(entry.run(0))[:sample, : case.spec.saved_dim]
        rows.append({"bench": "gpu", "workload": case.name, "contender": label,
                     "precision": entry.precision, "batch": entry.batch,
                     **gpu_case.gate(got, expected, entry.precision, entry.ours)})  # fmt: skip
        once = seconds(partial(entry.run, 1), device)
        repeats[label] = max(1, round(ROUND_SECONDS / once)) if device.type == "cuda" else 1
    for i in range(ROUNDS):
        for label, entry in entries.items():
            several = partial(_several, entry, i * repeats[label], repeats[label])
            times[label].append(seconds(several, device))
    for row in rows:
        spent, count = times[row["contender"]], repeats[row["contender"]] * row["batch"]
        middle = statistics.median(spent)
        row["px_s"] = count / middle if row["equal"] else None
        row |= {"pixels": count, "median_s": middle, "gflop_px": flop / 1e9,
                "spread": (max(spent) - min(spent)) / middle}  # fmt: skip
        if row["px_s"]:
            row["tflop_s"] = row["px_s"] * flop / 1e12
            row["share_of_bf16_peak"] = row["tflop_s"] / peak if peak else None
        print_row(row)
    return rows


def _several(entry: Entry, first: int, count: int) -> None:
    for i in range(first, first + count):
        entry.run(i)


def print_row(row: dict[str, Any]) -> None:
    figure = f"{row['px_s']:12,.0f} px/s" if row["px_s"] else f"NOT EQUAL: {row['gate']}"
    text = f"  {row['contender']:34} {figure}  spread {row['spread']:.0%}"
    if row["batch"]:
        text += f"  batch {row['batch']}"
    if "cosine_mean" in row:
        text += f"  cosine {row['cosine_mean']:.6f}, {row['cosine_min']:.6f}"
    if row.get("share_of_bf16_peak"):
        text += f"  {row['share_of_bf16_peak']:.0%} of bf16 peak"
    print(text, flush=True)


def invariant(case: Case, model: Model, entry: Entry) -> bool:
    """Whether a few pixels by themselves equal, bit for bit, the same pixels in a whole batch."""
    few = min(gpu_case.SAMPLE, entry.batch)
    alone = np.full((few, case.spec.saved_dim), np.nan, np.float32)
    model.encoder.encode(*case.packed(0, few), alone)
    return bool((alone == to_numpy(entry.run(0))[:few]).all())


def ops(case: Case, model: Model, entry: Entry, device: torch.device) -> dict[str, Any]:
    """Seconds of every op, where the back end has a profile, and of the top kernels."""
    found: dict[str, Any] = {}
    tokens = case.packed(0, entry.batch, device if device.type == "cuda" else None)
    out = entry.run(0)
    if hasattr(model.encoder, "profile"):
        found["ops_s"] = model.encoder.profile(*tokens, out)
    if device.type == "cuda":
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            entry.run(0)
            torch.cuda.synchronize(device)
        events = sorted(recorded.key_averages(), key=lambda e: -e.self_device_time_total)
        found["kernels_us"] = {e.key[:80]: [e.count, e.self_device_time_total]
                               for e in events[:TOP_KERNELS]}  # fmt: skip
    return found


def to_numpy(values: Any) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.float().cpu().numpy()


def _allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


# ---- tile to int8


def tile_to_int8(
    case: Case, model: Model, device: torch.device, args: argparse.Namespace,
    others: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Arrays in memory to int8 codes in memory, by the function that users call; wall clock."""
    spec, label = case.spec, f"ours {model.precision}"
    size = args.tile_size or int((TILE_TOKENS / sum(case.lengths)) ** 0.5) // 16 * 16
    arrays = gpu_case.tile_arrays(spec, case.lengths, size)
    run = partial(tf.embed, dict(arrays), model, output="int8", progress=False)
    result = run()
    tokens = gpu_case.first_row(spec, arrays)
    expected = gpu_case.reference(spec, model.weights, *tokens, device)
    spent = []
    for _ in range(TILE_ROUNDS):
        started = time.perf_counter()
        run()
        spent.append(time.perf_counter() - started)
    middle, raw = statistics.median(spent), sum(a.nbytes for a in arrays.values())
    row: dict[str, Any] = {
        "bench": "gpu_tile", "workload": case.name, "contender": label, "batch": None,
        "precision": model.precision, "pixels": size * size, "median_s": middle,
        "spread": (max(spent) - min(spent)) / middle, "raw_bytes": raw,
        **gpu_case.gate_int8(result.codes[0], result.scales[0], expected, spec, model.precision),
    }  # fmt: skip
    row["px_s"] = size * size / middle if row["equal"] else None
    alone = next((r["px_s"] for r in others if r["contender"] == label and r["px_s"]), None)
    if alone and row["px_s"]:
        row["share_of_model_only"] = row["px_s"] / alone
    if hasattr(model.encoder, "ranges"):
        with model.encoder.ranges.timed() as by_op:
            run()
        row["stages_s"] = dict(by_op)
    row["contender"] = f"{label}, tile to int8"
    print_row(row)
    return row


def warm(case: Case, weights: Weights, device: torch.device, args: argparse.Namespace) -> None:
    """Fill the compiler's cache on disk with the program that `model_only` will ask for."""
    batch = min(STOCK_BATCHES[0], case.pixels)
    found = gpu_stock.contenders(weights, device, None, args.compiler, STOCK_BATCHES)
    label = next(label for label in found if label.startswith("torch.compile"))
    few = replace(case, pixels=batch)
    _stock_run(few, found[label].build, few.sequences(device), batch)(0)
    args.warm.parent.mkdir(parents=True, exist_ok=True)
    args.warm.touch()


if __name__ == "__main__":
    main()
