"""The cpu back end beside the stock ways to run the same model on a CPU, model only, one run.

    pip install torch onnx onnxruntime openvino
    python bench/compare_stock.py --official path/to/tessera --models v2-nano v2-small
    python bench/compare_stock.py --official path/to/tessera --tile path/to/tile --json out.jsonl

From tokens in memory to float32 embeddings, with seeded weights. Without --tile every pixel has 32
Sentinel-2 and 120 Sentinel-1 dates, so nobody pads; with it, pixels spread evenly over a tile have
the lengths they have. Stock engines get standardised sequences, padded by the official rule and
batched by lengths, each at the fastest of --batches (and of one batch after the other or as many
side by side as there are threads, where the engine has that); ours gets packed raw tokens. Packing,
padding, exports and compilation are not timed. A contender counts if its embeddings pass its gate
in tests/helpers/oracle.py, against official eager fp32.

All on AVX2, on a processor with more, as far as the engines allow it:

    TESSERA_FAST_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \\
        MKL_ENABLE_INSTRUCTIONS=AVX2 OV_CPU_MAX_ISA=AVX2 python bench/compare_stock.py ...

The second is for torch's own kernels and torch.compile, the next two for its matrix products (MKL
heeds its one on Intel only), ONEDNN_ and OV_ for OpenVINO, which wants both. ONNX Runtime and the
float32 matrix products of OpenVINO come from MLAS, which has no such variable and runs on all the
processor has.

Where other processes use the same cores, torch needs GOMP_SPINCOUNT=0: its OpenMP threads otherwise
spin for each other through the others' time slices, which made it 5 times slower on two busy cores.
Rows record all these variables.
"""

import argparse
import logging
import os
import runpy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import stock
import tessera_fast as tf
import timing
import workloads
from tessera_fast import backends
from tessera_fast.backends.base import RunOptions
from tessera_fast.packing import pack
from tessera_fast.spec import ModelSpec
from tessera_fast.weights import load_weights

GATES = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tests" / "helpers" / "oracle.py"))
ATOL, MIN_COSINE = GATES["GOLDEN_ATOL"], GATES["REDUCED_MIN_COSINE"]

SWEEP_ROUNDS = 2


class Entry(NamedTuple):
    """A contender at its best setting."""

    run: Callable[[np.ndarray], None]  # fills (P, E)
    precision: str
    batch: int | None
    lanes: int
    engine: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of ucam-eo/tessera")
    parser.add_argument("--tile", type=Path, help="tile folder (default: fixed lengths)")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=["v2-nano", "v2-small", "v2-medium"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"], help="ours")
    parser.add_argument(
        "--contenders",
        nargs="+",
        help="words of the stock labels to run, e.g. "
        "ONNX compile (default: all; official eager fp32 always runs)",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128, 512])
    parser.add_argument(
        "--compile-batches",
        type=int,
        nargs="+",
        default=[32, 128],
        help="of torch.compile, which takes minutes a shape",
    )
    parser.add_argument("--json", type=Path, help="write one row a contender")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.ERROR)  # first come: official v1.1 would set INFO for all

    rows = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as scratch:
            rows += compare(name, args, Path(scratch))
        if args.json:
            timing.write_rows(args.json, rows)
    wrong = [r for r in rows if r["contender"].startswith("tessera_fast") and not r["equal"]]
    if wrong:
        raise SystemExit(f"{', '.join(r['contender'] for r in wrong)}: outside the gate")


def compare(name: str, args: argparse.Namespace, scratch: Path) -> list[dict]:
    """Rows of one model; prints its table."""
    weights = load_weights(name, "untrained")
    spec = weights.spec
    workload, observations = workloads.choose(spec, args.tile, args.pixels)
    s2, s1, _ = pack(observations, spec)
    groups = stock.pad(spec, s2, s1)
    lengths = ", ".join("{} + {}: {}".format(*g.lengths, len(g.rows)) for g in groups)
    print(f"{name}, {workload}: pixels by padded lengths {lengths}", flush=True)

    entries: dict[str, Entry] = {}
    left_out: dict[str, str] = {}
    for precision in args.precisions:
        label = f"tessera_fast {precision}"
        try:
            plan = RunOptions(precision, None, args.threads)
            _, encoder = backends.load("cpu", spec, weights, plan)
        except tf.BackendUnavailable as error:
            left_out[label] = f"unavailable: {error}"
        else:
            run = partial(encoder.encode, s2, s1)
            entries[label] = Entry(run, encoder.precision, None, 1, encoder.provenance)
    there, missing = stock.contenders(args.official, weights, args.threads, scratch)
    left_out |= missing
    for label, contender in there.items():
        words = args.contenders
        if words and label != stock.OFFICIAL and not any(w in label for w in words):
            continue
        try:
            entries[label] = best_setting(label, contender, groups, spec, args)
        except stock.failures() as error:
            message = " ".join(str(error).split())[:200]
            left_out[label] = f"failed: {type(error).__name__}: {message}"

    out = {label: np.full((s2.pixels, spec.saved_dim), np.nan, np.float32) for label in entries}
    runs = {label: partial(entry.run, out[label]) for label, entry in entries.items()}
    seconds = timing.interleaved(runs, args.rounds)
    common = {
        "bench": "stock",
        "workload": workload,
        "model": name,
        "pixels": s2.pixels,
        "threads": args.threads,
        **timing.machine(),
        "environment": {v: os.environ.get(v) for v in stock.VARIABLES},
    }
    rows = []
    for label, entry in entries.items():
        stats = timing.summary(seconds[label])
        rows.append(
            {
                **common,
                "contender": label,
                "batch": entry.batch,
                "side_by_side": entry.lanes,
                "px_s": s2.pixels / stats["median_s"],
                **stats,
                **gate(out[label], out[stock.OFFICIAL], entry.precision),
                "precision": entry.precision,
                "engine": entry.engine,
            }
        )
    print_table(rows)
    for label, reason in left_out.items():
        print(f"{label:22} left out: {reason}")
    print(flush=True)
    return rows


def best_setting(
    label: str,
    contender: Any,
    groups: list[stock.Padded],
    spec: ModelSpec,
    args: argparse.Namespace,
) -> Entry:
    """The contender at the fastest batch size and arrangement."""
    pixels = sum(len(group.rows) for group in groups)
    sizes = args.compile_batches if contender.compiled else args.batches
    lanes = {1, args.threads} if contender.side_by_side else {1}
    out = np.empty((pixels, spec.saved_dim), np.float32)
    best, best_seconds = None, np.inf
    for size in sorted({min(size, pixels) for size in sizes}):
        batches = [batch for group in groups for batch in group.chunks(size)]
        for side_by_side in sorted(lanes):
            run = contender.load(batches, side_by_side)
            timed = timing.interleaved({label: partial(run, out)}, SWEEP_ROUNDS)
            seconds = min(timed[label])
            print(
                f"  {label:22} batch {size:4} x {side_by_side}: {pixels / seconds:8.1f} px/s",
                flush=True,
            )
            if seconds < best_seconds:
                best_seconds = seconds
                best = Entry(run, contender.precision, size, side_by_side, contender.engine)
    assert best is not None
    return best


def gate(got: np.ndarray, official: np.ndarray, precision: str) -> dict[str, Any]:
    """Agreement with official eager fp32, and whether it is enough for the precision."""
    cosine = GATES["cosines"](got, official)
    error, mean = float(np.abs(got - official).max()), float(cosine.mean())
    return {
        "cosine_mean": mean,
        "cosine_min": float(cosine.min()),
        "max_abs_difference": error,
        "equal": error <= ATOL if precision == "fp32" else mean >= MIN_COSINE,
    }


def print_table(rows: list[dict]) -> None:
    """One line a contender, with what each precision of ours is to it; then the summary."""
    ours = [r for r in rows if r["contender"].startswith("tessera_fast") and r["equal"]]
    others = [r for r in rows if not r["contender"].startswith("tessera_fast")]
    heads = "".join(f"{'ours ' + r['precision']:>11}" for r in ours)
    print(
        f"{'':22} {'batch':>9} {'px/s':>9} {'spread':>6}  {'cosine mean, min':18} "
        f"{'max diff':8}{heads}"
    )
    for r in rows:
        batch = "" if r["batch"] is None else f"{r['batch']} x {r['side_by_side']}"
        cosines = f"{r['cosine_mean']:.6f} {r['cosine_min']:.6f}"
        ratios = "".join(f"{o['px_s'] / r['px_s']:10.2f}x" for o in ours)
        mark = "" if r["equal"] else "  NOT EQUAL"
        print(
            f"{r['contender']:22} {batch:>9} {r['px_s']:9.1f} {r['spread']:6.0%}  {cosines:18} "
            f"{r['max_abs_difference']:.1e} {ratios}{mark}"
        )
    best = max((r for r in others if r["equal"]), key=lambda r: r["px_s"])
    for o in ours:
        print(
            f"{o['contender']}: {o['px_s'] / best['px_s']:.2f}x the best stock alternative that "
            f"passes its gate ({best['contender']}), {o['px_s'] / others[0]['px_s']:.2f}x "
            f"{stock.OFFICIAL}"
        )


if __name__ == "__main__":
    main()
