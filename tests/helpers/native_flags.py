"""Compiler flags of the native code, as CMakeLists.txt states them."""

import re
from pathlib import Path

from places import REPOSITORY


def isa_targets() -> dict[str, list[str]]:
    """Name -> compiler flags of every ``add_isa(name lanes flags...)`` of the build."""
    text = (REPOSITORY / "CMakeLists.txt").read_text()
    common = re.findall(r"^set\(CXX_OPTIONS ([^)]*)\)", text, re.MULTILINE)
    assert common
    for name, values in re.findall(r"^\s*set\((\w+) ([^)]*)\)", text, re.MULTILINE):
        text = text.replace(f"${{{name}}}", values)
    found = re.findall(r"^\s*add_isa\((\w+) (\d+)([^)]*)\)", text, re.MULTILINE)
    return {
        name: [
            *" ".join(common).split(),
            f"-DTESSERA_ISA={name}",
            f"-DTESSERA_LANES={lanes}",
            *flags.split(),
        ]
        for name, lanes, flags in found
    }


def cpu_sources() -> list[Path]:
    """The files of the extension module _cpu, without those of the instruction sets."""
    text = (REPOSITORY / "CMakeLists.txt").read_text()
    bindings = re.search(r"^set\(BINDINGS([^)]*)\)", text, re.MULTILINE)
    module = re.search(r"pybind11_add_module\(\s*_cpu ([^)]*)\)", text)
    assert bindings and module
    names = f"{bindings[1]} {module[1]}".split()
    return [REPOSITORY / name for name in names if name.endswith(".cc")]
