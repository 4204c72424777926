"""The stages of gpu_check.py, the most valuable first, and what each is expected to take.

A stage is a list of tasks, and a task is a process of its own with a limit. What a task compiles
is counted in binaries of Triton; `Budget` turns them into seconds with the measured figures of
gpu_budget.json. Nothing here imports torch or Triton.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
BUILD = REPOSITORY / "build" / "gpu"
BUDGET_FILE = HERE / "gpu_budget.json"
TOTAL, QUICK_TOTAL = 480.0, 60.0  # seconds that all stages together may take

FIRST = ("v2-nano", "v2-small")
WIDE = ("v2-medium", "v2-large", "v1.1-mpc")
MODELS = (*FIRST, *WIDE)
CUDA_TOOLS = "/usr/local/cuda/bin"  # where the path may not lead
TINY = ("v2-tiny", "v1.1-tiny")  # for the sanitizers, which are slow
_TINY_SIZES = {"d_model": 48, "num_layers": 1, "ff_dim": 80, "out_dim": 24, "saved_dim": 16}
FUSED = ("v2-nano",)  # whose whole network is also one CUDA kernel per stream
REDUCED = ("fp16", "fp8", "int8")
CASE = (50, 60)  # dates of Sentinel-2 and Sentinel-1
SANITIZER_ERROR = 9

Network = tuple[str, str]  # model and element: what Triton compiles for


@dataclass(frozen=True)
class Task:
    name: str
    command: tuple[str, ...]
    limit: float  # seconds after which it is killed
    work: float = 0.0  # estimated seconds of its work, without start and compilation
    networks: tuple[Network, ...] = ()  # whose kernels it launches
    compiles: bool = False  # it compiles them ahead of time, in parallel
    starts: bool = True  # it imports torch and opens the device
    essential: bool = False  # if it fails, no later stage can run
    diagnosis: tuple[str, ...] = ()  # run if it fails: names the kernel
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    name: str
    what: str
    limit: float
    tasks: tuple[Task, ...]
    together: int = 1  # tasks at a time; more than one only where nothing is timed


@dataclass(frozen=True)
class Options:
    """What the plan depends on."""

    rows: Path
    device: str = "cuda:0"
    arch: int = 90  # compute capability, 90 for 9.0
    official: Path | None = None
    commit: str | None = None

    def common(self) -> tuple[str, ...]:
        named = ("--commit", self.commit) if self.commit else ()
        return ("--device", self.device, "--rows", str(self.rows), *named)


def stages(options: Options) -> list[Stage]:
    """Of a whole check."""
    return [
        _build(
            options,
            55,
            [(m, "bf16") for m in (*MODELS, *TINY)] + [(m, e) for m in FIRST for e in REDUCED],
        ),
        Stage(
            "correct",
            "nano and small in bf16 against the reference",
            40,
            tuple(_correct(options, m, e) for m in FIRST for e in engines(m)),
            together=3,
        ),
        Stage(
            "peaks",
            "measured copies and products",
            20,
            (Task("peaks", _script("gpu_peaks.py", *options.common()), 20, work=4),),
        ),
        Stage(
            "speed",
            "px/s of nano and small, bf16",
            40,
            tuple(_speed(options, m, (e,), 16, 4) for m in FIRST for e in engines(m)),
        ),
        Stage(
            "correct-wide",
            "medium, large and v1.1 in bf16 against the reference",
            40,
            tuple(_correct(options, m, e) for m in WIDE for e in engines(m)),
            together=3,
        ),
        Stage(
            "speed-wide",
            "px/s of medium, large and v1.1, bf16",
            60,
            tuple(_speed(options, m, engines(m), 20, 6) for m in WIDE),
        ),
        Stage(
            "graphs",
            "small requests as CUDA graphs: the same bits, and their rate",
            25,
            tuple(_graphs(options, m) for m in FIRST),
            together=1,
        ),
        Stage(
            "reduced",
            "fp16, fp8 and int8 of nano and small: right, and px/s",
            45,
            tuple(_reduced(options, m) for m in FIRST),
        ),
        Stage(
            "stock",
            "the stock engines beside ours",
            55,
            tuple(_stock(options, m) for m in (*FIRST, "v2-large")),
        ),
        Stage(
            "tile",
            "arrays of a tile to int8 codes, wall clock",
            30,
            tuple(_tile(options, m) for m in FIRST),
        ),
        Stage(
            "sanitize",
            "racecheck and memcheck on a few pixels",
            40,
            tuple(_sanitize(options, tool) for tool in ("racecheck", "memcheck")),
            together=2,
        ),
        Stage("compile", "torch.compile of nano", 28, (_compile(options, "v2-nano"),)),
    ]


def quick_stages(options: Options) -> list[Stage]:
    """Right or wrong, and px/s, of two models in a minute."""
    return [
        _build(options, 32, [(m, "bf16") for m in FIRST]),
        Stage(
            "quick",
            "nano and small in bf16: right or wrong, px/s",
            28,
            tuple(_speed(options, m, engines(m), 14, 5, "--check") for m in FIRST),
        ),
    ]


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / name), *arguments)


def _build(options: Options, limit: float, networks: list[Network]) -> Stage:
    names = [f"{model}:{element}" for model, element in networks]
    return Stage(
        "build",
        "the extensions and the Triton kernels, for this device alone",
        limit,
        (
            Task(
                "native",
                _script(
                    "gpu_build.py", str(BUILD), "--architectures", cmake_architecture(options.arch)
                ),
                limit,
                work=NATIVE_SECONDS,
                starts=False,
                essential=True,
            ),
            Task(
                "kernels",
                _script("gpu_warm.py", "--arch", str(options.arch), *names),
                limit,
                networks=tuple(networks),
                compiles=True,
                environment={"PYTHONPATH": str(REPOSITORY / "python")},
            ),
        ),
        together=2,
    )


# Measured for sm_90a: encoder.cu and an instruction set take 7 s of a CPU each, everything 80 s,
# beside as much for the Triton kernels on the same 16 cores.
NATIVE_SECONDS = 22.0


def cmake_architecture(arch: int) -> str:
    """The one architecture to build for, in CMake's words: 90 -> "90a-real"."""
    return f"{arch}{'a' if arch in (90, 100, 120) else ''}-real"


def capability(device: str) -> int:
    """Of a device, 90 for 9.0: what nvidia-smi says, without a second for importing torch."""
    index = device.partition(":")[2] or "0"
    query = ["nvidia-smi", "-i", index, "--query-gpu=compute_cap", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        raise SystemExit("there is no nvidia-smi: name the compute capability with --arch")
    done = subprocess.run(query, capture_output=True, text=True)
    text = done.stdout.strip()
    if done.returncode != 0 or not text.replace(".", "", 1).isdigit():
        raise SystemExit(f"nvidia-smi names no GPU {index}: {done.stdout}{done.stderr}".strip())
    return int(text.replace(".", ""))


def engines(model: str, elements: tuple[str, ...] = ("bf16",)) -> tuple[str, ...]:
    """Our contenders of a model, as the scripts take them."""
    triton = tuple(f"triton:{element}" for element in elements)
    fused = model in FUSED and "bf16" in elements
    return (*triton, "fused:bf16") if fused else triton


def _networks(model: str, contenders: tuple[str, ...]) -> tuple[Network, ...]:
    """Whose kernels are launched; around the fused kernel those of its network, at most."""
    return tuple(dict.fromkeys((model, contender.partition(":")[2]) for contender in contenders))


def _name(model: str, contenders: tuple[str, ...]) -> str:
    return f"{model} {contenders[0].replace(':', ' ')}" if len(contenders) == 1 else model


def _correct(options: Options, model: str, contender: str) -> Task:
    asked = (f"{model}={contender}", *options.common())
    return Task(
        _name(model, (contender,)),
        _script("gpu_small.py", *asked),
        35,
        work=4,
        networks=_networks(model, (contender,)),
        diagnosis=_script("gpu_ops.py", *asked),
    )


def _model(
    options: Options, model: str, contenders: tuple[str, ...], *more: str
) -> tuple[str, ...]:
    dates = ("--dates", *map(str, CASE))
    official = ("--official", str(options.official)) if options.official else ()
    asked = ("--contenders", *contenders) if contenders else ()
    return _script(
        "gpu_model.py", "--model", model, *dates, *asked, *more, *official, *options.common()
    )


def _speed(
    options: Options, model: str, contenders: tuple[str, ...], limit: float, work: float, *more: str
) -> Task:
    return Task(
        _name(model, contenders),
        _model(options, model, contenders, *more),
        limit,
        work=work,
        networks=_networks(model, contenders),
    )


def _graphs(options: Options, model: str) -> Task:
    contenders = ("triton:bf16",)
    return Task(
        model,
        _model(options, model, contenders, "--graphs"),
        12,
        work=2,
        networks=_networks(model, contenders),
    )


def _reduced(options: Options, model: str) -> Task:
    contenders = engines(model, REDUCED)
    cases = (f"{model}={contender}" for contender in contenders)
    return Task(
        model,
        _model(options, model, contenders, "--check"),
        22,
        work=10,
        networks=_networks(model, contenders),
        diagnosis=_script("gpu_ops.py", *cases, *options.common()),
    )


def _stock(options: Options, model: str) -> Task:
    return Task(model, _model(options, model, (), "--stock"), 20, work=8)


def _tile(options: Options, model: str) -> Task:
    contenders = ("triton:bf16",)
    return Task(
        model,
        _model(options, model, contenders, "--tile"),
        15,
        work=4,
        networks=_networks(model, contenders),
    )


def _sanitize(options: Options, tool: str) -> Task:
    names = ["v2-nano=fused:bf16", *(f"{model}=triton:bf16" for model in TINY)]
    command = (
        "compute-sanitizer",
        "--tool",
        tool,
        f"--error-exitcode={SANITIZER_ERROR}",
        *_script("gpu_small.py", "--few", "--reference-device", "cpu", *names, *options.common()),
    )
    networks = tuple((model, "bf16") for model in ("v2-nano", *TINY))
    return Task(
        tool,
        command,
        40,
        work=20,
        networks=networks,
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def _compile(options: Options, model: str) -> Task:
    return Task(model, _model(options, model, (), "--stock", "--only-compiled"), 28, work=18)


def spec_of(model: str) -> Any:
    """The ModelSpec of a released model, or of one of TINY."""
    from tessera_fast.spec import released, variant

    if model not in TINY:
        return released(model)
    more: dict[str, Any] = {"matryoshka": ()} if model == "v2-tiny" else {}
    base = "v2-nano" if model == "v2-tiny" else "v1.1-mpc"
    return variant(base, name=model, **_TINY_SIZES, **more)


# ---- seconds


@dataclass(frozen=True)
class Budget:
    """Measured figures (gpu_budget.json) and what follows from them."""

    figures: dict[str, Any]

    @staticmethod
    def read(path: Path = BUDGET_FILE) -> "Budget":
        return Budget(json.loads(path.read_text()))

    def binaries(self, network: Network) -> int:
        return int(self.figures["binaries"][":".join(network)])

    def compilation(self, count: int, processes: int) -> float:
        """Seconds for so many binaries; never less than the longest one."""
        if count == 0:
            return 0.0
        f = self.figures
        cpu = count * f["cpu_s_per_binary"] / processes
        return float(f["slower"] * max(cpu, f["longest_cpu_s"]))

    def task(self, task: Task, ready: set[Network]) -> float:
        """Estimated seconds of a task, when the kernels of ``ready`` are in the cache."""
        f = self.figures
        seconds = task.work + (f["start_s"] if task.starts else 0.0)
        cold = sum(self.binaries(n) for n in task.networks if n not in ready)
        seconds += self.compilation(cold, f["processes"] if task.compiles else 1)
        if task.compiles:
            seconds += f["trace_s"]
        return float(seconds)

    def plan(self, planned: list[Stage]) -> Iterator[tuple[Stage, int, float]]:
        """(stage, binaries that it compiles, estimated seconds), in order."""
        ready: set[Network] = set()
        for stage in planned:
            lanes = [0.0] * stage.together
            wanted = {n for task in stage.tasks for n in task.networks} - ready
            for task in stage.tasks:
                at = lanes.index(min(lanes))
                lanes[at] += self.task(task, ready)
                if stage.together == 1:
                    ready |= set(task.networks)
            ready |= wanted
            yield stage, sum(self.binaries(n) for n in wanted), max(lanes)
