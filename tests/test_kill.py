"""A job that is killed again and again ends as if nothing had happened.

TESSERA_KILLS sets how often; a release is tried with 200. Victims are drawn at random: a worker,
the process that supervises them, or both.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import PACKAGE
from fake_tiles import listing
from region import write_region

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("rasterio", reason="tiles for a store need a roi.tiff")
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="workers are found in /proc"
)
KILLS = int(os.environ.get("TESSERA_KILLS", "8"))
SIDE, COUNT = 20, 8  # 64 tiles


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("region") / "tiles"
    write_region(folder, SIDE, COUNT, overlap=3)
    return folder


def command(tiles, out, model, *options):
    return [sys.executable, "-m", "tessera_fast", "embed", str(tiles), "-o", str(out), "--model",
            str(model), *options]  # fmt: skip


def start(arguments):
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip


def finish(arguments):
    """Output of a run that has to succeed."""
    process = start(arguments)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def workers(pid):
    """Process ids of the workers that ``pid`` supervises."""
    found = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        pass
    return found


def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def uninterrupted(tiles, mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(command(tiles, folder / "x.zarr", mini, "--threads", "1"))
    return folder


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_killed_at_random_moments(number, tiles, mini, tmp_path, uninterrupted):
    rng = random.Random(f"{number}")
    out = tmp_path / "job" / "x.zarr"
    out.parent.mkdir()
    arguments = command(tiles, out, mini, "--workers", "2", "--retries", "1000")
    kills = rounds = 0
    while kills < KILLS:
        process = start(arguments)
        while process.poll() is None and kills < KILLS:
            time.sleep(rng.uniform(0.05, 1.2))
            victims = workers(process.pid)
            if not victims:
                continue
            victim = rng.choice([*victims, process.pid, -process.pid])
            if victim < 0:  # all at once
                os.killpg(-victim, number)
                kills += 1
            else:
                kills += send(victim, number)
            if abs(victim) == process.pid:
                break
        process.communicate(timeout=120)
        done = len(list(out.parent.glob("x.zarr.state/done/*")))
        if done == SIDE_TILES:  # nothing left to disturb: again from the start
            finish(arguments)
            assert listing(out.parent) == listing(uninterrupted)
            subprocess.run(["rm", "-r", str(out), str(out) + ".state"], check=True)
            rounds += 1
    finish(arguments)
    assert listing(out.parent) == listing(uninterrupted)
    print(f"{kills} kills, {rounds} more rounds")


SIDE_TILES = COUNT * COUNT
