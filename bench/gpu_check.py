"""One command on a machine with a GPU: build, tests, sanitizers, ceilings, benchmark, a table last.

    python bench/gpu_check.py --out out --official path/to/tessera
    python bench/gpu_check.py --only bench --models v2-nano v2-small --ncu
    python bench/gpu_check.py --dry-run

It needs torch with CUDA, Triton, nvcc, cmake, ninja, pybind11 and pytest, and installs nothing: the
package is put together in build/gpu. Stages run in the order of their importance, each a process of
its own: one that fails is reported and the next one runs; one that the budget has no time left for
is skipped with a line. Rows go to gpu.jsonl, all output to gpu.log, the last table to gpu.txt.

Without --official the official module is rebuilt from the framework's layers with our weights.
--dry-run needs no GPU: it prints the plan and runs every contender at a tiny size on the CPU in
float32, ours by --backend (cuda: in Triton's interpreter and the emulation of CUDA).
"""

import argparse
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_report

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
BUILD = REPOSITORY / "build" / "gpu"
MODELS = ("v2-nano", "v2-small", "v2-medium", "v2-large", "v1.1-mpc", "v1.0-qat")
CASES = ((50, 60), (100, 73))
FUSED = ("v2-nano",)  # also as one CUDA kernel a stream
OTHER_PRECISIONS = ("fp16", "tf32", "fp32", "fp8", "int8")
KINDS = ("build", "small", "tests", "memcheck", "racecheck", "ceilings", "bench", "ncu", "long",
         "precisions")  # fmt: skip
NEEDED = ("numpy", "torch", "triton", "pytest", "pybind11")
NOT_ON_A_GPU = ("test_triton_aot.py", "test_cuda_emulator.py")  # compilers, and the emulation
SANITIZER_ERROR = 9
TOGETHER = ("small", "tests", "memcheck", "racecheck")  # nothing is timed in them: side by side
QUIET = (*TOGETHER, "build", "ncu")  # their output goes to the log
TAIL_PASSED, TAIL_FAILED = 3, 25  # lines of it
BUDGET = 520.0
RESERVE = 5.0  # seconds for the last table


@dataclass
class Stage:
    kind: str
    title: str
    command: list[str]
    least: float  # seconds without which it is not begun
    most: float  # seconds after which it is ended
    environment: dict[str, str] = field(default_factory=dict)
    compiled: str | None = None  # model whose compiled program is asked for if it is ready


def main() -> None:
    args = arguments().parse_args()
    out = (args.out or Path(os.environ.get("OUT", BUILD / "out"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    check = Check(args, out)
    print(f"Python {sys.version.split()[0]}, results in {out}")
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        print(f"  {name:10} {'there' if spec else 'MISSING'}")
    stages = list(plan(args, check))
    for stage in stages:
        print(f"  {stage.kind:10} {stage.title}: {stage.least:.0f}-{stage.most:.0f} s")
    try:
        check.begin()
        for together, group in itertools.groupby(stages, lambda s: s.kind in TOGETHER):
            with ThreadPoolExecutor(len(TOGETHER) if together else 1) as pool:
                list(pool.map(check.run, group))
    finally:
        check.end_background()
    text = "\n".join([check.summary(), gpu_report.report(gpu_report.read(check.rows))])
    (out / "gpu.txt").write_text(text + "\n")
    print(f"\n{text}")
    raise SystemExit(0 if check.passed else 1)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="folder for results (default: $OUT)")
    parser.add_argument("--only", nargs="+", choices=KINDS, help="stages to run (default: all)")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--precision", default="bf16", help="ours, in the stages bench and long")
    parser.add_argument("--official", type=Path, help="checkout of ucam-eo/tessera")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--architectures", help="of CUDA code (default: the one of the device)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--ncu", action="store_true", help="counters of the first model's kernels")
    parser.add_argument("--dry-run", action="store_true", help="everything that needs no GPU")
    parser.add_argument("--backend", default=None, choices=("cuda", "cpu"), help="ours")
    parser.add_argument("--commit", help="for the rows, where there is no git")
    return parser


# ---- the plan


def plan(args: argparse.Namespace, check: "Check") -> Iterator[Stage]:
    """The stages asked for, the most important first."""
    wanted = args.only or [k for k in KINDS if k != "ncu" or args.ncu]
    for stage in _dry_stages(args, check) if args.dry_run else _stages(args, check):
        if stage.kind in wanted:
            yield stage


def _stages(args: argparse.Namespace, check: "Check") -> Iterator[Stage]:
    device, precise = ("--device", args.device), ("--precisions", args.precision)
    small = check.worker("gpu_small.py", *device, "--precision", args.precision)
    chosen = ("--architectures", args.architectures) if args.architectures else ()
    build = check.worker("gpu_build.py", str(BUILD), *chosen)
    yield Stage("build", "cmake and ninja", build, 20, 260)
    yield Stage("small", "a tile of every kind of pixel", small, 20, 150)
    yield Stage("tests", "pytest on the device", _pytest(), 30, 200)
    for tool in ("memcheck", "racecheck"):
        sanitizer = ["compute-sanitizer", "--tool", tool, f"--error-exitcode={SANITIZER_ERROR}"]
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that a buffer's end is its end
        yield Stage(tool, "compute-sanitizer on a small tile", [*sanitizer, *small, "--few"],
                    30, 150, alone)  # fmt: skip
    peaks = check.worker("gpu_peaks.py", *device, *check.row_options())
    yield Stage("ceilings", "copies and products", peaks, 10, 60)
    for model in args.models:
        fused = [f"{args.precision}+fused"] if model in FUSED else []
        command = check.model(model, CASES[0], *precise, *fused)
        yield Stage("bench", f"{model}, {_text(CASES[0])}", command, 20, 100, compiled=model)
    ncu = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--launch-count", "40"]
    one = check.worker("gpu_small.py", *device, "--precision", args.precision, "--profiled")
    yield Stage("ncu", f"{args.models[0]}, one encode", [*ncu, *one, args.models[0]], 30, 90)
    for model in args.models:
        if not model.startswith("v1.0"):  # it reads 40 + 40 dates whatever there are
            command = check.model(model, CASES[1], *precise)
            yield Stage("long", f"{model}, {_text(CASES[1])}", command, 20, 80)
    for model in args.models:
        command = check.model(model, CASES[0], "--precisions", *OTHER_PRECISIONS, "--no-stock",
                              "--no-tile")  # fmt: skip
        yield Stage("precisions", f"{model}, {_text(CASES[0])}", command, 25, 90)


def _dry_stages(args: argparse.Namespace, check: "Check") -> Iterator[Stage]:
    cpu = (args.backend or "cpu") == "cpu"
    device = ("--device", "cpu" if cpu else "interpreter", "--backend", "cpu" if cpu else "cuda")
    environment = {} if cpu else {"TRITON_INTERPRET": "1"}
    tiny = (*device, "--precisions", "fp32", "--pool", "8", "--tile-size", "4")
    compiler = () if args.no_compile else ("--compiler", "eager")
    yield Stage("small", "a tile of every kind of pixel", check.worker(
        "gpu_small.py", *device, "--precision", "fp32", "--few"), 5, 300, environment)  # fmt: skip
    yield Stage("ceilings", "copies and products", check.worker(
        "gpu_peaks.py", "--device", "cpu", "--small", *check.row_options()), 5, 60)  # fmt: skip
    for model in args.models:
        yield Stage("bench", f"{model}, 5 + 6 dates", check.model(model, (5, 6), *tiny, *compiler),
                    5, 600, environment)  # fmt: skip


def _pytest() -> list[str]:
    """The GPU's tests: kernels, back end, golden outputs. Several processes share the device."""
    files = sorted(
        str(path.relative_to(REPOSITORY))
        for stem in ("triton", "cuda")
        for path in (REPOSITORY / "tests").glob(f"test_{stem}_*.py")
        if path.name not in NOT_ON_A_GPU
    )
    many = ["-n", "6", "--dist", "loadfile"] if importlib.util.find_spec("xdist") else []
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *many, *files]


def _text(case: tuple[int, int]) -> str:
    return f"{case[0]} + {case[1]} dates"


# ---- running it


class Check:
    """Runs stages within the budget; keeps what came of them."""

    def __init__(self, args: argparse.Namespace, out: Path) -> None:
        self._args = args
        self._started = time.monotonic()
        self.rows, self._log = out / "gpu.jsonl", out / "gpu.log"
        self._results: list[tuple[Stage, str]] = []
        self._lock = threading.Lock()
        self._background: list[subprocess.Popen[Any]] = []
        self._compiled = BUILD / "compiled"
        for path in (self.rows, self._log):
            path.unlink(missing_ok=True)

    def worker(self, script: str, *options: str) -> list[str]:
        return [sys.executable, str(HERE / script), *options]

    def row_options(self) -> list[str]:
        commit = ["--commit", self._args.commit] if self._args.commit else []
        return ["--rows", str(self.rows), *commit]

    def model(self, model: str, dates: tuple[int, int], *options: str) -> list[str]:
        official = ["--official", str(self._args.official.resolve())] if self._args.official else []
        device = [] if "--device" in options else ["--device", self._args.device]
        dated = ["--dates", *map(str, dates)]
        command = self.worker("gpu_model.py", "--model", model, *dated, *device, *options)
        return [*command, *official, *self.row_options()]

    def left(self) -> float:
        return self._args.budget - RESERVE - (time.monotonic() - self._started)

    def begin(self) -> None:
        """torch.compile takes minutes for all models: beside the build, into its cache on disk."""
        wanted = self._args.only or ["bench"]
        if self._args.dry_run or self._args.no_compile or "bench" not in wanted:
            return
        shutil.rmtree(self._compiled, ignore_errors=True)
        for model in self._args.models:
            command = self.model(model, CASES[0], "--compiler", "inductor", "--warm",
                                 str(self._compiled / model))  # fmt: skip
            with self._log.open("ab") as log:
                self._background.append(
                    subprocess.Popen(["nice", *command], stdout=log, stderr=log,
                                     env=self._environment({}, built=False), cwd=REPOSITORY,
                                     start_new_session=True)
                )  # fmt: skip

    def end_background(self) -> None:
        for process in self._background:
            _end(process)
            process.wait()
        self._background = []

    def run(self, stage: Stage) -> None:
        skipped = ""
        if self.left() < stage.least:
            skipped = "skipped: out of time"
        elif shutil.which(stage.command[0]) is None:
            skipped = f"skipped: there is no {stage.command[0]}"
        if skipped:
            print(f"== {stage.kind}: {stage.title}: {skipped}", flush=True)
            self._results.append((stage, skipped))
            return
        if stage.kind in ("ceilings", "bench", "long"):
            self.end_background()  # figures are taken alone
        command = [*stage.command, *self._extras(stage)]
        print(f"\n== {stage.kind}: {stage.title} ({self.left():.0f} s left)", flush=True)
        started = time.monotonic()
        outcome = self._execute(command, stage, min(stage.most, self.left()))
        self._results.append((stage, f"{outcome}, {time.monotonic() - started:.0f} s"))
        print(f"== {stage.kind}: {self._results[-1][1]}", flush=True)

    def _extras(self, stage: Stage) -> list[str]:
        """What only earlier stages know: the measured peak, and which program is compiled."""
        extras: list[str] = []
        if stage.kind in ("bench", "long", "precisions") and not self._args.dry_run:
            peaks = [r for r in gpu_report.read(self.rows) if r["bench"] == "gpu_peaks"]
            extras += ["--peak", str(peaks[-1]["bf16_tflop_s"])] if peaks else []
        ready = stage.compiled is not None and (self._compiled / stage.compiled).exists()
        if ready and not self._args.no_compile:
            extras += ["--compiler", "inductor"]
        return extras

    def _execute(self, command: list[str], stage: Stage, seconds: float) -> str:
        """Run with all output to the log, and to the terminal what is worth it there."""
        lines: list[str] = []
        quiet = stage.kind in QUIET and not self._args.dry_run
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=REPOSITORY, text=True,
            errors="replace", env=self._environment(stage.environment), start_new_session=True,
        )  # fmt: skip
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), _end(process)))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not quiet:
                print(line, end="", flush=True)
        code = process.wait()
        timer.cancel()
        with self._lock, self._log.open("a") as log:
            log.writelines([f"\n== {stage.kind}: {stage.title}\n{' '.join(command)}\n", *lines])
            if quiet:
                print("".join(lines[-TAIL_PASSED if code == 0 else -TAIL_FAILED :]), end="")
        if late.is_set():
            return f"FAILED: ended after {seconds:.0f} s"
        return "passed" if code == 0 else f"FAILED: status {code}"

    def _environment(self, more: dict[str, str], built: bool = True) -> dict[str, str]:
        """Of a stage: the package that was built here, or in a dry run the one there is."""
        kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        place = BUILD / "python" if built else REPOSITORY / "python"
        if not self._args.dry_run:
            kept["PYTHONPATH"] = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
            kept["TORCHINDUCTOR_CACHE_DIR"] = str(BUILD / "inductor")
            kept["TORCHINDUCTOR_COMPILE_THREADS"] = "4"
        return {**kept, "PYTHONUNBUFFERED": "1", **more}

    @property
    def passed(self) -> bool:
        return all(text.startswith(("passed", "skipped")) for _, text in self._results)

    def summary(self) -> str:
        return "\n".join(
            f"{stage.kind:10} {stage.title:36} {text}" for stage, text in self._results
        )


def _end(process: "subprocess.Popen[Any]") -> None:
    """Of a process and all it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
