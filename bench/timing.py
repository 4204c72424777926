"""Fair timings on noisy machines: contenders take turns in one run, medians are compared."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


def interleaved(
    contenders: Mapping[str, Callable[[], Any]], rounds: int = 3
) -> dict[str, list[float]]:
    """Seconds of every contender in every round, after one untimed warm-up of each."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread (max - min over median) of one contender."""
    median = statistics.median(seconds)
    return {"median_s": median, "spread": (max(seconds) - min(seconds)) / median}


def machine() -> dict[str, Any]:
    """What a row needs to be read later: processor, threads, date, commit."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next(
            (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model
        )
        flags = next((x for x in lines if x.startswith("flags")), "")
        wide = [f for f in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni") if f in flags.split()]
        model += f" ({', '.join(wide)})"
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True
    )
    return {
        "cpu": model,
        "python": platform.python_version(),
        "commit": git.stdout.strip() if git.returncode == 0 else "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
