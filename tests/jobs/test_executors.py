"""The same job by every executor: the same store, and the same answer to what goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from conftest import PACKAGE
from fake_tiles import listing
from region import write_region
from running import command, finish, start, workers
from tessera_fast.jobs.executors.domains import _cpus, domains

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("rasterio", reason="tiles for a store need a roi.tiff")
IN_STATE = {"done", "identity.json", "lock", "shards"}  # of a store where nothing is unfinished


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("region") / "tiles"
    write_region(folder, side=20, count=3, overlap=3)
    return folder


@pytest.fixture(scope="module")
def expected(tiles, mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(command(tiles, folder / "x.zarr", mini))
    return listing(folder)


def test_local(tiles, mini, tmp_path, expected):
    text = finish(command(tiles, tmp_path / "x.zarr", mini, "--workers", "2"))
    assert listing(tmp_path) == expected
    assert "9 of 9 tiles embedded with v2-mini (untrained)" in text and "encoder busy" in text
    again = finish(command(tiles, tmp_path / "x.zarr", mini, "--workers", "2"))
    assert again.count("already done") == 9
    assert listing(tmp_path) == expected


def test_two_shards_at_once(tiles, mini, tmp_path, expected):
    both = [start(command(tiles, tmp_path / "x.zarr", mini, "--shard", f"{i}/2")) for i in range(2)]
    texts = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    assert "5 of 5 tiles" in texts[0] and "4 of 4 tiles" in texts[1]
    assert listing(tmp_path) == expected


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_two_processes_with_all_tiles(tiles, mini, tmp_path, expected, options):
    """Both are given everything; each tile is embedded by one of them."""
    both = [start(command(tiles, tmp_path / "x.zarr", mini, *options)) for _ in range(2)]
    texts = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    done = [sum(" px/s" in line for line in text.splitlines()) for text in texts]
    skipped = [text.count("already done") for text in texts]
    assert sum(done) == 9 and [d + s for d, s in zip(done, skipped, strict=True)] == [9, 9]
    assert listing(tmp_path) == expected


def test_ray(tiles, mini, tmp_path, expected):
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'tessera_fast[ray]'")
    text = finish(
        command(
            tiles, tmp_path / "x.zarr", mini, "--ray", "2", "--ray-resources", '{"num_cpus": 0.5}'
        )
    )
    assert "9 of 9 tiles embedded" in text
    assert listing(tmp_path) == expected


@pytest.fixture
def bad(tiles, tmp_path):
    """The tiles, one of them with a mask value that is found while packing."""
    folder = tmp_path / "tiles"
    folder.mkdir()
    for tile in sorted(tiles.iterdir()):
        (folder / tile.name).symlink_to(tile)
    broken = folder / "t11_2024"
    broken.unlink()
    broken.mkdir()
    for file in (tiles / broken.name).iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    masks = np.load(broken / "masks.npy")
    masks[3, 5, 5] = 9
    np.save(broken / "masks.npy", masks)
    return folder


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["process", "local"])
def test_skip_goes_on_and_reports(options, bad, mini, run, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = ["embed", bad, "-o", out, "--model", mini, *options]
    result = run(*arguments, "--on-error", "skip", "--report", report)
    assert result.code == 3
    assert "t11_2024: failed: folder " in result.err and "masks: expected" in result.err
    assert "8 of 9 tiles embedded" in result.out and "; 1 failed" in result.out
    told = json.loads(report.read_text())
    assert {t["name"]: t["state"] for t in told["tiles"]}["t11_2024"] == "failed"
    (error,) = [t["error"] for t in told["tiles"] if t["state"] == "failed"]
    assert error.startswith("folder ")
    assert told["provenance"]["model"] == "v2-mini" and told["seconds"]["encode"] > 0
    assert len(list(out.glob("*.npy"))) == 8
    result = run(*arguments)
    assert result.code in (1, 3) and "masks: expected" in result.err


def test_nothing_but_bad_tiles_is_a_failure(bad, mini, run, tmp_path):
    only = bad / "t11_2024"
    result = run("embed", only, "-o", tmp_path / "out", "--model", mini, "--on-error", "skip")
    assert result.code == 1
    assert not (tmp_path / "out").exists()
    gone = tmp_path / "gone"
    result = run(
        "embed",
        gone,
        bad / "t00_2024",
        "-o",
        tmp_path / "out",
        "--model",
        mini,
        "--on-error",
        "skip",
    )
    assert result.code == 3 and "gone: failed: " in result.err


DEATHS = {  # what befalls a worker that opens a certain file, and what is said of it
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL (out of memory?)"),
    "no memory": ("raise MemoryError", "exit code 1, 2 times"),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_tile_that_kills_its_worker(death, tiles, mini, tmp_path):
    """It is told from the tiles beside it, which are embedded."""
    act, cause = DEATHS[death]
    fatal = "t11_2024"
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def watch(event, arguments):\n"
        f"    if event == 'open' and str(arguments[0]).endswith('{fatal}/sar_descending.npy'):\n"
        "        if any('spawn_main' in a for a in sys.orig_argv):\n"
        f"            {act}\n"
        "sys.addaudithook(watch)\n"
    )
    path = os.pathsep.join([str(site), str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    out = tmp_path / "out"
    arguments = command(tiles, out, mini, "--workers", "2", "--retries", "1", "--on-error", "skip")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert f"tile {fatal}: its worker ended with {cause}" in done.stderr
    assert len(list(out.glob("*.npy"))) == 8
    assert {p.name for p in (out / ".tessera_fast").iterdir()} == {
        "done",
        "identity.json",
        "lock",
        "provenance.json",
    }


@pytest.mark.parametrize(("name", "size"), [("x.zarr", "500k"), ("x.zarr", "300k"), ("x", "300k")])
def test_full_disk(name, size, tiles, mini, tmp_path):
    """It ends the job, leaves nothing but what is finished, and the rest follows in a rerun."""
    mount = tmp_path / "small"
    mount.mkdir()
    tried = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(mount)]
    if shutil.which("mount") is None or subprocess.run(tried, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        arguments = command(tiles, mount / name, mini, "--workers", "2")
        ended = start(arguments)
        text, _ = ended.communicate(timeout=120)
        assert "No space left on device" in text and "Traceback" not in text, text
        state = mount / name / ".tessera_fast" if name == "x" else mount / f"{name}.state"
        assert ended.returncode == (3 if (state / "done").exists() else 1)
        left = {p.name for p in state.iterdir()} if state.exists() else set()
        assert left <= {"done", "identity.json", "lock", "provenance.json", "shards"}
        subprocess.run(["mount", "-o", "remount,size=100m", str(mount)], check=True)
        assert "tiles embedded" in finish(arguments)
        finish(command(tiles, tmp_path / "whole" / name, mini))
        assert listing(mount) == listing(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("wait", [0.0, 0.2, 0.5])
def test_an_interrupt_while_workers_start(wait, tiles, mini, tmp_path):
    """Ctrl-C reaches all processes at once; only the first says so."""
    process = start(command(tiles, tmp_path / "out" / "x.zarr", mini, "--workers", "2"))
    deadline = time.monotonic() + 60
    while not workers(process.pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the job was done before the signal came")
    assert process.returncode == 130 and "Traceback" not in text, text
    state = tmp_path / "out" / "x.zarr.state"
    assert not state.exists() or {p.name for p in state.iterdir()} == IN_STATE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["process", "local"])
def test_a_signal_leaves_nothing_behind(number, options, tiles, mini, tmp_path):
    """Whatever is not finished is gone, workers and all, without another run."""
    out = tmp_path / "x.zarr"
    process = start(["env", "TESSERA_FAST_ISA=portable", *command(tiles, out, mini, *options)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("x.zarr.state/done/*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    own = workers(process.pid)
    os.kill(process.pid, number)
    text, _ = process.communicate(timeout=30)
    if process.returncode == 0:
        pytest.skip("the job was done before the signal came")
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], text
    assert "finished tiles are kept" in text and "Traceback" not in text
    assert {p.name for p in (tmp_path / "x.zarr.state").iterdir()} == IN_STATE
    assert not [pid for pid in own if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"executor": "slurm"}, "executor: expected process, local, ray, got 'slurm'"),
        ({"executor": "process", "workers": 2}, "workers: expected 1 of the executor 'process'"),
        (
            {"executor": "local", "workers": 0},
            "workers: expected a whole number from 1 to 4",
        ),
        ({"shard": (2, 2)}, "shard: expected (i, n) with 0 <= i < n"),
        ({"on_error": "ignore"}, "on_error: expected raise, skip"),
        ({"executor": "local", "resources": {"num_gpus": 1}}, "'local' has none to ask for"),
    ],
)
def test_wrong_arguments(arguments, message, tiles, mini, tmp_path):
    with pytest.raises(tf.InputError) as caught:
        tf.embed_tiles(tiles, tmp_path / "out", mini, **arguments)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_processes_need_paths(tiles, mini, tmp_path):
    arrays = {
        "bands": np.ones((1, 2, 2, 10), np.uint16),
        "masks": np.ones((1, 2, 2), np.uint8),
        "doys": np.ones(1, np.int32),
    }
    with pytest.raises(tf.InputError, match="give a path or URL, not a dict"):
        tf.embed_tiles([arrays], tmp_path / "out", mini, executor="local", allow_missing_s1=True)
    with (
        tf.load_model(mini) as model,
        pytest.raises(tf.InputError, match="give a name or a path, not a loaded model"),
    ):
        tf.embed_tiles(tiles, tmp_path / "out", model, executor="local")


def test_domains_share_the_processors(monkeypatch):
    from tessera_fast.jobs.executors.base import Job
    from tessera_fast.model.model import ModelOptions
    from tessera_fast.pipeline.embed import Settings

    job = Job("x", ModelOptions("v2-nano", backend="cpu"), Settings(), True, {}, None)
    mine = os.sched_getaffinity(0)
    alone = domains(job, 1)
    assert len(alone) == 1 and set(alone[0].cpus) == mine
    halves = domains(job, 2)
    if len(mine) > 1:
        assert set(halves[0].cpus) | set(halves[1].cpus) == mine
        assert not set(halves[0].cpus) & set(halves[1].cpus)
    crowd = domains(job, len(mine) + 1)
    assert [d.cpus for d in crowd] == [()] * (len(mine) + 1)
    monkeypatch.setenv("TESSERA_FAST_THREADS", "8")
    applied = halves[0].apply(job)
    assert applied.model.threads == 4 and applied.settings.processes == 2
    assert _cpus("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11} and _cpus("\n") == set()
