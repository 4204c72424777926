"""The report of a job: tried first, written whatever ends the job, with every tile once."""

import json
import os
import signal
import time

import numpy as np
import pytest

import tessera_fast as tf
from region import write_region
from running import command, start, workers
from tessera_fast.jobs import report as job_report
from tessera_fast.weights import load_weights

pytest.importorskip("rasterio", reason="tiles are written with a roi.tiff")
NAMES = ["t00_2024", "t01_2024", "t10_2024", "t11_2024"]


@pytest.fixture
def tiles(tmp_path):
    write_region(tmp_path / "tiles", side=8, count=2)
    return tmp_path / "tiles"


def spoil(tile):
    """A mask value that is found while packing."""
    masks = np.load(tile / "masks.npy")
    masks[3, 0, 0] = 9
    np.save(tile / "masks.npy", masks)


def read(path):
    return json.loads(path.read_text())


def states(told):
    return {tile["name"]: tile["state"] for tile in told["tiles"]}


def no_model(monkeypatch):
    def load(*args, **options):
        pytest.fail("the model is loaded")

    monkeypatch.setattr("tessera_fast.model.model.load_model", load)


def unwritable(tmp_path, tiles, out):
    """Names of reports that cannot be, and what is said of them."""
    file = tmp_path / "file"
    file.write_text("")
    os.mkfifo(tmp_path / "pipe")
    return {
        tiles: "needs the name of a file",
        file / "report.json": "could not be written",
        tmp_path / "pipe": "needs the name of a file",
        tmp_path / "x.zarr" / "report.json": "a report cannot lie in the store",
        tmp_path / "x.zarr": "a report cannot lie in the store",
        tmp_path / ("n" * 300): "expected names of at most 255 bytes",
        "/proc/report.json": "could not be written",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_report_that_cannot_be_written_is_told_first(tiles, mini, tmp_path, monkeypatch, run):
    no_model(monkeypatch)
    cases = unwritable(tmp_path, tiles, tmp_path / "x.zarr")
    before = sorted(p.name for p in tmp_path.iterdir())
    for path, message in cases.items():
        result = run("embed", tiles, "-o", tmp_path / "x.zarr", "--model", mini, "--report", path)
        assert result.code == 1 and message in result.err, (path, result.err)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_what_is_tried_first_leaves_nothing_and_changes_nothing(tiles, mini, tmp_path):
    report = tmp_path / "reports" / "a" / "report.json"
    report.parent.mkdir(parents=True)
    before = '{\n "out": "of before"}'
    report.write_text(before)
    job_report.check_report(report, tmp_path / "x")
    assert report.read_text() == before and len(list(report.parent.iterdir())) == 1
    job_report.check_report(tmp_path / "missing" / "report.json", tmp_path / "x")
    assert not (tmp_path / "missing").exists()
    tf.embed_tiles(tiles, tmp_path / "x", mini, report_file=tmp_path / "x" / "report.json")
    assert read(tmp_path / "x" / "report.json")["error"] is None
    link = tmp_path / "link.json"
    link.symlink_to(report)
    tf.embed_tiles(tiles, tmp_path / "x", mini, report_file=link)
    assert link.is_symlink() and set(states(read(report)).values()) == {"skipped"}


@pytest.mark.parametrize("executor", ["process", "local"])
def test_an_error_of_one_tile(executor, tiles, mini, tmp_path):
    spoil(tiles / "t10_2024")
    report = tmp_path / "report.json"
    with pytest.raises(tf.InputError, match="masks: expected") as caught:
        tf.embed_tiles(tiles, tmp_path / "x", mini, executor=executor, report_file=report)
    told = read(report)
    assert sorted(states(told)) == NAMES and len(told["tiles"]) == 4
    (failed,) = [t for t in told["tiles"] if t["state"] == "failed"]
    assert failed["source"] == str(tiles / "t10_2024") and "masks: expected" in failed["error"]
    assert told["error"] == f"InputError: {caught.value}"
    assert set(states(told).values()) <= {"done", "failed", "pending"}
    assert told["provenance"]["model"] == "v2-mini" and told["wall"] > 0
    result = caught.value.report  # the same, in Python
    assert isinstance(result, job_report.JobReport)
    assert {t.name: t.state for t in result.tiles} == states(told)


def test_a_tile_that_cannot_be_opened_leaves_the_others_pending(tiles, mini, tmp_path):
    (tiles / "t01_2024" / "masks.npy").unlink()
    report = tmp_path / "report.json"
    with pytest.raises(tf.InputError):
        tf.embed_tiles(tiles, tmp_path / "x", mini, report_file=report)
    told = read(report)
    expected = dict.fromkeys(NAMES, "pending") | {"t01_2024": "failed"}
    assert states(told) == expected and len(told["tiles"]) == 4
    assert {t["source"] for t in told["tiles"]} == {str(tiles / name) for name in NAMES}
    with pytest.raises(tf.InputError):
        tf.embed_tiles(tiles, tmp_path / "x", mini, report_file=report, shard=(1, 2))
    assert states(read(report)) == {"t01_2024": "failed", "t11_2024": "pending"}


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"model": "no_such_model"}, tf.InputError),
        ({"weights": "/no/such/file.pt", "model": "v2-nano"}, tf.WeightsError),
        ({"backend": "cpu", "precision": "fp8"}, tf.BackendUnavailable),
        ({"executor": "slurm"}, tf.InputError),
        ({"workers": 10**30}, tf.InputError),
        ({"report": lambda tile: [][1]}, IndexError),
    ],
)
def test_whatever_ends_it(arguments, kind, tiles, mini, tmp_path):
    report = tmp_path / "report.json"
    with pytest.raises(kind):
        tf.embed_tiles(tiles, tmp_path / "x", **{"model": mini, "report_file": report, **arguments})
    told = read(report)
    assert told["error"].startswith(kind.__name__)
    assert len(states(told)) == len(told["tiles"]) and set(states(told)) <= set(NAMES)


def test_an_output_that_refuses(tiles, mini, tmp_path):
    """Found when the output is opened: all tiles are listed."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "t01_2024.npy").write_text("of somebody else")
    report = tmp_path / "report.json"
    with pytest.raises(tf.StoreError):
        tf.embed_tiles(tiles, tmp_path / "x", mini, report_file=report)
    assert states(read(report)) == dict.fromkeys(NAMES, "pending")


def test_a_plan_that_cannot_be_read(tmp_path, run):
    pytest.importorskip("pyarrow", reason="plans are kept by pyarrow")
    (tmp_path / "plan.parquet").write_text("no plan")
    report = tmp_path / "report.json"
    result = run("embed", tmp_path / "plan.parquet", "-o", tmp_path / "x", "--report", report)
    assert result.code == 1 and "plan again" in read(report)["error"]


def test_an_error_of_the_report_does_not_hide_that_of_the_job(tiles, mini, tmp_path, caplog):
    spoil(tiles / "t00_2024")
    folder = tmp_path / "reports"
    folder.mkdir()

    def spoil_report(provenance):
        folder.rmdir()
        folder.write_text("")

    with pytest.raises(tf.InputError, match="masks: expected"):
        tf.embed_tiles(tiles, tmp_path / "x", mini, report_file=folder / "r", started=spoil_report)
    assert "could not be written" in caplog.text
    folder.unlink()
    folder.mkdir()
    with pytest.raises(tf.StoreError, match="could not be written"):  # and is told if it is alone
        tf.embed_tiles(
            tiles / "t01_2024", tmp_path / "x", mini, report_file=folder / "r", started=spoil_report
        )


def test_a_full_disk_keeps_the_report_of_before(tiles, mini, tmp_path, monkeypatch):
    report = tmp_path / "report.json"
    result = tf.embed_tiles(tiles, tmp_path / "x", mini, report_file=report)
    before = report.read_text()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(tf.StoreError, match="No space left"):
        result.save(report)
    assert report.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "tiles", "x"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["process", "local"])
def test_a_signal(number, options, mini, tmp_path):
    pytest.importorskip("fcntl", reason="this system has no locks between processes")
    write_region(tmp_path / "many", side=12, count=6)
    report, done = tmp_path / "report.json", tmp_path / "x" / ".tessera_fast" / "done"
    process = start(
        [
            "env",
            "TESSERA_FAST_ISA=portable",
            *command(tmp_path / "many", tmp_path / "x", mini, *options, "--report", str(report)),
        ]
    )
    deadline = time.monotonic() + 60
    while not list(done.glob("*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, number)
    text, _ = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the job was done before the signal came")
    told = read(report)
    kind = {signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: "Terminated"}[number]
    assert told["error"] == kind and "Traceback" not in text
    assert len(states(told)) == len(told["tiles"]) == 36
    assert set(states(told).values()) <= {"done", "pending"}
    assert {p.name[: -len(".json")] for p in done.iterdir()} >= {
        name for name, state in states(told).items() if state == "done"
    }
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_all_workers_killed(mini, tmp_path):
    pytest.importorskip("fcntl", reason="this system has no locks between processes")
    write_region(tmp_path / "many", side=12, count=6)
    report = tmp_path / "report.json"
    process = start(
        command(tmp_path / "many", tmp_path / "x", mini, "--workers", "1", "--report", str(report))
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for pid in workers(process.pid):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    text, _ = process.communicate(timeout=60)
    assert process.returncode in (1, 3) and "SIGKILL" in text
    told = read(report)
    assert "SIGKILL" in told["error"] and len(told["tiles"]) == 36


def test_pending_tiles_are_counted(tiles, mini, tmp_path):
    spoil(tiles / "t00_2024")
    with pytest.raises(tf.InputError) as caught:
        tf.embed_tiles(tiles, tmp_path / "x", mini, memory=None)
    result = caught.value.report
    assert result.count("pending") + result.count("done") == 3
    if result.count("pending"):
        assert f"; {result.count('pending')} not reached" in result.summary()


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("/home/ann/models/mine.pt", "mine.pt"),
        ("hub:some/repo/file.pt@abc", "hub:some/repo/file.pt@abc"),
        ("package:demo.safetensors", "package:demo.safetensors"),
        ("untrained:1", "untrained:1"),
        ("untrained:1 in /home/ann in b/mini.safetensors", "untrained:1 in mini.safetensors"),
    ],
)
def test_no_folder_of_the_weights_is_kept(source, kept, mini):
    from dataclasses import replace

    from tessera_fast.jobs.runner import provenance_of
    from tessera_fast.pipeline.embed import Settings

    with tf.load_model(mini) as model:
        model.weights = replace(load_weights(mini), source=source)
        assert provenance_of(model, Settings(), quantized=True).weights_source == kept


@pytest.mark.parametrize("out", ["x.zarr", "x"])
def test_an_output_says_nothing_of_the_machine(out, tiles, mini, tmp_path):
    """Neither where weights and output lie, nor who ran it; the state may say where tiles lie."""
    if out == "x.zarr":
        pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
    tf.embed_tiles(tiles, tmp_path / out, mini)
    words = [str(mini.parent), os.uname().nodename, str(tmp_path / out)]
    for path in tmp_path.rglob("*.json"):
        text = path.read_text()
        assert not [word for word in words if word in text], path
        if ".state" not in str(path) and ".tessera_fast" not in str(path):
            assert str(tmp_path) not in text, path


def test_a_plan_that_cannot_be_written_is_told_first(tiles, tmp_path, run, monkeypatch):
    pytest.importorskip("pyarrow", reason="plans are kept by pyarrow")
    monkeypatch.setattr("tessera_fast.planning.plan.plan", lambda *a, **k: pytest.fail("planned"))
    for path in (tiles, tmp_path / "gone" / "p.parquet", "/proc/p.parquet"):
        result = run("plan", tiles, "-o", path)
        assert result.code == 1 and str(path) in result.err
