"""Tile on disk to embeddings: ours beside the official code, same tile, same weights, one run.

    python bench/bench_tile.py --official path/to/tessera --models v2-nano v2-small
    python bench/bench_tile.py --official path/to/tessera --tile path/to/tile --json out.jsonl

The weights are seeded and untrained: they cost what trained ones cost. A ratio is printed only if
the two embeddings agree; without --official, ours alone is timed against the recorded gate of the
test suite. The official code is timed at the batch size that suits it best of --batches.
"""

import argparse
import runpy
import tempfile
from pathlib import Path

import numpy as np

import official
import tessera_fast as tf
import timing
from tessera_fast.synthetic import synthetic_tile, write_tile

# The golden gate of the test suite: float32 engines differ from each other by less.
ORACLE = Path(__file__).resolve().parents[1] / "tests" / "helpers" / "oracle.py"
ATOL = runpy.run_path(str(ORACLE))["GOLDEN_ATOL"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--official", type=Path, help="checkout of ucam-eo/tessera")
    parser.add_argument("--tile", type=Path, help="tile folder (default: a synthetic one)")
    parser.add_argument("--size", type=int, default=48, help="side of the synthetic tile")
    parser.add_argument("--models", nargs="+", default=["v2-nano", "v2-small", "v2-medium"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 1024])
    parser.add_argument("--json", type=Path, help="write one row a contender")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.tile
        if folder is None:
            folder = write_tile(synthetic_tile(args.size, args.size), Path(scratch) / "tile")
        rows = []
        for name in args.models:
            rows += compare(name, folder, args)
    if args.json:
        timing.write_rows(args.json, rows)


def compare(name: str, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Rows of one model; prints as it goes."""
    model = tf.load_model(name, weights="untrained", threads=args.threads)
    results: dict[str, np.ndarray] = {}

    def ours() -> None:
        results["tessera_fast"] = tf.embed(folder, model, progress=False)

    contenders = {"tessera_fast": ours}
    if args.official:
        import torch

        torch.set_num_threads(args.threads)
        for batch in args.batches:
            run = official.load(args.official, model.weights, folder, batch)
            label = f"official, batch {batch}"
            contenders[label] = lambda run=run, label=label: results.update({label: run()})
    seconds = timing.interleaved(contenders, args.rounds)

    mine = results["tessera_fast"]
    pixels = mine.shape[0] * mine.shape[1]
    observed = ~np.isnan(mine).any(-1)
    rows = []
    for label, times in seconds.items():
        stats = timing.summary(times)
        error = float(np.abs(results[label] - mine)[observed].max())
        rows.append(
            {
                "bench": "tile",
                "model": name,
                "contender": label,
                "tile": folder.name,
                "pixels": pixels,
                "px_s": pixels / stats["median_s"],
                **stats,
                "max_abs_difference": error,
                "equal": error <= ATOL,
                "precision": "fp32",
                "threads": args.threads,
                "engine": model.provenance(),
                **timing.machine(),
            }
        )
        print(
            f"{name:10} {label:22} {rows[-1]['px_s']:9.1f} px/s  spread {stats['spread']:.0%}  "
            f"max difference {error:.1e}{'' if error <= ATOL else '  NOT EQUAL'}"
        )
    if args.official:
        best = max(r["px_s"] for r in rows[1:])
        if all(r["equal"] for r in rows):
            print(f"{name:10} {rows[0]['px_s'] / best:.2f}x the official code at its best batch")
        else:
            raise SystemExit(f"{name}: the embeddings differ by more than {ATOL}: no ratio")
    return rows


if __name__ == "__main__":
    main()
