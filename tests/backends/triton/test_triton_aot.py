"""The Triton kernels of the released models compile without a GPU and fit the GPUs they are for.

bench/triton_resources.py compiles, in a process of its own: here kernels may be decorated for the
interpreter. What it compiles of the table is a sample; all of it takes a quarter of an hour.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tessera_fast
from places import REPOSITORY

pytest.importorskip("torch", reason="the kernels need torch")
triton = pytest.importorskip("triton", reason="the kernels need triton")

BENCH = REPOSITORY / "bench"
PACKAGE = Path(tessera_fast.__file__).parents[1]
RENEW = "run `python bench/triton_resources.py --write`"


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("triton_resources", BENCH / "triton_resources.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _tool()


def python(
    *args: object, cwd: Path | None = None, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Python with bench/ and the package in its path, and no setting of Triton's inherited."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    path = os.pathsep.join([str(PACKAGE), str(BENCH), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**inherited, "PYTHONPATH": path, **env},
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every launch there is; a sample of them compiled."""
    path = tmp_path_factory.mktemp("aot") / "rows.jsonl"
    result = python(BENCH / "triton_resources.py", "--sample", "--rows", path)
    assert path.exists(), result.stderr
    return tool.read_table(path)[1]


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    """The committed rows, if they are what this Triton would give."""
    stamp, rows = tool.read_table()
    if stamp["triton"] != triton.__version__:
        pytest.skip(f"the table is of Triton {stamp['triton']}, here is {triton.__version__}")
    return rows


def test_the_table_is_of_these_kernels():
    assert tool.read_table()[0]["sources"] == tool.sources_digest(), RENEW


def test_every_committed_row_fits():
    _, rows = tool.read_table()
    assert {row["arch"] for row in rows} == set(tool.SHARED_LIMIT)
    cases = {f"{m}/{e}" for e, (models, _) in tool.PLAN.items() for m in models}
    assert {case for row in rows for case in row["for"]} == cases
    found = [f"{tool.label(row)}: {p}" for row in rows for p in tool.problems(row)]
    assert not found, "\n".join(found)


def test_the_sample_compiles_and_fits(rows):
    compiled = [row for row in rows if "registers" in row or "error" in row]
    found = [f"{tool.label(row)}: {p}" for row in compiled for p in tool.problems(row)]
    assert not found, "\n".join(found)
    for trait in ("arch", "kernel"):
        assert {row[trait] for row in compiled} == {row[trait] for row in rows}


def test_the_table_has_every_launch(rows, table):
    launched = {row["launch"]: tool.label(row) for row in rows}
    listed = {row["launch"]: tool.label(row) for row in table}
    missing = [launched[k] for k in launched.keys() - listed.keys()]
    gone = [listed[k] for k in listed.keys() - launched.keys()]
    assert not missing and not gone, f"{RENEW}\nmissing: {missing}\nnot launched: {gone}"
    assert sorted(launched.values()) == sorted(listed.values()), RENEW


def test_the_sample_needs_what_the_table_says(rows, table):
    listed = {row["launch"]: row for row in table}
    for row in rows:
        if "registers" in row:
            steady = {k: v for k, v in row.items() if k not in tool.UNSTEADY}
            expected = {k: listed[row["launch"]].get(k) for k in steady}
            assert steady == expected, RENEW


ONE_BINARY = """
from tessera_fast.spec import released
from triton_network import NetworkLaunches

for name in ("v2-nano", "v2-medium", "v1.1-mpc", "v2-teacher"):
    network = NetworkLaunches(released(name), "bf16")
    usual = {launch.identity for launch in network.of(90)}
    for lengths, first in (((1,), 0), ((16,), 0), ((17,), 0), ((3, 48, 5, 255), 1)):
        for launch in network.of(90, lengths, first):
            if launch.identity not in usual:
                print(name, lengths, first, launch.name, launch.constants(), launch.arguments())
"""


def test_a_batch_never_chooses_the_binary():
    """One pixel, odd numbers of tokens, arrays that start anywhere: the code of the usual batch."""
    result = python("-c", ONE_BINARY)
    assert result.returncode == 0, result.stderr
    assert not result.stdout, result.stdout


FP8_SASS = """
import subprocess
import triton_aot
from triton import knobs, runtime
from triton_network import NetworkLaunches
from tessera_fast.spec import released

network = NetworkLaunches(released("v2-nano"), "fp8")
for launch in network.of(90):
    if "fp8e4nv" not in launch.arguments():
        continue
    runtime.driver.set_active(triton_aot.AbsentGpu(90))
    cubin = launch.kernel.preload(launch.data).asm["cubin"]
    with open("kernel.cubin", "wb") as file:
        file.write(cubin)
    command = [knobs.nvidia.nvdisasm.path, "-c", "kernel.cubin"]
    print("KERNEL", launch.name, launch.constants())
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
"""
# Sums, and what they start from: "R24, R88, gdesc[UR4], RZ" is a new sum, "..., R24" goes on.
QGMMA = re.compile(r"QGMMA\.\w+x(\d+)\.F32\.E4M3\.E4M3 (\w+), \w+, gdesc\[\w+\], (\w+)")


def fp8_depths(sass: str) -> list[float]:
    """How many products each sum in the tensor cores has; inf where a loop goes on with it."""
    depths: dict[str, float] = {}
    found = []
    for depth, into, onto in QGMMA.findall(sass):
        before = 0 if onto == "RZ" else depths.get(into, float("inf"))
        depths[into] = before + int(depth)
        found.append(depths[into])
    return found


def test_fp8_sums_of_sm_90_are_short(tmp_path):
    """The tensor cores sum in some 14 bits there: after 64 products a float32 sum takes over."""
    result = python("-c", FP8_SASS, TRITON_CACHE_DIR=str(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    kernels = [k.split("\n", 1) for k in result.stdout.split("KERNEL ")[1:]]
    depths = {name: fp8_depths(sass) for name, sass in kernels}
    assert {name.split()[0] for name, found in depths.items() if found} == {"_ffn", "_linear"}
    for name, found in depths.items():
        assert max(found, default=0) <= 64, f"{name}: {found}"


GREEDY = """
import triton
import triton.language as tl

@triton.jit
def greedy(x, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    a = tl.load(x + row * COLUMNS + column)
    tl.store(y + column * ROWS + row, a / tl.sum(tl.sum(a, 1), 0))
"""
COMPILE_GREEDY = """
import json
import torch
from greedy import greedy
from triton_aot import compiled, recording

x = torch.empty(256, 128, dtype=torch.float32, device="meta")
launches = []
for arch in (80, 86):
    with recording(arch) as found:
        for y in (x, x[1:]):
            greedy[(1,)](x, y, ROWS=256, COLUMNS=128, num_warps=4)
    launches += found
for launch, resources in zip(launches, compiled(launches, 2), strict=True):
    print(json.dumps({"arch": launch.arch, "kernel": launch.name, "constants": "", **resources}))
"""


def test_a_spill_is_seen(tmp_path):
    """256 values in every thread; one launch for a target, whatever the rows' addresses."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    (tmp_path / "run.py").write_text(COMPILE_GREEDY)
    result = python(tmp_path / "run.py")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["arch"] for row in rows] == [80, 86]
    for row in rows:
        assert row["warps"] == 4 and row["registers"] == 255 and row["shared"] > 0
        assert len(tool.problems(row)) == 1 and "spills" in tool.problems(row)[0]


FITTING = {
    "kernel": "k",
    "arch": 86,
    "for": [],
    "constants": "N=1",
    "registers": 255,
    "stack": 0,
    "spilled": 0,
    "shared": 99 * 1024,
    "tensor_memory": 0,
    "scratch": 0,
}


@pytest.mark.parametrize(
    "change, problem",
    [
        ({}, ""),
        ({"spilled": 4, "stack": 8}, "spills 4 bytes"),
        ({"stack": 8}, "local memory"),
        ({"shared": 99 * 1024 + 1}, "shared memory"),
        ({"arch": 100, "tensor_memory": 513}, "columns"),
        ({"scratch": 1}, "device memory"),
        ({"error": "PTXASError: no"}, "does not compile"),
    ],
)
def test_problems(change, problem):
    found = tool.problems(FITTING | change)
    assert len(found) == bool(problem) and all(problem in line for line in found)


def test_an_accepted_spill_has_a_kernel_constants_targets_and_a_limit(monkeypatch):
    monkeypatch.setattr(tool, "ACCEPTED", {("k", "N=1", (86,)): (8, "because")})
    spilling = FITTING | {"spilled": 8, "stack": 8}
    assert not tool.problems(spilling)
    for change in ({"spilled": 12}, {"kernel": "l"}, {"constants": "N=10"}, {"arch": 80}):
        assert tool.problems(spilling | change)


def test_prose_does_not_make_the_table_stale():
    code = '"""A."""\n\n# b\ndef f():\n    """C\n\n    d."""\n    return 1  # e\n'
    assert tool.code_of(code) == "def f():\n    return 1  # e"


def test_the_interpreter_is_refused():
    result = python(BENCH / "triton_resources.py", TRITON_INTERPRET="1")
    assert result.returncode == 1 and "TRITON_INTERPRET" in result.stderr
