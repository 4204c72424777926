"""Plans: what they count, against the tiles and the packer; skipped tiles; the command."""

import pickle
import shutil
import tracemalloc

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.backends.base import RunOptions
from tessera_fast.errors import BackendUnavailable, InputError, WeightsError
from tessera_fast.model.flop import work
from tessera_fast.packing import pack
from tessera_fast.pipeline.embed import block_rows
from tessera_fast.planning import rate as calibration
from tessera_fast.planning.plan import plan
from tessera_fast.spec import RELEASED, variant
from tessera_fast.synthetic import synthetic_tile, write_tile


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Three folders, neither by name nor by size in order."""
    root = tmp_path_factory.mktemp("plan")
    sizes = {"a_2023": (4, 7), "b_2024": (44, 32), "c_2022": (9, 12)}
    return [write_tile(synthetic_tile(*s, seed=3), root / name) for name, s in sizes.items()]


def packed(folder, spec):
    tile = tf.open_tile(folder)
    s2, s1, _ = pack(tile.rows(0, tile.height), spec)
    return s2, s1


def test_a_row_says_what_the_tile_is(tiles):
    found = plan(tiles, calibrate=False)
    assert [row.name for row in found] == ["b_2024", "c_2022", "a_2023"]
    assert len(found) == 3 and found[2] is found.rows[2]
    for row in found:
        tile = tf.open_tile(row.source)
        window = tile.rows(0, tile.height)
        arrays = [window.s2_bands, window.s2_masks, *(o.bands for o in window.orbits)]
        assert row.year == int(row.name[-4:]) and row.name == tile.name
        assert (row.crs, row.transform) == (tile.crs, tile.transform)
        assert (row.height, row.width, row.pixels) == (*window.shape, np.prod(window.shape))
        assert (row.s2_dates, row.s1_asc_dates, row.s1_desc_dates) == tile.dates
        assert row.bytes_in == sum(a.nbytes for a in arrays)
        assert row.fingerprint == tile.fingerprint()
        assert row.seconds is None


@pytest.mark.parametrize("model", ["v2-nano", "v2-teacher", "v1.1-aws", "v1.0-qat", "v1.0"])
def test_tokens_are_the_packers(tiles, model):
    large, *small = plan(tiles, model, calibrate=False)
    for row in small:  # read whole
        s2, s1 = packed(row.source, RELEASED[model])
        assert (row.s2_tokens, row.s1_tokens) == (s2.offsets[-1], s1.offsets[-1])
        assert row.flop == sum(work(RELEASED[model], s2, s1).values())
    s2, s1 = packed(large.source, RELEASED[model])
    for estimate, tokens in ((large.s2_tokens, s2), (large.s1_tokens, s1)):
        assert 0.95 < estimate / tokens.offsets[-1] < 1.05
    assert 0.9 < large.flop / sum(work(RELEASED[model], s2, s1).values()) < 1.1


@pytest.mark.parametrize(
    ("options", "per_pixel"),
    [
        ({"out": "x.zarr"}, 128 + 16 + 32 + 64 + 4 + 6),
        ({"out": "x.zarr", "dims": 32}, 32 + 16 + 4 + 6),
        ({"out": "folder"}, 512),
        ({"out": "folder", "int8": True, "dims": 64}, 68),
    ],
)
def test_bytes_out(tiles, options, per_pixel):
    for row in plan(tiles, "v2-small", calibrate=False, **options):
        assert row.bytes_out == per_pixel * row.pixels


def test_memory_is_what_bands_need(tiles, mini):
    found = plan(tiles, mini, calibrate=False)
    least, used = found.memory
    with tf.load_model(mini) as model:
        tile = tf.open_tile(found[0].source)
        assert block_rows(tile, model, least) >= 1
        with pytest.raises(InputError):
            block_rows(tile, model, least - (1 << 20))
        assert block_rows(tile, model, used) == block_rows(tile, model, None)
        assert block_rows(tile, model, used - (1 << 20)) < block_rows(tile, model, None)
        assert found.weights_bytes == sum(t.nbytes for t in model.weights.tensors.values())


def test_models(tiles, mini, tmp_path):
    by_path = plan(tiles, mini, calibrate=False)
    assert by_path.options["model"] == str(mini)
    with tf.load_model(mini) as model:
        assert plan(tiles, model, calibrate=False).rows == by_path.rows
    assert plan(tiles[0], "v2-nano", calibrate=False).options["model"] == "v2-nano"
    with pytest.raises(InputError, match="v2-nano, v2-small"):
        plan(tiles, "v3", calibrate=False)
    with pytest.raises(WeightsError):
        plan(tiles, tmp_path / "none.pt", calibrate=False)
    with pytest.raises(InputError, match="16, 32, 64, 128"):
        plan(tiles, "v2-nano", dims=17, calibrate=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"threads": 0}, "threads"),
        ({"rate": -1.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"on_error": "ignore"}, "on_error"),
    ],
)
def test_options_that_make_no_sense(tiles, options, message):
    with pytest.raises(InputError, match=message):
        plan(tiles, calibrate=False, **options)


def test_sources_must_be_paths(tiles):
    with pytest.raises(InputError, match="paths or URLs"):
        plan([synthetic_tile(4, 7)], calibrate=False)
    with pytest.raises(InputError, match="at least one tile"):
        plan([], calibrate=False)


def test_a_folder_of_tiles_and_a_relative_path(tiles, monkeypatch):
    root = tiles[0].parent
    assert plan(root, calibrate=False).rows == plan(tiles, calibrate=False).rows
    monkeypatch.chdir(root)
    assert plan(["a_2023"], calibrate=False)[0].source == str(tiles[0])


def test_a_bad_tile_ends_the_plan_or_is_listed(tiles, tmp_path):
    twin = shutil.copytree(tiles[0], tmp_path / "other" / "a_2023")
    broken = shutil.copytree(tiles[0], tmp_path / "broken_2023")
    (broken / "masks.npy").unlink()
    sources = [broken, *tiles, tmp_path / "nothing", twin]
    with pytest.raises(InputError, match=r"masks\.npy"):
        plan(sources, calibrate=False)
    with pytest.raises(InputError, match="different names"):
        plan([*tiles, twin], calibrate=False)
    found = plan(sources, calibrate=False, on_error="skip")
    assert found.rows == plan(tiles, calibrate=False).rows
    assert [f.source for f in found.failed] == [str(broken), str(tmp_path / "nothing"), str(twin)]
    assert str(tiles[0]) in found.failed[2].message
    assert all(f.message in found.summary().replace("\n    ", " ") for f in found.failed)


def test_a_store_needs_a_place(tiles, tmp_path):
    folder = shutil.copytree(tiles[0], tmp_path / "nowhere")
    (folder / "roi.tiff").unlink()
    assert plan(folder, out="npy", calibrate=False)[0].crs is None
    with pytest.raises(InputError, match="CRS and transform and year"):
        plan(folder, out="x.zarr", calibrate=False)
    placed = plan(
        folder,
        out="x.zarr",
        calibrate=False,
        year=2020,
        crs="EPSG:32631",
        transform=(10, 0, 5e5, 0, -10, 5e6),
    )
    assert (placed[0].year, placed[0].crs) == (2020, "EPSG:32631")


def test_missing_radar_is_a_decision(tiles, tmp_path):
    folder = shutil.copytree(tiles[0], tmp_path / "optical_2024")
    for file in folder.glob("sar_*.npy"):
        file.unlink()
    with pytest.raises(InputError, match="allow_missing_s1"):
        plan(folder, calibrate=False)
    assert plan(folder, calibrate=False, allow_missing_s1=True)[0].s1_tokens == 0


def test_a_rate_is_kept_in_all_and_shared_by_work(tiles):
    found = plan(tiles, rate=50.0)
    pixels = sum(row.pixels for row in found)
    assert round(found.seconds * 50.0, 6) == pixels
    per_flop = {round(row.seconds / row.flop * 1e15, 6) for row in found}
    assert len(per_flop) == 1
    assert found.wall_seconds() == found.seconds
    assert found.wall_seconds(3) == found[0].seconds  # the largest has a worker of its own
    assert "50 px/s" in found.summary()


def test_shards_share_the_rows(tiles):
    found = plan(tiles, rate=50.0, workers=2)
    first, second = found.shard(0, 2), found.shard(1, 2)
    assert [*first] == [found[0], found[2]] and [*second] == [found[1]]
    assert found.wall_seconds() == max(first.seconds, second.seconds)
    for wrong in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="shard"):
            found.shard(*wrong)


def test_rows_can_be_sent(tiles):
    found = plan(tiles, rate=50.0)
    assert pickle.loads(pickle.dumps(found)) == found


def test_time_is_measured_on_the_plans_tiles(tiles, mini):
    found = plan(tiles, mini, backend="cpu", precision="fp32", threads=1, out="npy")
    assert "cpu fp32" in found.calibration.source and "1 thread" in found.summary()
    assert found.calibration.per_flop > 0
    for row in found:
        assert row.seconds == found.calibration.seconds(row.pixels, row.flop) > 0


def test_of_a_huge_model_one_layer_is_timed(tiles, monkeypatch):
    spec = variant(
        "v2-teacher", d_model=32, num_layers=3, num_heads=2, ff_dim=48, out_dim=16, saved_dim=16
    )
    running = RunOptions("fp32", threads=1)
    window = tf.open_tile(tiles[0]).rows(0, 2)
    for most, layers in ((10**6, (3, 2)), (0, (1, 1))):
        monkeypatch.setattr(calibration, "_MOST_PARAMETERS", most)
        with calibration.made_up_model(spec, "cpu", running) as model:
            assert (model.spec.num_layers, model.spec.fusion_layers) == layers
            out = np.full((14, 16), np.nan, np.float32)
            observed = model.encode(window, out).any(-1)
            assert np.isfinite(out[observed]).all() and observed.any()


def test_a_back_end_that_cannot_run_here(tiles):
    with pytest.raises(BackendUnavailable, match="--rate"):
        plan(tiles, backend="cpu", precision="fp8")
    assert plan(tiles, backend="cpu", precision="fp8", rate=9000.0).seconds > 0


def test_memory_does_not_grow_with_the_tiles(tiles, tmp_path):
    """But for a row a tile, of some 2 KB: a tile that is held open takes 20 KB."""
    folders = [shutil.copytree(tiles[0], tmp_path / f"t{i}_2024") for i in range(60)]

    def peak(count):
        tracemalloc.start()
        assert len(plan(folders[:count], calibrate=False)) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(60) - peak(10) < 50 * 4000


def test_progress(tiles):
    seen = []
    plan(tiles, calibrate=False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_command(tiles, run, tmp_path):
    result = run("plan", *tiles, "--model", "v2-nano", "--rate", 100, "--workers", 3)
    assert (result.code, result.err) == (0, "")
    assert "b_2024" in result.out and "with 3 workers of 100 px/s" in result.out
    assert max(map(len, result.out.splitlines())) <= 100
    result = run("plan", *tiles, tmp_path / "nothing", "--no-calibrate")
    assert result.code == 3
    assert "not estimated" in result.out and "nothing there" in result.out
    result = run("plan", tmp_path / "nothing", "--no-calibrate", "-o", tmp_path / "p.parquet")
    assert result.code == 1 and "1 cannot be used" in result.out
    assert not (tmp_path / "p.parquet").exists()
    with pytest.raises(SystemExit) as error:
        run("plan", *tiles, "--rate", "fast")
    assert error.value.code == 2
