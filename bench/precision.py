"""What bf16 and int8 cost in accuracy: embeddings beside those in fp32, same weights, same pixels.

    python bench/precision.py path/to/tile path/to/another --json out.jsonl

Pixels are spread evenly over every tile. The weights of released models are seeded and
untrained (--weights takes a checkpoint instead): they prove the arithmetic, and say little about
how peaked a trained model's attention is. Those of demo-nano are trained. The verdict is the gate
of tests/helpers/oracle.py.
"""

import argparse
import runpy
from pathlib import Path
from typing import Any

import numpy as np

import tessera_fast as tf
import timing
import workloads
from tessera_fast.packing import pack
from tessera_fast.spec import RELEASED

ORACLE = runpy.run_path(
    str(Path(__file__).resolve().parents[1] / "tests" / "helpers" / "oracle.py")
)
MODELS = ["v2-nano", "v2-small", "v2-medium", "v2-large", "v1.1-mpc", "v1.0-qat"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tiles", nargs="*", type=Path, help="default: pixels of fixed lengths")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--weights", help="default: untrained, but for demo-nano")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--pixels", type=int, default=256, help="of every tile")
    parser.add_argument("--json", type=Path, help="write one row a model and precision")
    args = parser.parse_args()

    tiles = args.tiles or [None]
    print(
        f"{'model':10} {'precision':9} {'cosine mean':>12} {'worst':>9} {'within 1':>9} "
        f"{'max':>4} {'scale':>7}  gate"
    )
    rows = [row for name in args.models for row in compare(name, tiles, args)]
    if args.json:
        timing.write_rows(args.json, rows)
    if not all(row["gate"] for row in rows):
        raise SystemExit("a gate is not met")


def compare(name: str, tiles: list[Path | None], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model; prints as it goes."""
    weights = args.weights or ("untrained" if name in RELEASED else None)
    expected, isa = embeddings(name, weights, "fp32", tiles, args.pixels)
    observed = ~np.isnan(expected).any(-1)
    expected = expected[observed]
    rows = []
    for precision in args.precisions:
        got = embeddings(name, weights, precision, tiles, args.pixels)[0][observed]
        cosine = ORACLE["cosines"](got, expected)
        codes, wanted = (
            tf.quantize(e, absmax_floor=1e-12, scale_floor=0.0) for e in (got, expected)
        )
        step = np.abs(codes.codes.astype(int) - wanted.codes)
        row = {
            "bench": "precision",
            "model": name,
            "weights": weights or "its own",
            "precision": precision,
            "tiles": [tile.name if tile else "fixed lengths" for tile in tiles],
            "pixels": len(expected),
            "isa": isa,
            "cosine_mean": float(cosine.mean()),
            "cosine_worst": float(cosine.min()),
            "codes_within_1": float((step <= 1).mean()),
            "codes_max": int(step.max()),
            "scale_ratio": float(np.abs(codes.scales / wanted.scales - 1).max()),
            "gate": passes(got, expected, precision),
            **timing.machine(),
        }
        rows.append(row)
        print(
            f"{name:10} {precision:9} {row['cosine_mean']:12.6f} {row['cosine_worst']:9.6f} "
            f"{row['codes_within_1']:9.3%} {row['codes_max']:4} {row['scale_ratio']:7.2%}  "
            f"{'met' if row['gate'] else 'NOT MET'}",
            flush=True,
        )
    return rows


def passes(got: np.ndarray, expected: np.ndarray, precision: str) -> bool:
    try:
        ORACLE["assert_reduced"](got, expected, precision)
    except AssertionError as error:
        print(error)
        return False
    return True


def embeddings(
    name: str, weights: str | None, precision: str, tiles: list[Path | None], pixels: int
) -> tuple[np.ndarray, str]:
    """(P, E) float32 of the chosen pixels of all tiles, and the instruction set."""
    parts = []
    with tf.load_model(name, weights=weights, precision=precision) as model:
        for tile in tiles:
            window = workloads.choose(model.spec, tile, pixels)[1]
            s2, s1, _ = pack(window, model.spec)
            out = np.empty((s2.pixels, model.repr_dim), np.float32)
            model.encoder.encode(s2, s1, out)
            parts.append(out)
        return np.concatenate(parts), model.provenance()["isa"]


if __name__ == "__main__":
    main()
