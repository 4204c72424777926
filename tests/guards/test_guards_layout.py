"""Where things stand: floors, no loops of imports, no private names taken, files that exist."""

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from places import REPOSITORY

PACKAGE = REPOSITORY / "python" / "tessera_fast"
NATIVE = ("_cpu", "_cuda", "_cuda_emulated")
MOST_AT_THE_TOP = 12  # modules beside the rooms

# The floors of the house, from the ground up; CONTRIBUTING.md has the same table. A room imports
# from its own floor and from those below.
FLOORS = {
    "the ground": "errors version files machine packages untrusted env progress quantization "
    "sizes spec",
    "inputs and outputs": "packing tile weights synthetic drawing store reference",
    "engines": "exports kernels backends",
    "a model": "model",
    "from an output": "products verification",
    "one tile": "pipeline",
    "uses of a model": "diagnostics probing training",
    "many tiles": "planning jobs",
    "the doors": "commands __main__",
}
HEIGHT = {room: n for n, rooms in enumerate(FLOORS.values()) for room in rooms.split()}


def modules() -> dict[str, Path]:
    """Dotted name below the package ("" for __init__) -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if "kernels" not in path.relative_to(PACKAGE).parts:
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            found[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return found


MODULES = modules()


def imports(module: str, path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) that ``module`` imports from the package, anywhere; "" for a module itself."""
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    here = [part for part in here if part]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            absolute = [alias.name for alias in node.names]
        else:
            absolute = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if not isinstance(node, ast.ImportFrom) or not node.level:
            assert not any(n.split(".")[0] == "tessera_fast" for n in absolute), "relative, please"
            continue
        base = here[: len(here) - node.level + 1] + (node.module or "").split(".")
        target = ".".join(part for part in base if part)
        for alias in node.names:
            submodule = f"{target}.{alias.name}".lstrip(".")
            if submodule in MODULES or submodule in NATIVE:
                yield submodule, ""
            else:
                yield target, alias.name


IMPORTS = {module: set(imports(module, path)) for module, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def importers(target: str) -> set[str]:
    """Modules that import ``target`` or a name of it."""
    return {m for m, found in IMPORTS.items() if target in {i for i, _ in found}}


# ---- floors and loops


def test_every_room_is_on_a_floor():
    rooms = {room(m) for m in MODULES} - {""}
    assert rooms == set(HEIGHT) - {"kernels"}, "a room came, went or was renamed: see FLOORS"


def test_contributing_shows_the_same_floors():
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ([\w ]+) \| ((?:`\w+`(?:, )?)+) \|$", page, re.MULTILINE)
    assert {floor: re.findall(r"\w+", rooms) for floor, rooms in rows} == {
        floor: rooms.split() for floor, rooms in FLOORS.items()
    }


def test_few_modules_stand_beside_the_rooms():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m))
def test_nothing_imports_upward(module):
    """Imports within functions count too."""
    for found, _ in IMPORTS[module]:
        if found not in ("", *NATIVE):
            assert HEIGHT[room(found)] <= HEIGHT[room(module)], f"{module} imports {found}"


def loops(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Nodes that reach each other: the components of ``graph`` with more than one node."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        left = [start]
        while left:
            new = graph.get(left.pop(), set()) - seen
            seen |= new
            left += new
        reached[start] = seen
    found = []
    for node in graph:
        loop = {other for other in reached[node] if node in reached.get(other, ())}
        if loop and loop not in found:
            found.append(loop)
    return found


def test_the_loop_guard_sees_a_loop():
    assert loops({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [{"b", "c"}]
    assert loops({"a": {"a"}}) == [{"a"}] and not loops({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_files_import_each_other_in_a_loop():
    graph = {m: {i for i, _ in found} & set(MODULES) for m, found in IMPORTS.items()}
    # the package itself names modules for type checkers alone, and imports them when asked
    graph[""] = {"errors", "version", "untrusted.suggest"}
    assert not loops(graph)


def test_no_rooms_import_each_other_in_a_loop():
    graph = defaultdict(set)
    for module, found in IMPORTS.items():
        graph[room(module)] |= {room(i) for i, _ in found} - {room(module), ""}
    graph[""] = set()
    assert not loops(graph)


def test_the_reference_imports_nothing_that_it_judges():
    allowed = {("packing", name) for name in ("Observations", "Orbit", "PackedTokens")}
    for module in [m for m in MODULES if room(m) == "reference"]:
        for found, _ in IMPORTS[module] - allowed:
            assert room(found) in ("errors", "spec", "reference"), module


def test_back_ends_do_not_import_each_other():
    for module in [m for m in MODULES if m.startswith("backends.")]:
        own = module.split(".")[:2]
        others = {i for i, _ in IMPORTS[module] if room(i) == "backends"}
        assert {i for i in others if i.split(".")[:2] != own} <= {"backends.base"}, module


def test_native_code_is_behind_packing_the_cpu_back_end_and_the_model():
    assert importers("_cpu") == {
        "packing",
        "backends.cpu",
        "model.model",
        "diagnostics.profile",
        "diagnostics.info",
    }


# ---- names


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NATIVE


# Private by their spelling, and public by the documentation of the library that has them.
DOCUMENTED = {"_asdict", "_fields", "_exit", "_replace"}
# Methods and attributes of a base class that another package made for its subclasses.
OF_A_BASE = {"_actions", "_option_string_actions", "_subparsers", "_set"}


def taken(text: str) -> set[str]:
    """Private names that a module imports, or reads from objects without defining any such."""
    tree = ast.parse(text)
    defined, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            (defined if isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            defined |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return {name for name in used - defined - DOCUMENTED - OF_A_BASE if private(name)}


@pytest.mark.parametrize("text", ["from .a import _b", "x = a._b", "from . import a\na._b()"])
def test_the_privacy_guard_sees(text):
    assert taken(text) == {"_b"}


def test_the_privacy_guard_leaves():
    assert not taken("class A:\n    _b = 1\n    def f(self, other):\n        return other._b")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_private_name_is_taken_from_another_file(module):
    assert not taken(MODULES[module].read_text())


def test_no_test_imports_another_test():
    """What several tests use is in tests/helpers, so that a test can be moved or removed alone."""
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [name for name in names if name.startswith("test_")], path.name


# ---- files that are named exist

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
).stdout.split()
NAMED = re.compile(
    r"(?<![\w*{<>/.-])(?:[\w.-]+/)*[A-Za-z_][\w-]+\.(?:py|cc|cu|cuh|h|md)\b(?![*{(])"
)
# Names of files that users make, that other projects have, or that stand for any file.
OTHERS = {"cuda_bf16.h", "cuda_fp16.h", "dpixel_retiler.py", "folder/stem.py"}


def comments(path: Path) -> str:
    """Comments and docstrings of a source; all of a page."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    if path.suffix == ".py":
        strings = [
            ast.get_docstring(node) or ""
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        lines = [line.partition("# ")[2] for line in text.splitlines()]
        return "\n".join([*strings, *lines])
    return "\n".join(re.findall(r"//.*|/\*.*?\*/", text, re.DOTALL))


def absent(text: str) -> set[str]:
    """Files that a text names and the repository has not, by whole names from the right."""
    known = {f"/{file}" for file in TRACKED}
    names = {name.lstrip("./") for name in NAMED.findall(text)}
    return {n for n in names - OTHERS if not any(file.endswith(f"/{n}") for file in known)}


def test_the_guard_of_names_sees():
    assert absent("see store/zone.py and store/nowhere.py") == {"store/nowhere.py"}
    assert not absent("docs/data_flow.md, `zone.py`, x.zarr/zarr.json")


PAGES = [
    REPOSITORY / file
    for file in TRACKED
    if Path(file).suffix in (".py", ".cc", ".cu", ".cuh", ".h", ".md")
    and Path(file).parts[0]
    in (
        "python",
        "csrc",
        "kernels",
        "tests",
        "bench",
        "docs",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    )
    and (REPOSITORY / file).exists()
]


@pytest.mark.skipif(not TRACKED, reason="this is no checkout of git")
def test_files_that_are_named_exist():
    lost = {str(p.relative_to(REPOSITORY)): found for p in PAGES if (found := absent(comments(p)))}
    assert not lost
