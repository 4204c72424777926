"""Model only: our ONNX exports in ONNX Runtime, as anybody would run them, beside the cpu back end.

    python bench/bench_onnx.py [--tile FOLDER] [--models v2-nano v2-small] [--json rows.jsonl]

Both get the same packed tokens in memory. The exported graphs (packed layout) take batches of
pixels that are sorted by their number of dates, so that few slots are empty; each runs at its own
best batch size, found in a sweep first, and embeddings are compared with the cpu back end's in
float32.
"""

import argparse
import runpy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

import tessera_fast as tf
import timing
import workloads
from tessera_fast import backends
from tessera_fast.backends.base import RunOptions
from tessera_fast.exports import feeds, runtime
from tessera_fast.packing import PackedTokens, pack
from tessera_fast.weights import load_weights

GATES = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tests" / "helpers" / "oracle.py"))
Run = Callable[[np.ndarray], None]  # fills (P, E)
SWEEP_ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tile", type=Path, help="tile folder (default: fixed lengths)")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=["v2-nano", "v2-small"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"], help="cpu")
    parser.add_argument("--exports", nargs="+", default=["fp32", "int8"], help="ONNX Runtime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--json", type=Path, help="write one row a contender")
    args = parser.parse_args()
    rows = [row for name in args.models for row in compare(name, args)]
    if args.json:
        timing.write_rows(args.json, rows)
    if not all(r["equal"] for r in rows):
        raise SystemExit("a contender is outside its gate")


def compare(name: str, args: argparse.Namespace) -> list[dict]:
    """Rows of one model; prints its table."""
    weights = load_weights(name, "untrained")
    workload, observations = workloads.choose(weights.spec, args.tile, args.pixels)
    s2, s1, _ = pack(observations, weights.spec)
    out = {}
    runs: dict[str, Run] = {}
    facts: dict[str, dict] = {}
    for precision in args.precisions:
        plan = RunOptions(precision, threads=args.threads)
        _, encoder = backends.load("cpu", weights.spec, weights, plan)
        runs[f"cpu {precision}"] = partial(encoder.encode, s2, s1)
        facts[f"cpu {precision}"] = {"precision": precision, "batch": None, **encoder.provenance}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in args.exports:
            folder = tf.export(
                name,
                Path(scratch) / precision,
                weights="untrained",
                precision=precision,
                calibration=args.tile if precision in ("int8", "fp8") else None,
            )
            label = f"ONNX Runtime {precision}"
            batch, runs[label] = best_batch(label, folder, (s2, s1), weights.spec.saved_dim, args)
            facts[label] = {
                "precision": precision,
                "batch": batch,
                "onnxruntime": runtime.version(),
            }
    out = {k: np.full((s2.pixels, weights.spec.saved_dim), np.nan, np.float32) for k in runs}
    seconds = timing.interleaved({k: partial(run, out[k]) for k, run in runs.items()}, args.rounds)
    exact = np.empty_like(next(iter(out.values())))
    plan = RunOptions("fp32", threads=args.threads)
    backends.load("cpu", weights.spec, weights, plan)[1].encode(s2, s1, exact)
    rows = []
    for label, got in out.items():
        cosine, stats = GATES["cosines"](got, exact), timing.summary(seconds[label])
        precision = facts[label]["precision"]
        error = float(np.abs(got - exact).max())
        equal = (
            error <= GATES["GOLDEN_ATOL"]
            if precision == "fp32"
            else (
                float(cosine.mean())
                >= GATES["LEAST_COSINE"].get(precision, GATES["BF16_MIN_COSINE"])
            )
        )
        rows.append(
            {
                "bench": "onnx",
                "workload": workload,
                "model": name,
                "pixels": s2.pixels,
                "contender": label,
                "threads": args.threads,
                **facts[label],
                **timing.machine(),
                "px_s": s2.pixels / stats["median_s"],
                **stats,
                "cosine_mean": float(cosine.mean()),
                "cosine_min": float(cosine.min()),
                "max_abs_difference": error,
                "equal": bool(equal),
            }
        )
    print(f"{name}, {workload}, {s2.pixels} pixels")
    for r in rows:
        batch = "" if r["batch"] is None else f"batch {r['batch']}"
        print(
            f"  {r['contender']:20} {batch:10} {r['px_s']:9.1f} px/s, spread {r['spread']:4.0%}, "
            f"cosine {r['cosine_mean']:.6f} {r['cosine_min']:.6f}"
            f"{'' if r['equal'] else '  NOT EQUAL'}",
            flush=True,
        )
    return rows


def best_batch(
    label: str,
    folder: Path,
    tokens: tuple[PackedTokens, PackedTokens],
    width: int,
    args: argparse.Namespace,
) -> tuple[int, Run]:
    """The fastest of the batch sizes, and the run of it."""
    parts = ("s2_encoder", "s1_encoder", "head")
    sessions = {p: runtime.session(folder / f"{p}.onnx", args.threads) for p in parts}
    out = np.empty((tokens[0].pixels, width), np.float32)
    timed = {}
    for size in args.batches:
        batches = [list(in_batches(stream, size)) for stream in tokens]
        run = partial(forward, sessions, batches)
        timed[size] = min(timing.interleaved({label: partial(run, out)}, SWEEP_ROUNDS)[label]), run
    best = min(timed, key=lambda size: timed[size][0])
    return best, timed[best][1]


def in_batches(tokens: PackedTokens, size: int) -> Iterator[tuple[np.ndarray, feeds.Feeds]]:
    """(pixels, inputs): batches of pixels of like lengths, made before the clock starts."""
    order = np.argsort(np.diff(tokens.offsets), kind="stable")
    for start in range(0, len(order), size):
        pixels = order[start : start + size]
        ones = [feeds.slots(tokens, p, p + 1) for p in pixels]
        longest = max(f["doy"].shape[1] for f in ones)
        joined = {}
        for name in ones[0]:
            joined[name] = np.zeros(
                (len(pixels), longest, *ones[0][name].shape[2:]), ones[0][name].dtype
            )
            for row, feed in zip(joined[name], ones, strict=True):
                row[: feed[name].shape[1]] = feed[name][0]
        yield pixels, joined


def forward(sessions: dict, batches: list, out: np.ndarray) -> None:
    """Both encoders over their batches, then the head."""
    pooled = []
    for part, stream in zip(("s2_encoder", "s1_encoder"), batches, strict=True):
        results = [(pixels, sessions[part].run(None, inputs)[0]) for pixels, inputs in stream]
        pooled.append(np.empty((len(out), results[0][1].shape[1]), np.float32))
        for pixels, values in results:
            pooled[-1][pixels] = values
    out[:] = sessions["head"].run(None, {"s2": pooled[0], "s1": pooled[1]})[0]


if __name__ == "__main__":
    main()
