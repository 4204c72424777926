"""A job that is killed again and again ends as if nothing had happened.

TESSERA_KILLS sets how often; a release is tried with 200. Victims are drawn at random: a worker,
the process that supervises them, or both.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fake_tiles import listing, remove_shards
from region import write_region
from running import command, finish, start, workers

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


def state_of(out):
    return out.with_name(f"{out.name}.state")


def finished(out):
    """Names and contents of the markers of an output."""
    return {p.name: p.read_bytes() for p in state_of(out).glob("done/*.json")}


def copied(out, target):
    """``cp -r`` of a store and its state, while nobody or somebody writes there."""
    target.parent.mkdir()
    for source, to in ((out, target), (state_of(out), state_of(target))):
        subprocess.run(["cp", "-r", str(source), str(to)], check=False, capture_output=True)
    return target


def renamed(out, target):
    target.parent.mkdir()
    state_of(out).rename(state_of(target))
    return out.rename(target)


def disturb(arguments, number, rng):
    """Run a job, and kill some or all of it after a while; how many were killed."""
    process, kills = start(arguments), 0
    out = Path(arguments[arguments.index("-o") + 1])
    before = len(finished(out))
    while process.poll() is None and len(finished(out)) == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 1))
    victim = rng.choice([*workers(process.pid), process.pid, -process.pid])
    if victim < 0:
        os.killpg(-victim, number)
        kills += 1
    else:
        kills += send(victim, number)
    if abs(victim) != process.pid:
        time.sleep(rng.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        kills += 1
    process.communicate(timeout=120)
    return kills


def mended(arguments, place):
    """Run a job on a copy that may mix two moments; it says which files to remove, if any."""
    process = start(arguments)
    text, _ = process.communicate(timeout=300)
    if process.returncode:
        assert "is not the file that the last commit left" in text, text
        remove_shards(place)
        finish(arguments)


def test_killed_copied_and_renamed(tiles, mini, tmp_path, uninterrupted):
    """Every copy goes on by itself; no finished tile of any output is lost or changed."""
    rng = random.Random("copies")
    kills = copies = rounds = 0
    out = tmp_path / "job" / "x.zarr"
    out.parent.mkdir()

    def arguments(place, workers=2):
        return command(tiles, place, mini, "--workers", str(workers), "--retries", "1000")

    while kills < KILLS:
        kills += disturb(arguments(out), signal.SIGKILL, rng)
        if not out.exists():
            continue
        before, rounds = finished(out), rounds + 1
        what = rng.choice(["copy", "rename", "beside", "during"])
        place = tmp_path / f"{rounds}" / "x.zarr"
        print(f"{kills} kills, {len(before)} tiles finished: {what}", flush=True)
        if what == "rename":
            out = renamed(out, place)
        elif what == "copy":  # and it is finished by itself, while nothing happens here
            finish(arguments(copied(out, place)))
        elif what == "beside":  # both go on at once
            copy, original = start(arguments(copied(out, place), 1)), start(arguments(out, 1))
            time.sleep(rng.uniform(0.5, 2))
            os.killpg(original.pid, signal.SIGKILL)
            kills += 1
            for process in (copy, original):
                process.communicate(timeout=300)
            assert copy.returncode == 0
        else:  # taken while a job writes
            process = start(arguments(out))
            time.sleep(rng.uniform(0.5, 2))
            copied(out, place)
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            process.communicate(timeout=120)
            mended(arguments(place), place)
        for name, content in before.items():
            assert finished(out)[name] == content
        if what != "rename":
            copies += 1
            assert finished(place).keys() >= before.keys()
            if what != "during":  # else some tiles may have been made again, with the same result
                assert finished(place).items() >= before.items()
            assert listing(place) == listing(uninterrupted / "x.zarr")
            subprocess.run(["rm", "-r", str(place.parent)], check=True)
        if len(finished(out)) == SIDE_TILES:
            assert f"{SIDE_TILES} done before" in finish(arguments(out))
            assert listing(out.parent) == listing(uninterrupted)
            subprocess.run(["rm", "-r", str(out), str(state_of(out))], check=True)
    finish(arguments(out))
    assert listing(out.parent) == listing(uninterrupted)
    assert copies, "no kill met a job that had made something"
    print(f"{kills} kills, {copies} copies, {rounds - copies} renames")
