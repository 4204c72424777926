"""bench/gpu_check.py where there is no GPU: the driver, the plan, gates, contenders, tables."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench_programs import BENCH, bench_modules, needs_torch, python  # noqa: F401
from places import HELPERS

pytestmark = pytest.mark.usefixtures("bench_modules")


# ---- the driver, with made-up stages

ROW = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {str(BENCH)!r})
import gpu_rows
def row(name, **more):
    gpu_rows.append(Path(sys.argv[1]), {{"bench": "made up", "name": name, **more}})
"""
LATE = "import time; time.sleep(3); open({path!r}, 'w')"


def task(name: str, program: str, rows: Path, limit: float = 20, diagnosis: str = ""):
    import gpu_plan

    def command(text: str) -> tuple[str, ...]:
        return (sys.executable, "-c", ROW + text, str(rows))

    return gpu_plan.Task(
        name, command(program), limit, diagnosis=command(diagnosis) if diagnosis else ()
    )


def stage(*tasks, limit: float = 60, **more):
    import gpu_plan

    return gpu_plan.Stage("made-up", "for a test", limit, tasks, **more)


@pytest.fixture
def check(tmp_path):
    import gpu_check

    return gpu_check.Check(tmp_path)


def made_up(path: Path) -> list[str]:
    import gpu_rows

    return [row["name"] for row in gpu_rows.read(path) if row["bench"] == "made up"]


@pytest.mark.parametrize("together", [1, 5])
def test_rows_survive_a_crash_a_hang_and_a_wrong_result(check, tmp_path, capfd, together):
    import gpu_rows

    late = LATE.format(path=str(tmp_path / "late"))
    rows = check.rows
    goes_on = check.run(
        stage(
            task("right", "row('right'); print('right, and its figure')", rows),
            task("crash", "row('before the crash'); os.kill(os.getpid(), signal.SIGSEGV)", rows),
            task(
                "hang",
                f"row('before the hang')\nsubprocess.run([sys.executable, '-c', {late!r}])",
                rows,
                limit=2.5,
            ),
            task(
                "wrong",
                "row('wrong'); print('cosine 0.5'); raise SystemExit(1)",
                rows,
                diagnosis="row('ffn is wrong')",
            ),
            task("last", "row('last')", rows),
            together=together,
        )
    )
    assert goes_on and not check.passed
    assert sorted(made_up(rows)) == sorted(
        ["right", "before the crash", "before the hang", "wrong", "ffn is wrong", "last"]
    )
    tasks = {r["task"]: r for r in gpu_rows.read(rows) if r["bench"] == "gpu_task"}
    assert tasks["right"]["outcome"] == tasks["last"]["outcome"] == "passed"
    assert tasks["crash"]["outcome"] == "FAILED: killed by SIGSEGV"
    assert tasks["hang"]["outcome"].startswith("FAILED: killed at its limit")
    assert (tasks["wrong"]["outcome"], tasks["wrong"]["last_line"]) == (
        "FAILED: status 1",
        "cosine 0.5",
    )
    out = capfd.readouterr().out
    assert "right, and its figure" in out and "-- made-up hang: FAILED" in out
    assert out.replace("\n", "") in check.log.read_text().replace("\n", "")
    time.sleep(1)  # the child of the task that hung would have written by now
    assert not (tmp_path / "late").exists()


DRIVER = """
import sys
sys.path[:0] = [{tests!r}, {helpers!r}, {bench!r}]
from pathlib import Path
import gpu_check
from test_gpu_check import stage, task
out = Path(sys.argv[1])
check = gpu_check.Check(out)
check.run(stage(
    task("first", "row('first')", check.rows),
    task("second", "row(str(os.getpid())); time.sleep(60)", check.rows, limit=60),
))
"""


def test_rows_survive_when_the_check_itself_is_killed(tmp_path):
    import gpu_rows

    places = {"tests": str(Path(__file__).parent), "helpers": str(HELPERS), "bench": str(BENCH)}
    program = DRIVER.format(**places)
    driver = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.DEVNULL
    )
    rows = tmp_path / "gpu.jsonl"
    _wait_until(lambda: len(made_up(rows)) == 2)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    first, second = made_up(rows)
    assert first == "first"
    assert [r["outcome"] for r in gpu_rows.read(rows) if r["bench"] == "gpu_task"] == ["passed"]
    _wait_until(lambda: not _runs(int(second)))  # nothing is left behind on the device


def _wait_until(done) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_row_that_was_cut_short_hides_no_other(tmp_path):
    import gpu_rows

    path = tmp_path / "rows"
    gpu_rows.append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b"')
    assert gpu_rows.read(path) == [{"a": 1}]
    path.write_text('{"a": \n{"a": 1}\n')
    with pytest.raises(json.JSONDecodeError):
        gpu_rows.read(path)


def test_only_an_essential_task_stops_the_check(check):
    failing = task("native", "raise SystemExit(1)", check.rows)
    assert check.run(stage(failing))
    assert not check.run(stage(replace(failing, essential=True)))


def test_rows_of_an_earlier_check_are_kept(tmp_path):
    import gpu_check

    for name, anew in (("first", True), ("more", False), ("second", True)):
        check = gpu_check.Check(tmp_path, anew=anew)
        check.run(stage(task(name, f"row({name!r})", check.rows)))
    assert made_up(tmp_path / "gpu.jsonl.old") == ["first", "more"]
    assert made_up(tmp_path / "gpu.jsonl") == ["second"]


def test_without_time_or_tool_a_task_does_not_run(check, tmp_path):
    import gpu_plan

    check.run(
        stage(
            task("long", "time.sleep(30)", check.rows),
            task("none left", "row('no')", check.rows),
            limit=3,
        )
    )
    check.run(stage(gpu_plan.Task("absent", ("no-such-profiler",), 10)))
    assert "none left" in check.summary() and "not run: no time is left" in check.summary()
    assert "not run: there is no no-such-profiler" in check.summary()
    assert not check.passed and not made_up(check.rows)


def test_every_task_gets_the_same_settings_of_triton(monkeypatch):
    import gpu_check
    import gpu_plan

    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    planned = gpu_plan.stages(gpu_plan.Options(Path("rows")))
    settings = {
        tuple(sorted((k, v) for k, v in gpu_check.environment(t).items() if "TRITON" in k))
        for s in planned
        for t in s.tasks
    }
    assert settings == {(("TRITON_CACHE_DIR", str(gpu_plan.BUILD / "triton")),)}


# ---- the plan


def test_the_plan_fits_and_goes_by_value():
    import gpu_plan

    options = gpu_plan.Options(Path("rows"))
    planned = gpu_plan.stages(options)
    names = [s.name for s in planned]
    assert names == [
        "build",
        "correct",
        "peaks",
        "speed",
        "correct-wide",
        "speed-wide",
        "graphs",
        "reduced",
        "stock",
        "tile",
        "sanitize",
        "compile",
    ]
    assert sum(s.limit for s in planned) < gpu_plan.TOTAL == 480
    quick = gpu_plan.quick_stages(options)
    assert sum(s.limit for s in quick) <= gpu_plan.QUICK_TOTAL == 60
    for s in (*planned, *quick):
        assert all(t.limit <= s.limit for t in s.tasks)
        if s.name in ("speed", "speed-wide", "graphs", "stock", "tile", "compile", "quick"):
            assert s.together == 1, "figures are taken alone"
        if s.name != "build":
            scripts = [next(a for a in t.command if a.endswith(".py")) for t in s.tasks]
            assert all(Path(script).exists() for script in scripts)


@needs_torch
def test_the_scripts_take_what_the_plan_gives_them(tmp_path):
    import gpu_case
    import gpu_model
    import gpu_plan
    import gpu_small

    options = gpu_plan.Options(tmp_path / "rows", official=tmp_path, commit="abc")
    parsers = {
        "gpu_model.py": gpu_model.arguments(),
        "gpu_small.py": gpu_small.arguments(""),
        "gpu_ops.py": gpu_small.arguments(""),
    }
    contenders = set()
    for planned in (*gpu_plan.stages(options), *gpu_plan.quick_stages(options)):
        for command in (c for t in planned.tasks for c in (t.command, t.diagnosis) if c):
            at = next(i for i, a in enumerate(command) if a.endswith(".py"))
            script, asked = Path(command[at]).name, list(command[at + 1 :])
            if script not in parsers:
                continue
            args = parsers[script].parse_args(asked)
            assert args.rows == options.rows and args.commit == "abc"
            if script == "gpu_model.py":
                cases = [(args.model, gpu_case.Ours.parse(c)) for c in args.contenders]
            else:
                cases = list(gpu_small.cases(args.cases))
            for model, ours in cases:
                assert gpu_plan.spec_of(model).name == model
                contenders.add(ours.label)
    assert contenders == {"triton bf16", "fused bf16", "triton fp16", "triton fp8", "triton int8"}


def test_the_dry_run_prints_seconds_and_needs_no_gpu(tmp_path):
    done = python("-S", BENCH / "gpu_check.py", "--dry-run", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr  # without site-packages: no torch, no Triton
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["correct"].split()[1] == "0", "its kernels were compiled by the build stage"
    assert int(lines["build"].split()[1]) > 100 and "480" not in lines["all"]
    assert not (tmp_path / "out").exists()
    one = python("-S", BENCH / "gpu_check.py", "--dry-run", "--stage", "speed", "--stage", "peaks")
    assert [line.split()[0] for line in one.stdout.splitlines()] == [
        "stage",
        "peaks",
        "speed",
        "all",
    ]
    wrong = python("-S", BENCH / "gpu_check.py", "--dry-run", "--stage", "tests")
    assert wrong.returncode == 1 and "choose from build, correct" in wrong.stderr


def test_the_compute_capability_is_that_of_the_device(tmp_path, monkeypatch):
    import gpu_plan

    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$2" = 1 ] && echo 9.0 || { echo "No devices"; exit 6; }\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_plan.capability("cuda:1") == 90
    with pytest.raises(SystemExit, match="names no GPU 0: No devices"):
        gpu_plan.capability("cuda")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SystemExit, match="--arch"):
        gpu_plan.capability("cuda:0")


def test_the_build_is_for_the_device_alone(monkeypatch):
    """By the variable that CMakeLists.txt reads: it sets CMAKE_CUDA_ARCHITECTURES from it."""
    import gpu_build
    import gpu_plan

    monkeypatch.setattr(gpu_build, "capability", lambda device: 90)
    options = gpu_build.cuda_options(None)
    assert "-DTESSERA_CUDA_ARCHITECTURES=90a-real" in options
    assert not any("CMAKE_CUDA_ARCHITECTURES" in option for option in options)
    listed = (BENCH.parent / "CMakeLists.txt").read_text()
    assert "set(CMAKE_CUDA_ARCHITECTURES ${TESSERA_CUDA_ARCHITECTURES})" in listed
    assert [gpu_plan.cmake_architecture(a) for a in (80, 89, 100, 120)] == [
        "80-real",
        "89-real",
        "100a-real",
        "120a-real",
    ]


# ---- gates and contenders
