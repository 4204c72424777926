"""Jobs from what a user gives: plans, windows of a cube, periods, dry runs, what looks wrong."""

import numpy as np
import pytest

import tessera_fast as tf
from fake_tiles import listing
from region import whole, write_region
from tessera_fast.synthetic import write_tile

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
    result = run("embed", tmp_path / "gone", tiles, "-o", tmp_path / "x", "--model", mini,
                 "--dry-run")  # fmt: skip
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
