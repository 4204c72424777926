"""Bad input: every case ends in a clear error, and leaves nothing behind."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from conftest import FARM_SHAPE, OUTPUTS, needs_zarr
from fake_tiles import listing
from memory_settings import memory_for
from tessera_fast.spec import S2_BANDS
from tessera_fast.store import disk
from tessera_fast.synthetic import synthetic_tile, write_tile

H, W = FARM_SHAPE
SUFFIXES = ("x.zarr", "x")


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Rewrite one array of a folder."""

    def apply(folder: Path) -> None:
        path = folder / f"{name}.npy"
        np.save(path, change(np.load(path)), allow_pickle=True)

    return apply


def put(name: str, value: float, *index: int, dtype: type | None = None) -> Callable[[Path], None]:
    """Set one value of an array, cast to ``dtype`` first."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array if dtype is None else array.astype(dtype)
        array[index] = value
        return array

    return edit(name, change)


def cut(name: str, keep: float) -> Callable[[Path], None]:
    """Keep a share of a file's bytes."""

    def apply(folder: Path) -> None:
        path = folder / f"{name}.npy"
        os.truncate(path, int(path.stat().st_size * keep))

    return apply


def remove(*names: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for name in names:
            (folder / f"{name}.npy").unlink()

    return apply


def no_sentinel1(folder: Path) -> None:
    for path in folder.glob("sar_*"):
        path.unlink()


def too_many_dates(folder: Path) -> None:
    dates = 65_536
    shutil.rmtree(folder)
    folder.mkdir()
    np.save(folder / "bands.npy", np.ones((dates, 1, 1, 10), np.uint16))
    np.save(folder / "masks.npy", np.ones((dates, 1, 1), np.uint8))
    np.save(folder / "doys.npy", np.ones(dates, np.int32))


def too_many_radar_dates(folder: Path) -> None:
    for orbit, dates in (("ascending", 40_000), ("descending", 25_536)):
        np.save(folder / f"sar_{orbit}.npy", np.ones((dates, H, W, 2), np.int16))
        np.save(folder / f"sar_{orbit}_doy.npy", np.ones(dates, np.int32))


def replaced_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a tile")


ROW, COLUMN = H - 1, 4  # in the last band of rows
CLASSES = (
    r"expected (only )?0 \(cloud\).* 1 \(clear\), got 7 at date 3, row 11, column 4; turn class"
)

# how the folder is broken, and what the message says: the file, expected, got, what to do
CASES = {
    "bands missing": (
        remove("bands"),
        [r"/farm_2024/bands\.npy: missing", r"needed: .*\(T, H, W, 10\)"],
    ),
    "masks missing": (remove("masks"), [r"/masks\.npy: missing", "1 = clear", "all-ones"]),
    "days missing": (remove("doys"), [r"/doys\.npy: missing", "days of year"]),
    "radar days missing": (
        remove("sar_ascending_doy"),
        [r"/sar_ascending_doy\.npy: missing", r"sar_ascending\.npy is there", "give both"],
    ),
    "folder missing": (shutil.rmtree, [r"/farm_2024: expected a folder", "nothing there"]),
    "file for a folder": (replaced_by_file, [r"/farm_2024: expected a folder", "got a file"]),
    "bands truncated": (
        cut("bands", 0.5),
        [r"/bands\.npy: expected a complete", r"got \d+ bytes", "again"],
    ),
    "header truncated": (cut("masks", 0.001), [r"/masks\.npy: expected a complete", "again"]),
    "days truncated": (cut("doys", 0.9), [r"/doys\.npy: expected a complete", "again"]),
    "radar empty file": (
        cut("sar_descending", 0),
        [r"/sar_descending\.npy: expected a complete", "got 0 bytes"],
    ),
    "masks of fewer dates": (
        edit("masks", lambda a: a[1:]),
        [r"/masks\.npy: expected \(71, 12, 9\)", r"got \(70, 12, 9\)", "one mask per date"],
    ),
    "days of fewer dates": (
        edit("doys", lambda a: a[1:]),
        [r"/doys\.npy: expected \(71,\)", r"got \(70,\)"],
    ),
    "radar of other pixels": (
        edit("sar_ascending", lambda a: a[:, 1:]),
        [r"/sar_ascending\.npy: expected \(\d+, 12, 9, 2\)", r"got \(\d+, 11, 9, 2\)", "crop or"],
    ),
    "nine bands": (
        edit("bands", lambda a: a[..., :9]),
        [r"/bands\.npy: expected \(T, H, W, 10\)", "got .*9\\)", "B04 B02 B03 B08 B8A B05"],
    ),
    "georeference of other pixels": (
        edit("bands", lambda a: a[:, :, 1:]),
        [r"/roi\.tiff: expected \(12, 8\)", r"got \(12, 9\)", "other pixels"],
    ),
    "mask of a class": (put("masks", 7, 3, ROW, COLUMN), [r"/farm_2024, masks: ", CLASSES]),
    "wide mask of a class": (
        put("masks", 7, 3, ROW, COLUMN, dtype=np.int64),
        [r"/farm_2024/masks\.npy: ", CLASSES],
    ),
    "day 0": (put("doys", 0, 2), [r"/doys\.npy: expected .*1\.\.366", "got 0 at index 2", "drop"]),
    "day 367": (
        put("sar_descending_doy", 367, 0),
        [r"/sar_descending_doy\.npy: .*1\.\.366", "got 367"],
    ),
    "day of a fraction": (put("doys", 12.5, 2, dtype=np.float64), ["whole days", r"got 12\.5"]),
    "day without a number": (put("doys", np.nan, 2, dtype=np.float64), [r"/doys\.npy", "got nan"]),
    "days as text": (
        edit("doys", lambda a: a.astype(str)),
        [r"/doys\.npy: expected integers", "got <U"],
    ),
    "NaN in a clear date": (
        lambda folder: (
            put("masks", 1, 3, ROW, COLUMN)(folder),
            put("bands", np.nan, 3, ROW, COLUMN, 6, dtype=np.float32)(folder),
        ),
        [
            r"/farm_2024, Sentinel-2 bands: expected finite",
            "got NaN",
            "date 3, row 11, column 4",
            "band 6",
            "mask to 0",
        ],
    ),
    "infinity in radar": (
        lambda folder: (
            [
                edit(f"sar_{orbit}", lambda a: a.astype(np.float32))(folder)
                for orbit in ("ascending", "descending")
            ]
            and put("sar_descending", np.inf, 3, ROW, COLUMN, 1)(folder)
        ),
        [r"/farm_2024, Sentinel-1 bands: expected finite", "got NaN or inf", "row 11", "write 0"],
    ),
    "no Sentinel-1": (
        no_sentinel1,
        [r"sar_ascending\.npy, sar_descending\.npy: expected at least one", "--allow-missing-s1"],
    ),
    "bands float64": (
        edit("bands", lambda a: a.astype(np.float64)),
        [r"/bands\.npy: expected uint16, int16, float32", "got float64", "cast"],
    ),
    "bands pickled": (
        edit("bands", lambda a: a[:1, :1, :1].astype(object)),
        [r"/bands\.npy: expected .* plain numbers", "cannot be read"],
    ),
    "masks float": (
        edit("masks", lambda a: a.astype(np.float32)),
        [r"/masks\.npy: expected uint8, bool", "got float32", "astype"],
    ),
    "radar int32": (
        edit("sar_ascending", lambda a: a.astype(np.int32)),
        [r"/sar_ascending\.npy: expected", "got int32", "cast"],
    ),
    "no rows": (edit("bands", lambda a: a[:, :0]), [r"/bands\.npy: expected at least one", "0"]),
    "no dates": (edit("bands", lambda a: a[:0]), [r"/bands\.npy: expected at least one date"]),
    "65,536 dates": (
        too_many_dates,
        [r"/bands\.npy: expected at most 65535 dates", "got 65536", "drop"],
    ),
    "65,536 radar dates": (
        too_many_radar_dates,
        [r"sar_ascending\.npy and .* at most 65535 dates", "got 65536"],
    ),
}
IN_THE_PIXELS = ("mask of a class", "wide mask of a class", "NaN in a clear", "infinity in radar")


@pytest.mark.parametrize("case", CASES)
def test_bad_folder(case, farm, mini, run, tmp_path):
    break_it, message = CASES[case]
    memory = memory_for(farm, mini, 5)  # three bands: errors in the pixels come up in the last
    break_it(farm)
    with pytest.raises(tf.InputError) as caught:
        tf.embed(farm, mini, threads=1, memory=memory)
    for part in message:
        assert re.search(part, str(caught.value)), f"{part!r} is not in: {caught.value}"
    out = tmp_path / "out"
    out.mkdir()
    for name in SUFFIXES:
        result = run(
            "embed", farm, "-o", out / name, "--model", mini, "--threads", 1, "--memory", memory
        )
        assert result.code == 1
        assert result.err.strip().splitlines()[-1] == f"tessera-fast: {caught.value}"
        assert "Traceback" not in result.err
        assert list(out.iterdir()) == []


def test_errors_in_the_pixels_come_after_work_was_spooled(farm, mini, run, tmp_path, monkeypatch):
    """The cases above with a bad last band did write rows of the bands before it."""
    from tessera_fast.store.spool import SpooledTile

    written = []
    write_rows = SpooledTile.write_rows
    monkeypatch.setattr(
        SpooledTile,
        "write_rows",
        lambda self, start, *a: (written.append(start), write_rows(self, start, *a)),
    )
    memory = memory_for(farm, mini, 5)
    for case in (c for c in CASES if c.startswith(IN_THE_PIXELS)):
        folder = shutil.copytree(farm, tmp_path / case.replace(" ", "_") / farm.name)
        CASES[case][0](folder)
        result = run(
            "embed",
            folder,
            "-o",
            tmp_path / "x",
            "--model",
            mini,
            "--threads",
            1,
            "--memory",
            memory,
        )
        assert result.code == 1
        assert len(written) >= 2, case
        assert not (tmp_path / "x").exists()
        written.clear()


def test_dataset_or_dict_without_sentinel1():
    xr = pytest.importorskip("xarray")
    window = synthetic_tile(2, 6).rows(0, 2)
    arrays = {"bands": window.s2_bands, "masks": window.s2_masks, "doys": window.s2_doys}
    bands = xr.DataArray(
        window.s2_bands, dims=("time", "y", "x", "band"), coords={"band": list(S2_BANDS)}
    )
    dataset = xr.Dataset(
        {
            "bands": bands,
            "masks": (("time", "y", "x"), window.s2_masks),
            "doys": ("time", window.s2_doys),
        }
    )
    for source in (arrays, dataset):
        with pytest.raises(tf.InputError, match=r"at least one Sentinel-1 .*allow_missing_s1"):
            tf.embed(source, "v2-nano", weights="untrained")
        allowed = tf.embed(source, "v2-nano", weights="untrained", allow_missing_s1=True)
        assert np.isfinite(np.asarray(allowed)).any()


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A function of a number of pages that returns a folder on a file system of that size."""
    mounted = []

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make(pages: int) -> Path:
        folder = tmp_path / f"disk{pages}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "none", str(folder)]
        if shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0:
            mounted.append(folder)
        elif pages <= 2:  # not permitted to mount: refuse the rows of the spool ...
            monkeypatch.setattr(disk.RowFile, "write", no_space)
        else:  # ... or what is made of them
            monkeypatch.setattr(disk, "sync_file", no_space)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


FULL_AT = [("x", 2), ("x", 5)]
FULL_AT += [pytest.param("x.zarr", pages, marks=needs_zarr) for pages in (2, 5, 10, 20, 35)]


@pytest.mark.parametrize(("name", "pages"), FULL_AT)
def test_full_disk(name, pages, farm, mini, run, small_disk):
    disk = small_disk(pages)
    result = run("embed", farm, "-o", disk / name, "--model", mini)
    assert result.code == 1
    assert "No space left on device" in result.err and "make room" in result.err
    assert str(disk / name) in result.err
    assert list(disk.iterdir()) == []


SLOW = {"TESSERA_FAST_ISA": "portable", "TESSERA_FAST_THREADS": "1"}  # some seconds a tile


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", OUTPUTS)
def test_interrupt(name, farm, spawn, tmp_path, run):
    """In the second tile: the first is kept, the second is not there, a rerun completes."""
    big = write_tile(synthetic_tile(32, 32, seed=1), tmp_path / "big_2024")
    out = tmp_path / "out" / name
    arguments = ["embed", farm, big, "-o", out, "--model", "v2-nano", "--weights", "untrained:3"]
    arguments += ["--precision", "fp32"]  # SLOW's instruction set is not the one of the rerun
    state = out.with_name("x.zarr.state") if name == "x.zarr" else out / ".tessera_fast"
    process = spawn(*arguments, env=SLOW)
    wait_for(lambda: any((state / "done").glob("farm_2024*.json")), process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    stdout, stderr = process.communicate(timeout=30)
    took = time.monotonic() - sent
    assert process.returncode == 130, (stdout, stderr)
    assert took < 4, "the answer to Ctrl-C is due within about 2 s on an idle machine"
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert "farm_2024: 108 px" in stdout and "big_2024" not in stdout
    record = "provenance.json" if name == "x" else "shards"
    assert {p.name for p in state.iterdir()} == {"done", "identity.json", "lock", record}
    assert len(list((state / "done").iterdir())) == 1
    kept = listing(out)
    assert not (out / "big_2024.npy").exists()
    result = run(*arguments)
    assert result.code == 0
    assert "farm_2024: already done" in result.out and "big_2024: 1,024 px" in result.out
    if name == "x":
        farm_file = Path("farm_2024.npy")
        assert listing(out)[farm_file] == kept[farm_file]


@needs_zarr
def test_interrupt_of_the_only_tile_leaves_nothing(farm, spawn, tmp_path):
    big = write_tile(synthetic_tile(32, 32, seed=1), tmp_path / "big_2024")
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["embed", big, "-o", out / "x.zarr", "--model", "v2-nano", "--weights", "untrained"]
    process = spawn(*arguments, env=SLOW)
    wait_for(lambda: any(out.glob("x.zarr.state/spool/*/embeddings.npy")), process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, (stdout, stderr)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["fly"], "argument COMMAND: expected embed, plan"),
        (["embed"], "required: TILE, -o/--out"),
        (["embed", "tile"], "required: -o/--out"),
        (["embed", "-o", "x"], "required: TILE"),
        (["embed", "tile", "-o", "x", "--dims", "many"], "invalid int value: 'many'"),
        (["embed", "tile", "-o", "x", "--memory", "much"], "expected a size such as 512MiB"),
        (["embed", "tile", "-o", "x", "--threads", "0"], "expected a positive integer, got '0'"),
        (["embed", "tile", "-o", "x", "--colour"], "there is no option '--colour'"),
        (["convert", "a.pt"], "required: destination"),
    ],
)
def test_usage_errors_exit_with_2(arguments, message, run, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
