"""A writer that is killed, or finds the disk full, at any step leaves what the next run completes.

A few steps of each case; TESSERA_STEPS=all tries every one, which takes a quarter of an hour.
"""

import os
import subprocess
import sys

import pytest

from conftest import PACKAGE
from places import HELPERS

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")
ALL = os.environ.get("TESSERA_STEPS") == "all"
TRIES = 2


@pytest.mark.parametrize(
    ("output", "case", "how", "processes", "steps"),
    [
        ("x.zarr", "new", "kill", 1, 340),
        ("x.zarr", "new", "full", 1, 340),
        ("x.zarr", "overlap", "kill", 2, 60),
        ("x.zarr", "growth", "kill", 1, 460),
        ("x.zarr", "growth", "kill", 2, 460),
        ("x.zarr", "growth", "full", 1, 460),
        ("x.zarr", "zone", "kill", 2, 300),
        ("x.zarr", "again", "kill", 1, 55),
        ("folder", "new", "kill", 2, 40),
        ("folder", "new", "full", 1, 40),
        ("folder", "again", "kill", 1, 20),
    ],
)
def test_disturbed(output, case, how, processes, steps, tmp_path):
    first, stride = (1, 1) if ALL else (steps // (2 * TRIES), steps // TRIES)
    program = HELPERS / "killed_steps.py"
    arguments = [tmp_path / "x", output, case, how, processes, first, steps + 40 * ALL, stride]
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    # the one beside it may have done all the work before
    assert processes == 2 or "disturbed 0 times" not in done.stdout
