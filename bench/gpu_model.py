"""One model of the GPU check: px/s of ours, also as graphs or of a tile, or of stock engines.

    python bench/gpu_model.py --model v2-nano --contenders triton:bf16 fused:bf16 --rows out.jsonl
    python bench/gpu_model.py --model v2-nano --stock --rows out.jsonl

A contender runs at the fastest of a few batches; its figure is the median of several repeats. Its
row is written at the moment it ends, and a contender that is outside its gate gets no figure.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpu_case
import gpu_rows
import gpu_small
import gpu_stock
import tessera_fast as tf
from gpu_case import Case, Ours
from gpu_peaks import machine, seconds
from tessera_fast.model.flop import work
from tessera_fast.model.model import Model
from tessera_fast.weights import Weights

REPEATS, REPEAT_SECONDS = 7, 0.06
POOL_TOKENS = 4 << 20  # of both streams: some 75 MB packed, more than any L2 holds
STOCK_BATCHES = (4096, 1024, 16384)  # the first is the one that torch.compile gets
OUR_BATCHES = (4096, 16384, 1 << 30)
GRAPH_PIXELS = 256  # a request of some 15,000 tokens a stream: below replay.MOST_TOKENS
TILE_TOKENS = 4 << 20  # of a tile, about: half a second of the widest model
TILE_REPEATS = 3
TOP_KERNELS = 12


def main() -> None:
    args = arguments().parse_args()
    bench = Bench(args)
    if args.stock:
        bench.stock()
    for ours in map(Ours.parse, args.contenders):
        bench.ours(ours)
    if bench.wrong:
        raise SystemExit(f"{args.model}: failed or outside the gate: {', '.join(bench.wrong)}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--contenders", nargs="+", default=[], help="ours, as triton:bf16")
    parser.add_argument("--dates", type=int, nargs=2, default=[50, 60], metavar=("S2", "S1"))
    parser.add_argument("--device", default="cuda:0", help="or cpu, or interpreter")
    parser.add_argument("--check", action="store_true", help="a small tile first: right or wrong")
    parser.add_argument("--graphs", action="store_true", help="small requests, instead")
    parser.add_argument("--tile", action="store_true", help="arrays to int8 codes, instead")
    parser.add_argument("--stock", action="store_true", help="the stock engines")
    parser.add_argument("--only-compiled", action="store_true", help="of them torch.compile alone")
    parser.add_argument("--compiler", default="inductor", help="back end of torch.compile")
    parser.add_argument("--official", type=Path, help="checkout of ucam-eo/tessera")
    parser.add_argument("--few", action="store_true", help="tiny sizes, whose figures mean nothing")
    parser.add_argument("--commit")
    parser.add_argument("--rows", type=Path, help="file that rows are added to")
    return parser


class Bench:
    """A model, its pool of pixels and what every contender is judged by."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = gpu_case.torch_device(args.device)
        self.compiled = gpu_case.misses()
        self.weights: Weights = gpu_small.weights_of(args.model)
        spec = self.weights.spec
        lengths = gpu_case.dates(spec, tuple(args.dates))
        tokens = 16 * sum(lengths) if args.few else POOL_TOKENS
        self.case = Case(spec, lengths, tokens // sum(lengths))
        self.sample = min(gpu_case.SAMPLE, self.case.pixels)
        self.expected = gpu_case.reference(
            spec, self.weights, *self.case.packed(0, self.sample), self.device
        )
        self.flop = sum(work(spec, *self.case.packed(0, 1)).values())
        self.peak = _peak(args.rows)
        self.common = {"model": args.model, **machine(self.device, args.commit)}
        self.wrong: list[str] = []

    # ---- ours

    def ours(self, ours: Ours) -> None:
        args, label = self.args, ours.label
        try:
            model = ours.load(self.weights, args.device)
        except tf.BackendUnavailable as error:
            self.left_out(label, f"unavailable: {error}", ours=True)
            return
        if args.check:
            self.check(model, label)
        if args.tile:
            self.tile(model, label)
        elif args.graphs:
            self.graphs(model, label)
        else:
            build = partial(self.our_run, model)
            row = self.measure(label, build, OUR_BATCHES, ours.precision, ours=True)
            if row is not None:
                self.details(model, label, row)

    def check(self, model: Model, label: str) -> None:
        tile = gpu_small.Tile.small(self.weights, self.args.few, self.device)
        for form, verdict in tile.judged(model):
            self.append({"bench": "gpu_small", "contender": label, "form": form, **verdict})
            print(gpu_small.line(self.args.model, label, form, verdict), flush=True)
            self.wrong += [] if verdict["equal"] else [f"{label} {form}"]

    def our_run(self, model: Model, batch: int) -> Callable[[int], Any]:
        """Batch i of the pool, whose tokens lie on the device; returns (P, E)."""
        place = self.device if self.device.type == "cuda" else None
        starts = range(0, self.case.pixels - batch + 1, batch)
        parts = [self.case.packed(first, first + batch, place) for first in starts]
        out = self.output(batch)

        def run(i: int) -> Any:
            model.encoder.encode(*parts[i % len(parts)], out)
            return out

        return run

    def output(self, pixels: int) -> Any:
        out = np.full((pixels, self.case.spec.saved_dim), np.nan, np.float32)
        return torch.from_numpy(out).to(self.device) if self.device.type == "cuda" else out

    def graphs(self, model: Model, label: str) -> None:
        """Requests small enough for a CUDA graph: launched, captured, replayed; each has the bits
        of the same pixels in one batch that is too large for a graph."""
        small = min(GRAPH_PIXELS, self.case.pixels // 4)
        several = min(4096 // small, self.case.pixels // small)
        whole = to_numpy(self.our_run(model, small * several)(0)).copy()
        run = self.our_run(model, small)
        same = True
        for _ in range(3):
            for i in range(several):
                part = whole[i * small : (i + 1) * small]
                same &= bool(np.array_equal(to_numpy(run(i)), part, equal_nan=True))
        replay = getattr(model.encoder, "_replay", None)
        entries = [] if replay is None else list(replay._entries.values())
        captured = sum(entry.graph is not None for entry in entries)
        if self.device.type == "cuda" and not captured:
            same = False
        gate = "" if same else f"other bits than in a batch, or no graph: {captured} captured"
        self.append_timed(
            f"{label} graphs",
            run,
            small,
            model.precision,
            {"equal": same, "gate": gate, "graphs": captured, "ours": True},
        )

    def details(self, model: Model, label: str, row: dict[str, Any]) -> None:
        """Whether a pixel's bits depend on its batch, and where the time goes."""
        run = self.our_run(model, row["batch"])
        alone = np.full((self.sample, self.case.spec.saved_dim), np.nan, np.float32)
        model.encoder.encode(*self.case.packed(0, self.sample), alone)
        invariant = bool((alone == to_numpy(run(0))[: self.sample]).all())
        self.wrong += [] if invariant else [f"{label}: bits depend on the batch"]
        self.append(
            {
                "bench": "gpu_details",
                "contender": label,
                "invariant": invariant,
                "engine": model.provenance(),
                **self.by_op(model, run, row["batch"]),
            }
        )

    def by_op(self, model: Model, run: Callable[[int], Any], batch: int) -> dict[str, Any]:
        """Seconds of every op, where the back end has a profile, and of the top kernels."""
        found: dict[str, Any] = {}
        tokens = self.case.packed(0, batch, self.device if self.device.type == "cuda" else None)
        if hasattr(model.encoder, "profile"):
            found["ops_s"] = model.encoder.profile(*tokens, run(0))
        if self.device.type == "cuda":
            from torch.profiler import ProfilerActivity, profile

            with profile(activities=[ProfilerActivity.CUDA]) as recorded:
                run(0)
                torch.cuda.synchronize(self.device)
            events = sorted(recorded.key_averages(), key=lambda e: -e.self_device_time_total)
            found["kernels_us"] = {
                e.key[:80]: [e.count, e.self_device_time_total] for e in events[:TOP_KERNELS]
            }
        return found

    def tile(self, model: Model, label: str) -> None:
        """Arrays in memory to int8 codes in memory, by the function that users call; wall clock."""
        spec, case = self.case.spec, self.case
        size = 4 if self.args.few else int((TILE_TOKENS / sum(case.lengths)) ** 0.5) // 16 * 16
        arrays = gpu_case.tile_arrays(spec, case.lengths, size)
        run = partial(tf.embed, dict(arrays), model, output="int8", progress=False)
        result, spent = run(), []
        expected = gpu_case.reference(
            spec, self.weights, *gpu_case.first_row(spec, arrays), self.device
        )
        for _ in range(TILE_REPEATS):
            started = time.perf_counter()
            run()
            spent.append(time.perf_counter() - started)
        verdict = gpu_case.gate_int8(
            result.codes[0], result.scales[0], expected, spec, model.precision
        )
        row = self.figures(f"{label} tile", size * size, 1, spent, model.precision, verdict)
        row |= {"bench": "gpu_tile", "raw_bytes": sum(a.nbytes for a in arrays.values())}
        if hasattr(model.encoder, "ranges"):
            with model.encoder.ranges.timed() as by_op:
                run()
            row["stages_s"] = dict(by_op)
        self.finish({**row, "ours": True})

    # ---- the stock engines

    def stock(self) -> None:
        args = self.args
        compiler = args.compiler if args.only_compiled or args.few else None
        found = gpu_stock.contenders(
            self.weights, self.device, args.official, compiler, STOCK_BATCHES
        )
        pool = self.case.sequences(self.device)
        for label, contender in found.items():
            if args.only_compiled and not label.startswith("torch.compile"):
                continue
            call = None

            def build(batch: int, contender: gpu_stock.Contender = contender) -> Any:
                nonlocal call
                call = call or contender.build()
                return _stock_run(self.case, call, pool, batch)

            self.measure(label, build, contender.batches, contender.precision, ours=False)

    # ---- figures

    def measure(
        self,
        label: str,
        build: Callable[[int], Callable[[int], Any]],
        batches: tuple[int, ...],
        precision: str,
        *,
        ours: bool,
    ) -> dict[str, Any] | None:
        """Gate, then time; the row is written at once. None if the contender has no figure."""
        found: dict[int, float] = {}
        failed = ""
        for batch in sorted({min(batch, self.case.pixels) for batch in batches}):
            try:
                run = build(batch)
                got = to_numpy(run(0))[: self.sample, : self.case.spec.saved_dim]
                if not found:
                    verdict = gpu_case.gate(got, self.expected[: len(got)], precision, ours)
                found[batch] = min(seconds(partial(run, i), self.device) for i in (1, 2)) / batch
            except gpu_case.failures() as error:
                failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if not found:
            self.left_out(label, f"failed: {failed}", ours=ours)
            return None
        best = min(found, key=lambda b: found[b])
        extra = {**verdict, "ours": ours, "px_s_by_batch": {b: 1 / s for b, s in found.items()}}
        row = self.append_timed(label, build(best), best, precision, extra)
        return row if row["px_s"] else None

    def append_timed(
        self,
        label: str,
        run: Callable[[int], Any],
        batch: int,
        precision: str,
        verdict: dict[str, Any],
    ) -> dict[str, Any]:
        once = seconds(partial(run, 0), self.device)
        count = max(1, round(REPEAT_SECONDS / once)) if self.device.type == "cuda" else 1
        spent = [
            seconds(partial(_several, run, i * count, count), self.device) for i in range(REPEATS)
        ]
        row = self.figures(label, batch, count, spent, precision, verdict)
        self.finish(row)
        return row

    def figures(
        self,
        label: str,
        batch: int,
        count: int,
        spent: list[float],
        precision: str,
        verdict: dict[str, Any],
    ) -> dict[str, Any]:
        middle = statistics.median(spent)
        row: dict[str, Any] = {
            "bench": "gpu",
            "workload": self.case.name,
            "contender": label,
            "precision": precision,
            "batch": batch,
            "repeats": len(spent),
            "median_s": middle / count,
            "spread": (max(spent) - min(spent)) / middle,
            "gflop_px": self.flop / 1e9,
            **verdict,
        }
        row["px_s"] = batch * count / middle if row["equal"] else None
        if row["px_s"]:
            row["tflop_s"] = row["px_s"] * self.flop / 1e12
            row["share_of_bf16_peak"] = row["tflop_s"] / self.peak if self.peak else None
        return row

    def finish(self, row: dict[str, Any]) -> None:
        self.append(row)
        print_row(self.args.model, row)
        if not row["equal"] and row["ours"]:
            self.wrong.append(row["contender"])

    def left_out(self, label: str, reason: str, *, ours: bool) -> None:
        self.append(
            {
                "bench": "gpu",
                "workload": self.case.name,
                "contender": label,
                "px_s": None,
                "equal": False,
                "gate": reason,
                "ours": ours,
            }
        )
        print(f"{self.args.model:10} {label:30} left out: {reason}", flush=True)
        self.wrong += [label] if ours else []

    def append(self, row: dict[str, Any]) -> None:
        gpu_rows.append(self.args.rows, {**self.common, **row, "compiled": list(self.compiled)})


def _stock_run(
    case: Case, call: gpu_stock.Call, pool: tuple[torch.Tensor, ...], batch: int
) -> Callable[[int], Any]:
    count = case.pixels // batch

    def run(i: int) -> Any:
        first = i % count * batch
        return call(*(x[first : first + batch] for x in pool))

    return run


def _several(run: Callable[[int], Any], first: int, count: int) -> None:
    for i in range(first, first + count):
        run(i)


def _peak(rows: Path | None) -> float | None:
    """bf16 TFLOP/s that the stage "peaks" measured."""
    found = [] if rows is None else [r for r in gpu_rows.read(rows) if r["bench"] == "gpu_peaks"]
    return float(found[-1]["bf16_tflop_s"]) if found else None


def print_row(model: str, row: dict[str, Any]) -> None:
    figure = f"{row['px_s']:12,.0f} px/s" if row["px_s"] else f"WRONG: {row['gate']}"
    text = f"{model:10} {row['contender']:30} {figure}  spread {row['spread']:.0%}"
    text += f"  batch {row['batch']}"
    if "cosine_mean" in row:
        text += f"  cosine {row['cosine_mean']:.6f}, worst {row['cosine_min']:.6f}"
    if row.get("share_of_bf16_peak"):
        text += f"  {row['share_of_bf16_peak']:.0%} of bf16 peak"
    print(text, flush=True)


def to_numpy(values: Any) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.float().cpu().numpy()


if __name__ == "__main__":
    main()
