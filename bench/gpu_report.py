"""The tables of gpu_check.py from its rows: figures, ratios, goals, and the ledger of predictions.

python bench/gpu_report.py out/gpu.jsonl
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpu_rows import Row, read

PREDICTIONS = Path(__file__).with_name("gpu_predictions.json")


class Goal(NamedTuple):
    """px/s on an H100, model only, 50 + 60 tokens."""

    wanted: float
    least: float


GOAL_CASE = "50 + 60 tokens"
GOALS = {
    "v2-nano": Goal(3.6e6, 2e6),
    "v2-small": Goal(600e3, 400e3),
    "v2-medium": Goal(200e3, 150e3),
    "v2-large": Goal(100e3, 75e3),
    "v1.1-mpc": Goal(80e3, 50e3),
}


def report(rows: list[Row]) -> str:
    """Everything, short enough to be read at the end of a log."""
    lines = [
        *_correct(rows),
        *_ceilings(rows),
        *_models(rows),
        *_tiles(rows),
        *_ledger(rows),
        *_outside(rows),
        *_compiled(rows),
    ]
    return "\n".join(lines) if lines else "no figures"


def _correct(rows: list[Row]) -> Iterator[str]:
    """Right or wrong, a line per model and contender; and the kernel that was found wrong."""
    verdicts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["bench"] == "gpu_small":
            verdicts.setdefault((row["model"], row["contender"]), []).append(row)
    for (model, contender), forms in verdicts.items():
        wrong = [f"{row['form']}: {row['gate']}" for row in forms if not row["equal"]]
        cosine = min((row["cosine_min"] for row in forms if "cosine_min" in row), default=None)
        least = "" if cosine is None else f"worst cosine {cosine:.6f}"
        verdict = f"WRONG {'; '.join(wrong)}" if wrong else f"right {least}"
        yield f"{model:10} {contender:14} {verdict}"
    for row in rows:
        if row["bench"] == "gpu_ops":
            yield f"{row['model']:10} {row['contender']:14} {row['text']}"


def _ceilings(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row["bench"] == "gpu_peaks":
            yield (
                f"{row.get('gpu', row.get('cpu', 'device'))}: copy {row['copy_gb_s']:,.0f} GB/s, "
                f"bf16 {row['bf16_tflop_s']:,.1f}, fp16 {row['fp16_tflop_s']:,.1f}, "
                f"fp8 {row.get('fp8_tflop_s', 0):,.1f} TFLOP/s, "
                f"up {row['upload_gb_s']:,.0f}, down {row['download_gb_s']:,.0f} GB/s"
            )


def _cases(rows: list[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """(model, workload, its rows of the model only), in the order of the rows."""
    seen: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["bench"] == "gpu":
            seen.setdefault((row["model"], row["workload"]), []).append(row)
    for (model, workload), members in seen.items():
        yield model, workload, members


def _ours(members: list[Row]) -> list[Row]:
    return [r for r in members if r["ours"] and r["px_s"]]


def _stock(members: list[Row]) -> list[Row]:
    return [r for r in members if not r["ours"] and r["px_s"]]


def _models(rows: list[Row]) -> Iterator[str]:
    head = f"{'model only':10} {'tokens':>9} {'ours':18} {'px/s':>11} {'of peak':>7} {'x fp32':>7} "
    head += f"{'x best':>6} {'best of the stock engines':32} {'goal':>6} {'least':>6}"
    if any(_ours(members) for _, _, members in _cases(rows)):
        yield head
    for model, workload, members in _cases(rows):
        stock = _stock(members)
        eager = next((r for r in stock if r["precision"] == "fp32"), None)
        best = max(stock, key=lambda r: r["px_s"], default=None)
        for row in _ours(members):
            share = row.get("share_of_bf16_peak")
            goal = GOALS.get(model) if workload == GOAL_CASE else None
            yield (
                f"{model:10} {workload.removesuffix(' tokens'):>9} {row['contender']:18} "
                f"{row['px_s']:11,.0f} {_percent(share):>7} {_times(row, eager):>7} "
                f"{_times(row, best):>6} {best['contender'] if best else '-':32} "
                f"{_percent(goal and row['px_s'] / goal.wanted):>6} "
                f"{_percent(goal and row['px_s'] / goal.least):>6}"
            )


def _tiles(rows: list[Row]) -> Iterator[str]:
    tiles = [r for r in rows if r["bench"] == "gpu_tile" and r["px_s"]]
    if tiles:
        head = f"{'tile->int8':10} {'tokens':>9} {'ours':18} {'px/s':>11}"
        yield f"{head}  stages"
    for row in tiles:
        stages = sorted(row.get("stages_s", {}).items(), key=lambda pair: -pair[1])[:4]
        text = ", ".join(f"{name} {s / row['median_s']:.0%}" for name, s in stages)
        yield (
            f"{row['model']:10} {row['workload'].removesuffix(' tokens'):>9} {row['contender']:18} "
            f"{row['px_s']:11,.0f}  {text}"
        )


def _ledger(rows: list[Row]) -> Iterator[str]:
    predictions = json.loads(PREDICTIONS.read_text())
    first = True
    for model, workload, members in _cases(rows):
        predicted = predictions.get(model, {}).get(workload)
        for row in _ours(members):
            if predicted is None or row["contender"] != f"triton {predicted['precision']}":
                continue
            if first:
                yield f"{'ledger':10} {'tokens':>9} {'predicted':>11} {'outcome':>11} {'off by':>7}"
                first = False
            yield (
                f"{model:10} {workload.removesuffix(' tokens'):>9} {predicted['px_s']:11,.0f} "
                f"{row['px_s']:11,.0f} {row['px_s'] / predicted['px_s'] - 1:+7.0%}  "
                f"{predicted['why']}"
            )


def _outside(rows: list[Row]) -> Iterator[str]:
    """Who has no figure, and why."""
    for row in rows:
        if row["bench"] in ("gpu", "gpu_tile") and not row["px_s"]:
            where = f"{row['model']}, {row['workload']}, {row['contender']}"
            yield f"no figure: {where}: {row['gate'][:120]}"


def _compiled(rows: list[Row]) -> Iterator[str]:
    """Kernels that were not in the cache: the warm-up should have had them."""
    names = sorted({name for row in rows for name in row.get("compiled", [])})
    if names:
        yield f"not compiled ahead of time: {', '.join(names)}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _times(row: Row, other: Row | None) -> str:
    return "-" if other is None else f"{row['px_s'] / other['px_s']:.2f}"


if __name__ == "__main__":
    print(report(read(Path(sys.argv[1]))))
