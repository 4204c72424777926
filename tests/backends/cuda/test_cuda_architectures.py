"""Which image of the module tessera_fast._cuda runs on which GPU: CMake's list, what reaches nvcc,
and what is in the module."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cuda_resources import cuobjdump
from places import REPOSITORY

KERNELS = ("encoder.cu", "pack.cu")
# Compute capability -> the image that the driver chooses, as nvcc writes it; compute_: PTX, which
# the driver compiles when it is first loaded. 13.0 stands for cards to come.
RUNS_BY = {
    (8, 0): "sm_80",  # A100
    (8, 6): "sm_86",  # A10, RTX 30
    (8, 7): "sm_87",  # Jetson Orin
    (8, 9): "sm_89",  # L4, L40S, RTX 40
    (9, 0): "sm_90a",  # H100, H200
    (10, 0): "sm_100",  # B200
    (10, 3): "sm_100",  # B300
    (11, 0): "sm_110",  # Jetson Thor
    (12, 0): "sm_120",  # RTX 50
    (12, 1): "sm_120",  # DGX Spark
    (13, 0): "compute_80",
}
# Their machine code and that of other cards of the same major number do not run on each other.
TEGRA = {(8, 7), (11, 0)}


def chosen(capability: tuple[int, int], images: set[str]) -> str | None:
    """The driver's rule: machine code of the same major number, the nearest below; else PTX."""
    code, ptx = {}, {}
    for image in images:
        kind, number, exact = re.fullmatch(r"(sm|compute)_(\d+)(a?)", image).groups()
        target = (int(number[:-1]), int(number[-1]))
        if exact and target != capability:
            continue
        if kind == "compute" and target <= capability:
            ptx[target] = image
        tegra = target in TEGRA or capability in TEGRA
        same = target == capability or (not tegra and target[0] == capability[0])
        if kind == "sm" and same and target <= capability:
            code[target] = image
    found = code or ptx
    return found[max(found)] if found else None


def table(images: set[str]) -> dict[tuple[int, int], str | None]:
    return {capability: chosen(capability, images) for capability in RUNS_BY}


def configured(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    pybind11 = importlib.util.find_spec("pybind11")
    for absent, name in (
        (shutil.which("cmake") is None, "cmake"),
        (shutil.which("nvcc") is None, "nvcc"),
        (pybind11 is None, "pybind11"),
    ):
        if absent:
            pytest.skip(f"{name} is not installed")
    return subprocess.run(
        [
            "cmake",
            "-S",
            REPOSITORY,
            "-B",
            folder,
            "-DTESSERA_CUDA=ON",
            "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={Path(pybind11.origin).parent / 'share' / 'cmake' / 'pybind11'}",
            *options,
        ],
        capture_output=True,
        text=True,
    )


def reached(folder: Path) -> dict[str, set[str]]:
    """Kernel file -> images that its compilation is told to make."""
    found = {}
    commands: list[dict[str, Any]] = json.loads((folder / "compile_commands.json").read_text())
    for entry in commands:
        if entry["file"].endswith(".cu"):
            codes = re.findall(r",code=\[?([\w,]+)", entry["command"])
            found[Path(entry["file"]).name] = {c for code in codes for c in code.split(",")}
    return found


def test_every_card_has_an_image_of_what_reaches_the_compiler(tmp_path):
    done = configured(tmp_path)
    assert done.returncode == 0, done.stderr
    images = reached(tmp_path)
    assert set(images) == set(KERNELS)
    release = re.search(r"release (\d+)", subprocess.check_output(["nvcc", "--version"], text=True))
    expected = RUNS_BY if int(release[1]) >= 13 else {**RUNS_BY, (11, 0): "compute_80"}
    for name in KERNELS:
        assert table(images[name]) == expected, name


def test_a_list_of_architectures_is_all_that_is_compiled(tmp_path):
    done = configured(tmp_path, "-DTESSERA_CUDA_ARCHITECTURES=90a-real")
    assert done.returncode == 0, done.stderr
    assert all(images == {"sm_90a"} for images in reached(tmp_path).values())


def test_a_list_under_cmakes_name_is_refused(tmp_path):
    done = configured(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=90")
    assert done.returncode != 0
    told = " ".join(done.stderr.split())
    assert "is not read: pass -DTESSERA_CUDA_ARCHITECTURES=90" in told


def test_every_card_has_an_image_in_the_module():
    """For every kernel file; by the linked module of a full build."""
    from tessera_fast import _cuda

    if len(_cuda.arch_list()) < 8:
        pytest.skip(f"built for {', '.join(_cuda.arch_list())} alone")
    tool, module = cuobjdump(), _cuda.__file__
    listed = [
        f"{prefix}_{number}"
        for option, prefix in (("--list-elf", "sm"), ("--list-ptx", "compute"))
        for number in re.findall(
            r"\.sm_(\d+)a?\.(?:cubin|ptx)",
            subprocess.check_output([tool, option, module], text=True),
        )
    ]
    images = set(listed)
    assert all(listed.count(image) == len(KERNELS) for image in images), listed
    expected = {k: v.removesuffix("a") for k, v in RUNS_BY.items()}  # cuobjdump drops the letter
    if "110-real" not in _cuda.arch_list():
        expected[(11, 0)] = "compute_80"
    assert table(images) == expected


@pytest.mark.parametrize(
    ("capability", "images", "image"),
    [
        ((8, 6), {"sm_80", "compute_80"}, "sm_80"),
        ((8, 7), {"sm_80", "sm_86", "compute_80"}, "compute_80"),  # a Jetson
        ((8, 9), {"sm_86", "sm_87"}, "sm_86"),
        ((9, 0), {"sm_90a", "compute_80"}, "sm_90a"),
        ((9, 0), {"sm_89"}, None),
        ((10, 3), {"sm_90a", "compute_90a"}, None),
        ((11, 0), {"sm_100", "sm_120", "compute_120"}, None),  # what the list once had
        ((11, 0), {"sm_100", "compute_80", "compute_100"}, "compute_100"),
        ((12, 0), {"sm_121"}, None),
    ],
)
def test_rule(capability, images, image):
    assert chosen(capability, images) == image
