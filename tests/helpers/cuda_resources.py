"""What the compiler gave each kernel of the module tessera_fast._cuda: registers, stack, shared.

Read off the machine code for every architecture in it, by the cuobjdump that Triton's package has.
A kernel that spills has a stack, unless it has an array there.
"""

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Resources(NamedTuple):
    registers: int  # per thread
    stack: int  # bytes per thread
    shared: int  # static bytes per block


def cuobjdump() -> Path:
    """The program; skips the test where there is none, or no module to look at."""
    module = importlib.util.find_spec("tessera_fast._cuda")
    if module is None or module.origin is None:
        pytest.skip("tessera_fast._cuda was not built: no nvcc")
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        pytest.skip("triton, whose cuobjdump is used, is not installed")
    return Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def by_architecture(stem: str) -> dict[str, dict[str, Resources]]:
    """Architecture ("90a") -> mangled name -> resources, of the kernels of one .cu file.

    Every architecture that the module was built for. Skips the test where there is nothing to look
    at, or to look with.
    """
    tool = cuobjdump()
    from tessera_fast import _cuda

    report = subprocess.run(
        [tool, "--dump-resource-usage", _cuda.__file__], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, dict[str, Resources]] = {}
    for part in re.split(r"^arch = ", report, flags=re.MULTILINE)[1:]:
        architecture = re.match(r"sm_(\w+)", part)
        assert architecture, part[:200]
        functions = re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", part)
        found.setdefault(architecture[1], {}).update(
            (name, Resources(*map(int, values)))
            for name, *values in functions
            if f"_{stem}_cu_" in name  # nvcc's name of the file's unnamed namespace
        )
    assert set(found) == {a.removesuffix("-real") for a in _cuda.arch_list() if "virtual" not in a}
    return found
