"""What the compiler gave each kernel of a .cu file: registers, spills, stack, shared memory."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "86", "87", "89", "90a", "100", "120")  # CMakeLists.txt
NVCC = shutil.which("nvcc")


class Resources(NamedTuple):
    registers: int  # per thread
    spill_stores: int  # bytes per thread
    spill_loads: int
    stack: int
    shared: int  # static bytes per block


def resources(
    source: str, architectures: Iterable[str] = ARCHITECTURES, options: Iterable[str] = ()
) -> dict[tuple[str, str], Resources]:
    """By (architecture, mangled name of the kernel); ``source`` is relative to the repository."""
    assert NVCC is not None
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for architecture in architectures:
            done = subprocess.run(
                [
                    NVCC, "-std=c++17", "-O3", "-fmad=false", "-I", ROOT / "csrc", *options,
                    "-Xptxas", "-v", "-cubin",
                    "-gencode", f"arch=compute_{architecture},code=sm_{architecture}",
                    "-o", Path(folder) / "kernels.cubin", ROOT / source,
                ],
                capture_output=True,
                text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            for name, values in parse(done.stderr):
                found[architecture, name] = values
    return found


def parse(report: str) -> Iterable[tuple[str, Resources]]:
    """(kernel, resources) of what `ptxas -v` prints."""
    for part in report.split("Compiling entry function '")[1:]:
        name = part[: part.index("'")]
        stack, stores, loads = (
            number(part, rf"(\d+) bytes {what}")
            for what in ("stack frame", "spill stores", "spill loads")
        )
        shared = re.search(r"(\d+) bytes smem", part)
        yield (
            name,
            Resources(
                number(part, r"Used (\d+) registers"), stores, loads, stack,
                int(shared[1]) if shared else 0,
            ),
        )  # fmt: skip


def number(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    assert match, f"{pattern} is not in {text}"
    return int(match[1])
