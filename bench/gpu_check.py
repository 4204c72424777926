"""One command on a machine with a GPU: does it run, is it right, how fast is it.

    python bench/gpu_check.py                        # every stage, under eight minutes
    python bench/gpu_check.py --quick                # two models, right or wrong, px/s: a minute
    python bench/gpu_check.py --stage build --stage speed
    python bench/gpu_check.py --dry-run              # the plan with its seconds; needs no GPU

It needs torch with CUDA, Triton, nvcc, cmake, ninja and pybind11, and installs nothing: the package
is put together in build/gpu. Stages run in the order of their value, and every task of a stage is a
process of its own, killed with its children at its limit: a crash, a hang or an illegal address
costs the rows of that task and no others. A row is on disk in gpu.jsonl, and a line on the
terminal, at the moment it is known. All output goes to gpu.log, the last table to gpu.txt. With
--stage rows are added to those of earlier runs.
"""

import argparse
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gpu_report
import gpu_rows
from gpu_plan import (
    BUILD,
    CUDA_TOOLS,
    HERE,
    QUICK_TOTAL,
    REPOSITORY,
    TOTAL,
    Budget,
    Options,
    Stage,
    Task,
    capability,
    quick_stages,
    stages,
)

LEAST = 2.0  # seconds under which nothing is begun
GRACE = 1.0  # seconds for the last lines of a process that was killed


def main() -> None:
    args = arguments().parse_args()
    out = args.out.resolve()
    rows = out / "gpu.jsonl"
    arch = args.arch or (90 if args.dry_run else capability(args.device))
    official = args.official.resolve() if args.official else None
    options = Options(rows, args.device, arch, official, args.commit)
    planned = quick_stages(options) if args.quick else stages(options)
    wanted = args.stage or [stage.name for stage in planned]
    unknown = set(wanted) - {stage.name for stage in planned}
    if unknown:
        names = ", ".join(stage.name for stage in planned)
        raise SystemExit(f"there is no stage {', '.join(sorted(unknown))}: choose from {names}")
    if args.dry_run:
        print(plan_text(planned, wanted))
        return
    chosen = [stage for stage in planned if stage.name in wanted]
    if (
        not any(task.essential for stage in chosen for task in stage.tasks)
        and not (BUILD / "python").exists()
    ):
        raise SystemExit(f"there is no build in {BUILD}: run --stage build first")
    check = Check(out, QUICK_TOTAL if args.quick else TOTAL, anew=not args.stage)
    print(f"compute capability {arch / 10}, rows in {rows}", flush=True)
    for stage in chosen:
        if not check.run(stage):
            print("nothing else can run without it", flush=True)
            break
    text = "\n".join([check.summary(), gpu_report.report(gpu_rows.read(rows))])
    (out / "gpu.txt").write_text(text + "\n")
    print(f"\n{text}")
    raise SystemExit(0 if check.passed else 1)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for results")
    parser.add_argument("--stage", action="append", help="run only this stage; may be repeated")
    parser.add_argument("--quick", action="store_true", help="two models in a minute")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its seconds")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--arch", type=int, help="compute capability, 90 for 9.0 (default: asked)")
    parser.add_argument("--official", type=Path, help="checkout of ucam-eo/tessera")
    parser.add_argument("--commit", help="for the rows, where there is no git")
    return parser


def plan_text(planned: list[Stage], wanted: list[str]) -> str:
    """The plan as a table: binaries compiled, expected seconds, limit."""
    lines = [f"{'stage':13} {'binaries':>8} {'expected':>9} {'limit':>6}"]
    expected = limits = 0.0
    for stage, binaries, seconds in Budget.read().plan(planned):
        if stage.name in wanted:
            lines.append(
                f"{stage.name:13} {binaries:8} {seconds:7.0f} s {stage.limit:4.0f} s  {stage.what}"
            )
            expected, limits = expected + seconds, limits + stage.limit
    return "\n".join([*lines, f"{'all':13} {'':8} {expected:7.0f} s {limits:4.0f} s"])


class Check:
    """Runs stages; a row and a line for each task and each stage as it ends."""

    def __init__(self, out: Path, total: float = TOTAL, anew: bool = True) -> None:
        """``anew``: rows of an earlier check are put aside as gpu.jsonl.old, else added to."""
        out.mkdir(parents=True, exist_ok=True)
        self.rows, self.log = out / "gpu.jsonl", out / "gpu.log"
        self._results: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()
        self._end = time.monotonic() + total
        for path in (self.rows, self.log):
            if anew and path.exists():
                path.replace(path.with_name(f"{path.name}.old"))

    @property
    def passed(self) -> bool:
        return all(outcome.startswith("passed") for _, _, outcome in self._results)

    def summary(self) -> str:
        return "\n".join(f"{stage:13} {task:22} {text}" for stage, task, text in self._results)

    def run(self, stage: Stage) -> bool:
        """Whether later stages can run: all essential tasks passed."""
        started = time.monotonic()
        deadline = min(started + stage.limit, self._end)
        self._say(f"\n== {stage.name}: {stage.what} ({deadline - started:.0f} s)")
        with ThreadPoolExecutor(stage.together) as pool:
            passed = list(pool.map(lambda task: self._task(stage, task, deadline), stage.tasks))
        seconds = time.monotonic() - started
        gpu_rows.append(
            self.rows,
            {
                "bench": "gpu_stage",
                "stage": stage.name,
                "passed": all(passed),
                "seconds": round(seconds, 1),
                "limit": stage.limit,
            },
        )
        self._say(f"== {stage.name}: {sum(passed)} of {len(passed)} passed, {seconds:.0f} s")
        return all(p for p, task in zip(passed, stage.tasks, strict=True) if task.essential)

    def _task(self, stage: Stage, task: Task, deadline: float) -> bool:
        outcome = self._timed(stage, task, task.command, deadline, "task")
        if outcome != "passed" and task.diagnosis:
            self._timed(stage, task, task.diagnosis, deadline, "diagnosis")
        return outcome == "passed"

    def _timed(
        self,
        stage: Stage,
        task: Task,
        command: tuple[str, ...],
        deadline: float,
        what: str,
    ) -> str:
        started = time.monotonic()
        seconds = min(task.limit, deadline - started)
        outcome, last = "not run: no time is left for it", ""
        if shutil.which(command[0], path=environment(task)["PATH"]) is None:
            outcome = f"not run: there is no {command[0]}"
        elif seconds >= LEAST:
            outcome, last = self._execute(stage, task, command, seconds)
        spent = time.monotonic() - started
        name = task.name if what == "task" else f"{task.name} {what}"
        gpu_rows.append(
            self.rows,
            {
                "bench": f"gpu_{what}",
                "stage": stage.name,
                "task": task.name,
                "outcome": outcome,
                "seconds": round(spent, 1),
                "limit": task.limit,
                "last_line": "" if outcome == "passed" else last,
            },
        )
        self._results.append((stage.name, name, f"{outcome}, {spent:.0f} s"))
        self._say(f"-- {stage.name} {name}: {outcome}, {spent:.0f} s")
        return outcome

    def _execute(
        self, stage: Stage, task: Task, command: tuple[str, ...], seconds: float
    ) -> tuple[str, str]:
        """(outcome, last line of the output). Lines go to the terminal and the log as they come."""
        guard = [sys.executable, "-S", str(HERE / "gpu_guard.py"), str(seconds), *command]
        started = time.monotonic()
        process = subprocess.Popen(
            guard,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            text=True,
            errors="replace",
            env=environment(task),
            start_new_session=True,
        )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        mark = f"{task.name}: " if stage.together > 1 else ""

        def follow() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    lines.put(line.rstrip())
                    self._say(f"   {mark}{line.rstrip()}")

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        try:
            code = process.wait(seconds + GRACE)
        except subprocess.TimeoutExpired:  # the guard itself hangs
            code = -signal.SIGKILL
        kill_group(process.pid)
        process.wait()
        reader.join(GRACE)
        last = ""
        while not lines.empty():
            last = lines.get()
        late = code == -signal.SIGKILL and time.monotonic() - started >= seconds - GRACE
        return outcome_of(code, late, seconds), last

    def _say(self, line: str) -> None:
        with self._lock, self.log.open("a") as log:
            log.write(f"{line}\n")
            print(line, flush=True)


def outcome_of(code: int, late: bool, seconds: float) -> str:
    if code == 0:
        return "passed"
    if late:
        return f"FAILED: killed at its limit of {seconds:.0f} s"
    number = code - 128 if code > 128 else -code
    if code < 0 or number in set(signal.Signals):
        return f"FAILED: killed by {signal.Signals(number).name}"
    return f"FAILED: status {code}"


def kill_group(leader: int) -> None:
    """A process and all it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def environment(task: Task) -> dict[str, str]:
    """The package that was built here, and the same caches and settings for every task: Triton's
    cache goes by some of its settings, so none is inherited."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    path = os.pathsep.join([str(BUILD / "python"), kept.get("PYTHONPATH", "")])
    mine: dict[str, Any] = {
        "PATH": os.pathsep.join([kept.get("PATH", os.defpath), CUDA_TOOLS]),
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(BUILD / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor"),
    }
    return {**kept, **mine, **task.environment}


if __name__ == "__main__":
    main()
