"""Bytes that anybody may have written are parsed in untrusted/readers.py and nowhere else."""

import ast

import pytest

from places import REPOSITORY

PACKAGE = REPOSITORY / "python" / "tessera_fast"

# Calls that parse bytes without limits, or run what they find.
PARSERS = {
    "json.load",
    "json.loads",
    "np.load",
    "numpy.load",
    "np.fromfile",
    "ast.literal_eval",
    "literal_eval",
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "torch.load",
    "tomllib.load",
    "tomllib.loads",
    "tomli.loads",
    "np.lib.format.read_magic",
    "np.lib.format.read_array",
    "np.lib.format.read_array_header_1_0",
    "np.lib.format.read_array_header_2_0",
    "np.lib.format.open_memmap",
}
# What hands out the text or bytes of a file without a limit.
UNBOUNDED = {"read_text", "read_bytes"}

# file -> (calls that it may make, why)
ALLOWED: dict[str, tuple[set[str], str]] = {
    "untrusted/readers.py": (
        {"json.loads", "ast.literal_eval", "tomllib.loads"},
        "the one place that parses",
    ),
    "diagnostics/doctor.py": ({"read_bytes"}, "one byte of its own"),
    "diagnostics/selftest.py": ({"json.loads", "read_text"}, "a file of the package itself"),
    "training/loop.py": ({"torch.load"}, "tensors of a run, with weights_only: no code runs"),
    "machine/control_groups.py": ({"read_text"}, "the kernel's own files"),
    "store/locks.py": ({"read_text", "read_bytes"}, "the kernel's own files"),
    "machine/energy.py": ({"read_text"}, "the kernel's own files"),
    "jobs/executors/domains.py": ({"read_text"}, "the kernel's own files"),
}


def dotted(node: ast.expr) -> str:
    """ "np.lib.format.read_magic" of such an expression, "" of another; of a method its name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def parsers(text: str) -> set[str]:
    """Calls of PARSERS, and methods of UNBOUNDED, in a module."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            if (name := dotted(node.func)) in PARSERS:
                found.add(name)
            if isinstance(node.func, ast.Attribute) and node.func.attr in UNBOUNDED:
                found.add(node.func.attr)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & (PARSERS | {"json.load", "numpy.load"})
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import json\nx = json.loads(path.read_text())", {"json.loads", "read_text"}),
        ("x = np.load(file, allow_pickle=False)", {"np.load"}),
        ("from json import loads", {"json.loads"}),
        ("np.lib.format.read_magic(file)", {"np.lib.format.read_magic"}),
        ("x = ast.literal_eval(text)", {"ast.literal_eval"}),
        ("(folder / 'a').read_bytes()", {"read_bytes"}),
        ("x = parse_json(read_bytes(path, 10))\njson.dumps(x)", set()),
    ],
)
def test_the_guard_sees(text, expected):
    assert parsers(text) == expected


def test_nothing_else_parses():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        found = parsers(path.read_text(encoding="utf-8"))
        more = found - ALLOWED.get(name, (set(), ""))[0]
        assert not more, f"{name} calls {sorted(more)}: read it with untrusted/readers.py"


def test_every_exception_is_needed():
    for name, (calls, reason) in ALLOWED.items():
        assert reason
        path = PACKAGE / name
        assert path.is_file(), f"{name} is gone: take it out of ALLOWED"
        assert calls <= parsers(path.read_text(encoding="utf-8")), f"{name} needs no exception"
