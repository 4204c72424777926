"""Renew gpu_budget.json: the binaries of each network, and what one costs to compile, measured.

    python bench/gpu_budget.py --write       # compiles all that gpu_check.py does: minutes

A binary is counted by tracing the launches of the back end on tensors without data, and compiled as
on the device (gpu_warm.py) into an empty cache. CPU seconds are counted, with those of ptxas and
the C compiler, so that other work on the machine does not change them.
"""

import argparse
import json
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import gpu_plan
import timing

# What cannot be measured without a GPU. `start_s`: importing torch and Triton, opening the device
# and drawing weights takes 4 s on a quiet CPU. `slower`: a core there, with all cores at work,
# beside one here. They are guesses on the safe side, to be replaced by the first rows of gpu_task.
ESTIMATED = {"start_s": 7.0, "slower": 1.5, "processes": 12}


def networks() -> list[gpu_plan.Network]:
    """Of all stages, each once."""
    planned = gpu_plan.stages(gpu_plan.Options(Path("rows")))
    return list(dict.fromkeys(n for s in planned for t in s.tasks for n in t.networks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 90 for 9.0")
    parser.add_argument("--write", action="store_true", help=f"renew {gpu_plan.BUDGET_FILE.name}")
    parser.add_argument("--count", action="store_true", help="renew only the numbers of binaries")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpu-budget-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        figures = measured(args.arch, compiling=not args.count)
    if args.count:
        figures = {**json.loads(gpu_plan.BUDGET_FILE.read_text()), **figures}
    text = json.dumps(figures, indent=1)
    print(text)
    if args.write:
        gpu_plan.BUDGET_FILE.write_text(f"{text}\n")


def measured(arch: int, compiling: bool) -> dict[str, Any]:
    """The figures of gpu_budget.json; ``compiling=False`` gives the numbers of binaries alone."""
    import triton

    import gpu_warm

    binaries: dict[str, int] = {}
    orders: dict[gpu_warm.Order, None] = {}
    before = os.times()
    for network in networks():
        name = ":".join(network)
        traced = gpu_warm.trace(name, arch)
        # in the order of the plan: a binary that an earlier network has is not compiled again
        binaries[name] = len(set(traced) - orders.keys())
        orders |= dict.fromkeys(traced)
    if not compiling:
        return {"binaries": binaries}
    traced_s = sum(os.times()[:4]) - sum(before[:4])
    seconds = [gpu_warm.compile_one(order) for order in orders]
    return {
        "date": date.today().isoformat(),
        "triton": triton.__version__,
        "cpu": timing.machine()["cpu"],
        "arch": arch,
        "binaries": binaries,
        "cpu_s_per_binary": round(sum(seconds) / len(seconds), 2),
        "longest_cpu_s": round(max(seconds), 2),
        "trace_s": round(3.0 + traced_s / ESTIMATED["processes"], 1),  # 3 s: importing torch
        **ESTIMATED,
    }


if __name__ == "__main__":
    main()
