"""Whether bench/gpu_check.py can end in time: binaries counted, times a measured second.

And whether what is compiled ahead of time is what a launch then finds. Kernels are traced and
compiled in processes of their own: in this one they may be decorated for the interpreter.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tessera_fast
from places import REPOSITORY

BENCH = REPOSITORY / "bench"
PACKAGE = Path(tessera_fast.__file__).parents[1]
RENEW = "run `python bench/gpu_budget.py --write`"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the kernels need triton"
)
OLD_TESTS, OLD_LIMIT = 641, 200.0  # binaries of a stage that was one pytest worker, and its limit


@pytest.fixture(autouse=True)
def _bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def python(*args: object, package: Path = PACKAGE, **env: str) -> str:
    """Output of Python without an inherited setting of Triton's."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    path = os.pathsep.join([str(package), str(BENCH)])
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        env={**inherited, "PYTHONPATH": path, **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def late(planned) -> list[str]:
    """The stages that are expected to take longer than their limits."""
    import gpu_plan

    return [
        f"{stage.name}: {seconds:.0f} s of {stage.limit:.0f} s, {binaries} binaries"
        for stage, binaries, seconds in gpu_plan.Budget.read().plan(planned)
        if seconds > stage.limit
    ]


def plans():
    import gpu_plan

    options = gpu_plan.Options(Path("rows"))
    return gpu_plan.stages(options), gpu_plan.quick_stages(options)


def test_every_stage_fits_its_limit():
    for planned in plans():
        assert not late(planned)


def test_a_stage_that_compiles_one_after_another_does_not_fit():
    """As the check once was: a test suite on one worker."""
    import gpu_plan

    budget = gpu_plan.Budget.read()
    assert budget.compilation(OLD_TESTS, 1) > OLD_LIMIT > budget.compilation(OLD_TESTS, 12)


def test_what_no_earlier_stage_compiled_costs_its_own_stage():
    import gpu_plan

    def seconds(planned):
        return {s.name: (n, t) for s, n, t in gpu_plan.Budget.read().plan(planned)}

    warm = seconds(plans()[0])
    cold = seconds([s for s in plans()[0] if s.name != "build"])
    assert warm["correct-wide"][0] == 0 and cold["correct-wide"][0] > 40
    assert cold["correct-wide"][1] > warm["correct-wide"][1] + 5
    assert cold["speed-wide"] == warm["speed-wide"]  # "correct-wide" left them in the cache


def test_a_stage_with_too_low_a_limit_is_seen():
    planned = [replace(s, limit=12) if s.name == "speed" else s for s in plans()[0]]
    (line,) = late(planned)
    assert line.startswith("speed: ") and "of 12 s" in line


def test_binaries_and_processes_make_the_seconds():
    import gpu_plan

    figures = {"cpu_s_per_binary": 1.0, "longest_cpu_s": 4.0, "slower": 2.0}
    budget = gpu_plan.Budget(figures)
    assert budget.compilation(60, 12) == 10.0 and budget.compilation(60, 1) == 120.0
    assert budget.compilation(1, 12) == 8.0 and budget.compilation(0, 12) == 0.0


@needs_triton
def test_the_committed_numbers_of_binaries_are_what_the_stages_launch():
    counted = json.loads(python(BENCH / "gpu_budget.py", "--count"))["binaries"]
    figures = json.loads((BENCH / "gpu_budget.json").read_text())
    assert counted == figures["binaries"], RENEW
    assert figures["date"] and figures["cpu_s_per_binary"] > 0 and figures["cpu"]


LAUNCH = """
import contextlib
import sys
from types import SimpleNamespace

import triton
import triton_network
from gpu_plan import spec_of
from triton_aot import AbsentGpu

class Gpu(AbsentGpu):
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 1 << 20},
        load_binary=lambda *binary: (0, 0, 0, 0, 1024),
    )
    launcher_cls = staticmethod(lambda src, metadata: lambda *arguments: None)

@contextlib.contextmanager
def launching(arch):
    triton.runtime.driver.set_active(Gpu(arch))
    yield []

found = {True: 0, False: 0}
def listen(*, cache_hit, **_):
    found[cache_hit] += 1

triton.knobs.compilation.listener = listen
triton_network.recording = launching
triton_network.NetworkLaunches(spec_of("v2-tiny"), "bf16").of(90)
print(found[True], found[False])
"""


@needs_triton
def test_a_launch_finds_what_was_compiled_ahead(tmp_path):
    """The same launches, in another process, from a package at another place, by a driver that
    launches nothing: Triton looks every binary up in its cache and compiles none."""
    moved = tmp_path / "python" / "tessera_fast"
    moved.mkdir(parents=True)
    for path in (PACKAGE / "tessera_fast").iterdir():
        if path.name not in ("kernels", "__pycache__"):
            (moved / path.name).symlink_to(path.resolve())
    (moved / "kernels").symlink_to(BENCH.parent / "kernels")
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    said = python(BENCH / "gpu_warm.py", "--arch", 90, "--processes", 2, "v2-tiny:bf16", **cache)
    compiled = int(said.split()[0])
    assert f"{compiled} of {compiled} compiled" in said
    launched = python("-c", LAUNCH, package=moved.parent, **cache)
    assert launched.split() == [str(compiled), "0"]
