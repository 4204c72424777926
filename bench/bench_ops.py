"""The cpu back end's ops where they run: GFLOP/s, and the share of the peak, measured in one run.

    python bench/bench_ops.py --models v2-nano v2-small --precisions fp32 int8
    python bench/bench_ops.py --tile path/to/tile --json out.jsonl

A whole model is timed on packed tokens, with every precision, on one thread and on --threads,
taking turns; the ops come from the encoder's own clock in a pass of its own. "limit" is the time
the products take at the peaks: 100 % would mean that everything else is free. Without --tile every
pixel has 32 Sentinel-2 and 120 Sentinel-1 dates; with it the lengths it has.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tessera_fast as tf
import timing
import workloads
from tessera_fast.diagnostics.profile import elements, peak
from tessera_fast.model.flop import work
from tessera_fast.packing import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["v2-nano", "v2-small", "v2-medium"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--tile", type=Path, help="tile folder (default: fixed lengths)")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write one row an op and one a model")
    args = parser.parse_args()

    rows = [row for name in args.models for row in run(name, args)]
    if args.json:
        timing.write_rows(args.json, rows)


def run(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model; prints them."""
    models = {
        (precision, threads): tf.load_model(
            name, weights="untrained", backend="cpu", precision=precision, threads=threads
        )
        for precision in args.precisions
        for threads in sorted({1, args.threads})
    }
    spec = next(iter(models.values())).spec
    workload, window = workloads.choose(spec, args.tile, args.pixels)
    s2, s1, _ = pack(window, spec)
    out = np.empty((s2.pixels, spec.saved_dim), np.float32)
    flop = work(spec, s2, s1)
    isa = next(iter(models.values())).provenance()["isa"]
    kinds = {key: elements(model) for key, model in models.items()}
    used = sorted({e for k in kinds.values() for e in k.values()})
    peaks = {(e, t): peak(isa, e, t) for e in used for t in {1, args.threads}}
    seconds = timing.interleaved(
        {str(key): partial(model.encoder.encode, s2, s1, out) for key, model in models.items()},
        args.rounds,
    )
    for e, t in peaks:  # the clock may have risen meanwhile: the better of before and after
        peaks[e, t] = max(peaks[e, t], peak(isa, e, t))

    common = {
        "workload": workload,
        "model": name,
        "pixels": s2.pixels,
        "isa": isa,
        **timing.machine(),
    }
    rows = []
    for key, model in models.items():
        precision, threads = key
        limit = sum(f / peaks[kinds[key][op], threads] for op, f in flop.items())
        stats = timing.summary(seconds[str(key)])
        alone = statistics.median(seconds[str((precision, 1))])
        rows.append(
            {
                "bench": "encoder",
                **common,
                "precision": precision,
                "threads": threads,
                "px_s": s2.pixels / stats["median_s"],
                **stats,
                "limit_px_s": s2.pixels / limit,
                "share_of_limit": limit / stats["median_s"],
                "speed_of_one_thread": alone / stats["median_s"],
                "peaks_gflop_s": {e: p / 1e9 for (e, t), p in peaks.items() if t == threads},
            }
        )
        print(
            f"{name} {precision} on {isa}, {threads} threads, {workload}: "
            f"{rows[-1]['px_s']:,.1f} px/s, {rows[-1]['share_of_limit']:.0%} of the limit, "
            f"{rows[-1]['speed_of_one_thread']:.2f}x one thread"
        )
        ops: dict[str, float] = model.encoder.profile(s2, s1, out)  # type: ignore[attr-defined]
        busy = sum(ops.values())
        for op, took in ops.items():
            row = {
                "bench": "op",
                **common,
                "precision": precision,
                "threads": threads,
                "op": op,
                "share_of_time": took / busy,
            }
            if flop.get(op):
                row["element"] = kinds[key][op]
                row["gflop_s"] = flop[op] / took * threads / 1e9
                row["share_of_peak"] = row["gflop_s"] * 1e9 / peaks[kinds[key][op], threads]
            if took and threads == args.threads:
                rate = (
                    f"{row['gflop_s']:9,.0f} GFLOP/s {row['share_of_peak']:6.0%} of the "
                    f"{row['element']} peak"
                    if "gflop_s" in row
                    else ""
                )
                print(f"  {op:10} {row['share_of_time']:6.1%} {rate}")
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
