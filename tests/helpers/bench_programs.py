"""Modules and programs of bench/ in tests: imported, and run in a process of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tessera_fast
from places import REPOSITORY

BENCH = REPOSITORY / "bench"
PACKAGE = Path(tessera_fast.__file__).parents[1]
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="stock engines and the reference need torch"
)


@pytest.fixture
def bench_modules(monkeypatch):
    """The scripts of bench/ can be imported."""
    monkeypatch.syspath_prepend(str(BENCH))


def python(*args: object) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(PACKAGE), str(BENCH)])
    return subprocess.run(
        [sys.executable, *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
