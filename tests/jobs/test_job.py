"""Jobs from what a user gives: plans, windows of a cube, periods, dry runs, what looks wrong."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from fake_tiles import listing
from memory_settings import memory_for
from region import whole, write_region
from running import command, start
from tessera_fast.spec import variant
from tessera_fast.synthetic import write_tile
from tessera_fast.weights import save_safetensors, untrained_weights

pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("rasterio", reason="tiles for a store need a roi.tiff")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("region") / "tiles"
    write_region(folder, side=16, count=2)
    return folder


def test_a_plan_is_embedded_as_its_tiles_are(tiles, mini, run, tmp_path):
    pytest.importorskip("pyarrow", reason="plans are kept by pyarrow")
    plan, a, b = tmp_path / "plan.parquet", tmp_path / "a" / "x.zarr", tmp_path / "b" / "x.zarr"
    a.parent.mkdir(), b.parent.mkdir()
    assert run("plan", tiles, "-o", plan, "--model", mini, "--no-calibrate").code == 0
    result = run("embed", plan, "-o", a)  # with the model that it was planned for
    assert result.code == 0 and "4 of 4 tiles embedded with v2-mini" in result.out
    assert run("embed", tiles, "-o", b, "--model", mini).code == 0
    assert listing(a.parent) == listing(b.parent)
    again = run("embed", plan, "-o", a)
    assert again.out.count("already done") == 4


def test_a_tile_that_changed_since_the_plan(tiles, mini, run, tmp_path):
    pytest.importorskip("pyarrow", reason="plans are kept by pyarrow")
    tile = write_tile(whole(8, 1), tmp_path / "farm_2024")
    plan = tmp_path / "plan.parquet"
    assert run("plan", tile, "-o", plan, "--model", mini, "--no-calibrate").code == 0
    bands = np.load(tile / "bands.npy")
    np.save(tile / "bands.npy", bands + 1)
    result = run("embed", plan, "-o", tmp_path / "x.zarr")
    assert result.code == 1 and "plan again" in result.err
    assert not (tmp_path / "x.zarr").exists() and not (tmp_path / "x.zarr.state").exists()


def test_dry_run(tiles, mini, run, tmp_path):
    result = run("embed", tiles, "-o", tmp_path / "x.zarr", "--model", mini, "--dry-run")
    assert result.code == 0
    assert "t00_2024" in result.out and "\nmemory" in result.out and "\ntime" in result.out
    assert list(tmp_path.iterdir()) == []
    result = run(
        "embed", tmp_path / "gone", tiles, "-o", tmp_path / "x", "--model", mini, "--dry-run"
    )
    assert result.code == 3 and "gone" in result.out


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["process", "local"])
def test_windows_of_a_large_tile(options, mini, run, tmp_path):
    """The windows fill the store as the whole tile does."""
    tile = write_tile(whole(20, 1), tmp_path / "land_2024")
    for name, cut in (("whole", ()), ("parts", ("--window", 8, *options))):
        (tmp_path / name).mkdir()
        result = run("embed", tile, "-o", tmp_path / name / "x.zarr", "--model", mini, *cut)
        assert result.code == 0, result.err
    assert "9 of 9 tiles" in result.out and "land_2024_y8_x16: 32 px" in result.out
    assert listing(tmp_path / "whole" / "x.zarr") == listing(tmp_path / "parts" / "x.zarr")


def test_a_period_is_recorded_and_not_mixed(mini, tmp_path):
    xr = pytest.importorskip("xarray")
    land = whole(8, 1)
    seen = land.rows(0, land.height)
    radar = seen.orbits[0]
    first = np.datetime64("2024-01-01")
    cube = xr.Dataset(
        {
            "bands": (("time", "y", "x", "band"), seen.s2_bands),
            "masks": (("time", "y", "x"), seen.s2_masks),
            "sar_ascending": (("pass", "y", "x", "polarization"), radar.bands),
        },
        coords={
            "time": first + (seen.s2_doys + 90).astype("m8[D]"),
            "pass": first + (radar.doys + 90).astype("m8[D]"),
            "band": ["B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12"],
            "polarization": ["VV", "VH"],
        },
    )
    place = {"crs": land.crs, "transform": land.transform}
    period = ("2024-07-01", "2025-03-31")
    tile = tf.open_tile(cube, name="land", period=period, **place)
    out = tmp_path / "x.zarr"
    found = tf.embed_tiles([tile], out, mini, period=period)
    assert found.provenance.period == "07-01/03-31" and found.count("done") == 1
    assert tile.year == 2024
    with pytest.raises(tf.StoreError, match="period: it holds '07-01/03-31', this run has None"):
        tf.embed_tiles([tf.open_tile(land, name="other")], out, mini)


def test_what_looks_wrong_is_said(tiles, mini, run, tmp_path, caplog):
    tile = write_tile(whole(24, 1), tmp_path / "farm_2024")
    good = run("embed", tile, "-o", tmp_path / "good", "--model", mini)
    assert "warning" not in good.err
    bands = np.load(tile / "bands.npy")
    np.save(tile / "bands.npy", bands + 1000)
    result = run("embed", tile, "-o", tmp_path / "bad", "--model", mini)
    assert result.code == 0
    assert "farm_2024: warning: " in result.err and "1000" in result.err
    tf.embed(tile, mini)
    assert any("1000" in record.getMessage() for record in caplog.records)


def test_what_looks_wrong_is_told_by_workers_too(mini, run, tmp_path):
    tile = write_tile(whole(24, 1), tmp_path / "farm_2024")
    bands = np.load(tile / "bands.npy")
    np.save(tile / "bands.npy", bands + 1000)
    result = run("embed", tile, "-o", tmp_path / "bad", "--model", mini, "--workers", "1")
    assert "farm_2024: warning: " in result.err and "1000" in result.err


def test_progress_reaches_the_total(tiles, mini, tmp_path):
    seen = []
    tf.embed_tiles(
        tiles, tmp_path / "x", mini, progress=lambda done, total: seen.append((done, total))
    )
    assert {total for _, total in seen} == {4 * 16 * 16}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == 4 * 16 * 16


def states(result):
    return {tile.name: tile.state for tile in result.tiles}


def spoil(tile, row=-1):
    """A mask value of the tile's last row that is found while packing."""
    masks = np.load(tile / "masks.npy")
    masks[3, row, 0] = 9
    np.save(tile / "masks.npy", masks)


@pytest.fixture
def own(tmp_path):
    """Four tiles to be changed at will."""
    write_region(tmp_path / "own", side=16, count=2)
    return tmp_path / "own"


@pytest.mark.parametrize("executor", ["process", "local"])
def test_progress_with_tiles_that_are_skipped_or_fail(executor, own, mini, tmp_path):
    """It grows to the total and not beyond, also where a tile fails after its first rows."""
    memory = memory_for(own / "t00_2024", mini, 5)
    tf.embed_tiles(own / "t00_2024", tmp_path / "x", mini)
    spoil(own / "t01_2024")
    seen = []
    result = tf.embed_tiles(
        own,
        tmp_path / "x",
        mini,
        on_error="skip",
        memory=memory,
        threads=1,
        executor=executor,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert states(result) == {
        "t00_2024": "skipped",
        "t01_2024": "failed",
        "t10_2024": "done",
        "t11_2024": "done",
    }
    shown = [done for done, _ in seen]
    assert {total for _, total in seen} == {4 * 16 * 16}
    assert shown == sorted(shown) and shown[-1] == 4 * 16 * 16


@pytest.mark.parametrize("what", ["progress", "report"])
@pytest.mark.parametrize("kind", [tf.InputError, RuntimeError])
def test_what_a_callback_raises_ends_the_job(what, kind, tiles, mini, tmp_path):
    """As it was raised, though the encoder raises InputErrors too; nothing is left half done."""
    mine = kind("mine")
    threads = set(threading.enumerate())

    def fail(*_):
        raise mine

    with pytest.raises(kind) as caught:
        tf.embed_tiles(tiles, tmp_path / "x", mini, **{what: fail})
    assert caught.value is mine
    assert set(threading.enumerate()) <= threads
    left = {p.name for p in (tmp_path / "x" / ".tessera_fast").glob("*")}
    assert left <= {"done", "identity.json", "lock", "provenance.json"}


def test_an_error_with_several_tiles_open(own, mini, tmp_path):
    spoil(own / "t10_2024")
    memory = memory_for(own / "t00_2024", mini, 3)
    with pytest.raises(tf.InputError, match=r"t10_2024, masks: expected"):
        tf.embed_tiles(own, tmp_path / "x", mini, memory=memory, threads=1)
    assert {p.name for p in (tmp_path / "x").glob("*.npy")} <= {"t00_2024.npy", "t01_2024.npy"}
    assert not (tmp_path / "x" / ".tessera_fast" / "spool").exists()
    again = tf.embed_tiles(own, tmp_path / "x", mini, on_error="skip")
    assert again.count("failed") == 1 and again.count("done") + again.count("skipped") == 3
    (error,) = [tile.error for tile in again.tiles if tile.error is not None]
    while error is not None:  # frames would keep what was read until the job ends
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__


def test_a_tile_that_a_store_cannot_place_is_one_failure(mini, tmp_path):
    pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
    good = write_tile(whole(8, 8), tmp_path / "good_2024")
    odd = write_tile(whole(8, 8), tmp_path / "odd_2024")
    tiles = [
        tf.open_tile(good, crs="EPSG:32631", transform=(10, 0, 500_000, 0, -10, 5_600_000)),
        tf.open_tile(odd, crs="EPSG:3035", transform=(10, 0, 0, 0, -10, 0)),
    ]
    result = tf.embed_tiles(tiles, tmp_path / "x.zarr", mini, on_error="skip")
    assert (result.count("done"), result.count("failed")) == (1, 1)
    (error,) = [tile.error for tile in result.tiles if tile.error is not None]
    assert "a store holds WGS 84 UTM tiles" in str(error)


@pytest.mark.parametrize("executor", ["process", "local"])
def test_one_of_several_tiles_changed_since_the_plan(executor, own, mini, tmp_path):
    pytest.importorskip("pyarrow", reason="plans are kept by pyarrow")
    plan = tf.plan(own, mini, calibrate=False)
    np.save(own / "t01_2024" / "doys.npy", np.load(own / "t01_2024" / "doys.npy")[::-1].copy())
    result = tf.embed_tiles(plan, tmp_path / "x", mini, on_error="skip", executor=executor)
    (error,) = [t.error for t in result.tiles if t.error is not None]
    assert states(result)["t01_2024"] == "failed" and "plan again" in str(error)
    assert result.count("done") == 3


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--ray", "2")], ids=str)
def test_more_shards_than_tiles(options, tiles, mini, run, tmp_path):
    result = run("embed", tiles, "-o", tmp_path / "x", "--model", mini, "--shard", "5/8", *options)
    assert (result.code, result.err) == (0, "")
    assert result.out.strip() == f"no tile is to be embedded -> {tmp_path / 'x'}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--shard", "0/2")], ids=str)
@pytest.mark.parametrize("out", ["x.zarr", "x"])
def test_two_tiles_of_one_name(out, options, tiles, mini, run, tmp_path):
    """No process has both, so whoever gives them out has to see it."""
    other = tmp_path / "other" / "t00_2024"
    other.parent.mkdir()
    write_tile(whole(8, 1), other)
    result = run("embed", tiles, other, "-o", tmp_path / out, "--model", mini, *options)
    assert result.code == 1 and "would both write" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_relative_paths(tiles, mini, run, tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(mini.read_bytes())
    (tmp_path / "tiles").symlink_to(tiles)
    monkeypatch.chdir(tmp_path)
    result = run(
        "embed",
        "tiles",
        "-o",
        "out/x",
        "--model",
        "model.safetensors",
        "--workers",
        "1",
        "--report",
        "report.json",
    )
    assert result.code == 0, result.err
    assert len(list((tmp_path / "out" / "x").glob("*.npy"))) == 4
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.safetensors",
        "tiles",
        "out",
        "report.json",
    }


def test_tiles_that_are_no_files(mini, tmp_path):
    """A dict, a Dataset and an opened Tile, without a place or a year."""
    xr = pytest.importorskip("xarray")
    land = whole(8, 1)
    seen = land.rows(0, land.height)
    arrays = {"bands": seen.s2_bands, "masks": seen.s2_masks, "doys": seen.s2_doys}
    dataset = xr.Dataset(
        {
            "bands": (("time", "y", "x", "band"), seen.s2_bands),
            "masks": (("time", "y", "x"), seen.s2_masks),
            "doys": ("time", seen.s2_doys),
        },
        coords={"band": ["B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12"]},
    )
    tile = tf.open_tile(arrays, name="opened", allow_missing_s1=True)
    result = tf.embed_tiles([arrays, tile], tmp_path / "x", mini, allow_missing_s1=True)
    assert states(result) == {"tile": "done", "opened": "done"} and result.tiles[0].year is None
    assert tf.embed_tiles(dataset, tmp_path / "x", mini, allow_missing_s1=True).count("skipped")
    result = tf.embed_tiles(tile, tmp_path / "x", mini, executor="local", workers=1)
    assert states(result) == {"opened": "skipped"}
    expected = tf.embed(arrays, mini, allow_missing_s1=True)
    for name in ("tile", "opened"):
        np.testing.assert_array_equal(np.load(tmp_path / "x" / f"{name}.npy"), expected)


def test_two_jobs_with_different_models_at_once(tiles, mini, tmp_path):
    """The first to finish a tile has the output; the other ends with both sides of the story."""
    other = tmp_path / "other.safetensors"
    spec = variant(
        "v2-nano",
        name="v2-other",
        d_model=16,
        num_layers=1,
        num_heads=2,
        ff_dim=16,
        out_dim=32,
        saved_dim=32,
        matryoshka=(8, 16, 32),
    )
    save_safetensors(other, untrained_weights(spec, 7))
    both = [start(command(tiles, tmp_path / "o" / "x.zarr", model)) for model in (mini, other)]
    texts = [process.communicate(timeout=120)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], texts
    (lost,) = [t for t, p in zip(texts, both, strict=True) if p.returncode]
    assert "will not mix embeddings" in lost and "Traceback" not in lost
    assert len(list((tmp_path / "o" / "x.zarr.state" / "done").iterdir())) == 4
    left = {p.name for p in (tmp_path / "o" / "x.zarr.state").iterdir()}
    assert left == {"done", "identity.json", "lock", "shards"}


_listed: list[str] | None = None


def _note_listings(event, arguments):
    if _listed is not None and event in ("os.scandir", "os.listdir"):
        _listed.append(str(arguments[0]))


sys.addaudithook(_note_listings)  # there is no way to take it off again


@pytest.mark.parametrize("out", ["x.zarr", "x"])
def test_a_rerun_reads_markers_and_lists_nothing(out, tiles, mini, tmp_path, monkeypatch):
    """However many tiles there are; a store has more files than tiles."""
    tf.embed_tiles(tiles, tmp_path / out, mini)
    counts = []
    for given in (tiles, tiles / "t00_2024"):
        monkeypatch.setattr(sys.modules[__name__], "_listed", [])
        assert tf.embed_tiles(given, tmp_path / out, mini).count("done") == 0
        counts.append(len([path for path in _listed if path.startswith(str(tmp_path / out))]))
    assert counts[0] == counts[1] < 20


def test_many_tiles_leave_no_files_open(mini, tmp_path):
    files = Path("/proc/self/fd")
    if not files.exists():
        pytest.skip("open files are counted in /proc")
    tile = write_tile(whole(32, 1), tmp_path / "land_2024")
    open_files = []
    tf.embed_tiles(
        tile,
        tmp_path / "x",
        mini,
        window=2,
        report=lambda _: open_files.append(len(list(files.iterdir()))),
    )
    assert len(open_files) == 256
    # some are open for the next window: how many is chance, but not that a window leaves one
    assert max(open_files[128:]) < max(open_files[:32]) + 64
