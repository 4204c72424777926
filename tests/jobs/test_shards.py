"""Shards of a job: whatever one of them cannot read, together they embed every tile once."""

import json
import os

import numpy as np
import pytest

import tessera_fast as tf
from region import whole, write_region
from tessera_fast.jobs import tasks as job_tasks
from tessera_fast.planning.rows import Failure
from tessera_fast.synthetic import write_tile
from tessera_fast.tile import expand
from tessera_fast.tile.sources import numbered

pytest.importorskip("rasterio", reason="tiles are written with a roi.tiff")
NAMES = ["t00_2024", "t01_2024", "t10_2024", "t11_2024"]


@pytest.fixture
def tiles(tmp_path):
    write_region(tmp_path / "tiles", side=8, count=2)
    return tmp_path / "tiles"


class Blind:
    """An `open_tile` that cannot read the tiles of some names."""

    def __init__(self, monkeypatch):
        self.names, self.real = (), job_tasks.open_tile
        monkeypatch.setattr(job_tasks, "open_tile", self)

    def __call__(self, source, **options):
        if any(name in str(source) for name in self.names):
            raise tf.InputError(f"{source}: the disk does not answer")
        return self.real(source, **options)


@pytest.fixture
def blind(monkeypatch):
    return Blind(monkeypatch)


def run_shards(tiles, out, model, count, blind, unreadable, **options):
    """Reports of all shards; ``unreadable``: shard -> names."""
    results = []
    for i in range(count):
        blind.names = unreadable.get(i, ())
        results.append(
            tf.embed_tiles(tiles, out, model, shard=(i, count), on_error="skip", **options)
        )
    return results


def states(results, state):
    return sorted(t.name for result in results for t in result.tiles if t.state == state)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shard", [0, 1, 2])
@pytest.mark.parametrize("out", ["x.zarr", "x"])
def test_a_tile_that_one_shard_cannot_open(out, shard, name, blind, tiles, mini, tmp_path):
    if out == "x.zarr":
        pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
    results = run_shards(tiles, tmp_path / out, mini, 3, blind, {shard: [name]})
    own = NAMES.index(name) % 3 == shard
    lost = [name] if own else []
    assert states(results, "failed") == lost
    assert states(results, "done") == sorted(set(NAMES) - set(lost))
    assert not states(results, "skipped")
    if own:
        (error,) = [t.error for t in results[shard].tiles if t.state == "failed"]
        assert "the disk does not answer" in str(error)
        again = run_shards(tiles, tmp_path / out, mini, 3, blind, {})
        assert states(again, "done") == [name] and len(states(again, "skipped")) == 3


def test_with_raise_a_shard_stops_at_its_own_tiles_only(blind, tiles, mini, tmp_path):
    blind.names = ["t01_2024"]
    assert tf.embed_tiles(tiles, tmp_path / "x", mini, shard=(0, 2)).count("done") == 2
    with pytest.raises(tf.InputError, match="t01_2024: the disk"):
        tf.embed_tiles(tiles, tmp_path / "x", mini, shard=(1, 2))


def test_paths_in_another_order_or_another_place(tiles, mini, tmp_path):
    """As a shell may sort them, and as another machine may mount them."""
    other = tmp_path / "mounted" / "elsewhere"
    other.parent.mkdir()
    other.symlink_to(tiles)
    first = tf.embed_tiles([tiles / n for n in NAMES], tmp_path / "x", mini, shard=(0, 2))
    rest = tf.embed_tiles([other / n for n in NAMES[::-1]], tmp_path / "x", mini, shard=(1, 2))
    assert states([first, rest], "done") == NAMES


def test_a_folder_that_cannot_be_entered_or_lost_its_arrays(tiles):
    """It keeps its number, and opening it says what is wrong."""
    before = dict((os.path.basename(p), n) for n, p in numbered(tiles))
    (tiles / "t01_2024" / "bands.npy").unlink()
    for file in (tiles / "t10_2024").iterdir():
        file.unlink()
    (tiles / "note.txt").write_text("no tile")
    (tiles / "t05_2024").symlink_to(tiles / "gone")
    after = dict((os.path.basename(p), n) for n, p in numbered(tiles))
    assert before == {name: i for i, name in enumerate(NAMES)}
    # t10 has nothing of a tile: it is left out with a warning, and keeps its number
    assert after == {"t00_2024": 0, "t01_2024": 1, "t05_2024": 2, "t11_2024": 4}
    with pytest.raises(tf.InputError, match="nothing there"):
        tf.open_tile(next(p for p in expand(tiles) if "t05" in p))


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_windows_of_a_cube_are_shared_out(shard, blind, mini, tmp_path):
    tile = write_tile(whole(8, 2), tmp_path / "land_2024")
    results = run_shards(tile, tmp_path / "x", mini, 3, blind, {}, window=8)
    assert states(results, "done") == [f"land_2024_y{y}_x{x}" for y in (0, 8) for x in (0, 8)]
    assert [len(result.tiles) for result in results] == [2, 1, 1]
    # who cannot open it lacks a part of it, and says so
    results = run_shards(tile, tmp_path / "y", mini, 3, blind, {shard: ["land"]}, window=8)
    assert states(results, "failed") == ["land_2024"]
    assert len(states(results, "done")) == 4 - (2 if shard == 0 else 1)


def test_a_path_that_is_not_there(tiles, mini, tmp_path, caplog):
    """One shard reports it; where it may have been a folder of tiles, all do."""
    single = [*(tiles / n for n in NAMES), tmp_path / "gone_2024"]
    results = [
        tf.embed_tiles(single, tmp_path / "x", mini, shard=(i, 2), on_error="skip")
        for i in range(2)
    ]
    assert states(results, "failed") == ["gone_2024"]
    assert "left to another shard" in caplog.text and "gone_2024" in caplog.text
    for given in (tmp_path / "gone", [tiles, tmp_path / "gone"], [tiles, "/a\0b"]):
        for i in range(2):
            result = tf.embed_tiles(given, tmp_path / "x", mini, shard=(i, 2), on_error="skip")
            assert result.count("failed") == 1


def test_one_source_that_cannot_be_listed_is_one_failure(tiles, mini, tmp_path):
    (tmp_path / "empty").mkdir()
    sources = [tmp_path / "empty", f"@{tmp_path}/no_list.txt", tiles]
    result = tf.embed_tiles(sources, tmp_path / "x", mini, on_error="skip")
    assert (result.count("failed"), result.count("done")) == (2, 4)
    assert {t.source for t in result.tiles if t.error}  # each says where it is
    found = tf.plan(sources, mini, calibrate=False, on_error="skip")
    assert (len(found), len(found.failed)) == (4, 2)


def test_what_a_plan_could_not_use_is_reported_by_one_shard(tiles, mini, tmp_path):
    plan = tf.plan(tiles, mini, calibrate=False)
    failed = [Failure("/a_2024", "a is broken"), Failure("/b_2024", "b is broken")]
    plan = type(plan)(plan.rows, failed, plan.options, plan.memory, None, plan.weights_bytes)
    results = [
        tf.embed_tiles(plan, tmp_path / "x", shard=(i, 2), on_error="skip", model=mini)
        for i in range(2)
    ]
    assert states(results, "failed") == ["a_2024", "b_2024"]
    assert [result.count("failed") for result in results] == [1, 1]
    assert states(results, "done") == NAMES


@pytest.mark.parametrize("crs", ["EPSG:3035", "EPSG:4326", None])
@pytest.mark.parametrize("options", [{}, {"executor": "local", "workers": 1}], ids=str)
def test_a_row_in_another_crs_is_one_failure(options, crs, tiles, mini, tmp_path):
    pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
    from dataclasses import replace

    plan = tf.plan(tiles, mini, calibrate=False, out="folder")
    rows = [replace(r, crs=crs) if r.name == "t10_2024" else r for r in plan.rows]
    plan = replace(plan, rows=rows)
    result = tf.embed_tiles(plan, tmp_path / "x.zarr", mini, on_error="skip", **options)
    assert states([result], "failed") == ["t10_2024"] and result.count("done") == 3


def test_a_tile_between_the_pixels_of_the_others_is_one_failure(tiles, mini, tmp_path):
    pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
    opened = [tf.open_tile(tiles / name) for name in NAMES]
    a, b, c, d, e, f = opened[2].transform
    opened[2] = tf.open_tile(opened[2], crs=opened[2].crs, transform=(a, b, c + 3.3, d, e, f))
    result = tf.embed_tiles(opened, tmp_path / "x.zarr", mini, on_error="skip")
    assert states([result], "failed") == ["t10_2024"] and result.count("done") == 3


def test_other_shards_tiles_are_not_read(tiles, mini, tmp_path, monkeypatch):
    """Placing them takes their headers; a fingerprint reads from every array."""
    read = []
    real = type(tf.open_tile(tiles / NAMES[0])).fingerprint
    monkeypatch.setattr(
        "tessera_fast.tile.Tile.fingerprint", lambda self: read.append(self.name) or real(self)
    )
    tf.embed_tiles(tiles, tmp_path / "x", mini, shard=(1, 4))
    assert set(read) == {"t01_2024"}


BAD_NUMBERS = {
    "workers": [10**30, 0, -1, True, 2.5, "2", 4097],
    "retries": [10**30, -1, True, 2.5, None],
    "threads": [10**30, 0, True, 2.5],
    "window": [10**30, 0, -4, True, 2.5],
    "shard": [(0, 0), (-1, 2), (2, 2), (0, 10**30), (0.0, 2), (False, True), (0,), 3, "0/2", [1]],
    "resources": [{"num_gpus": -1}, {"num_gpus": "1"}, {1: 1}, [1], {"num_cpus": float("nan")}],
}


@pytest.mark.parametrize(
    ("what", "value"), [(k, v) for k, some in BAD_NUMBERS.items() for v in some]
)
def test_numbers_that_make_no_sense(what, value, tiles, mini, tmp_path):
    executor = {"workers": "local", "resources": "ray"}.get(what, "process")
    with pytest.raises(tf.InputError, match=f"^{what}: expected"):
        tf.embed_tiles(tiles, tmp_path / "x", mini, executor=executor, **{what: value})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiles"]


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("workers", 10**30),
        ("workers", True),
        ("workers", 2.5),
        ("threads", 10**30),
        ("threads", 1.5),
        ("rate", 10**400),
        ("rate", True),
        ("rate", "9"),
    ],
)
def test_numbers_of_a_plan_that_make_no_sense(what, value, tiles):
    with pytest.raises(tf.InputError, match=f"^{what}: expected"):
        tf.plan(tiles, "v2-nano", calibrate=False, **{what: value})


def test_shards_of_a_plan_that_make_no_sense(tiles):
    plan = tf.plan(tiles, "v2-nano", rate=50.0)
    for call in (
        lambda: plan.shard(0, 10**30),
        lambda: plan.shard(True, 2),
        lambda: plan.shard(0.5, 2),
        lambda: plan.wall_seconds(0),
        lambda: plan.wall_seconds(10**30),
    ):
        with pytest.raises(tf.InputError, match="expected a whole number"):
            call()


@pytest.mark.parametrize("text", ["0", "1/-1", "1/1", "2/2", "/2", "0/٣", "0/" + "9" * 5000, "a/b"])
def test_the_shard_option(text, tiles, run, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run("embed", tiles, "-o", tmp_path / "x", "--shard", text)
    assert ended.value.code == 2
    assert "expected I/N" in capsys.readouterr().err


def test_reports_of_shards_add_up(blind, tiles, mini, run, tmp_path):
    """As a workflow would put them together."""
    masks = np.load(tiles / "t10_2024" / "masks.npy")
    masks[0, 0, 0] = 7
    np.save(tiles / "t10_2024" / "masks.npy", masks)
    told = []
    for i in range(2):
        report = tmp_path / f"report_{i}.json"
        run(
            "embed",
            tiles,
            "-o",
            tmp_path / "x",
            "--model",
            mini,
            "--shard",
            f"{i}/2",
            "--on-error",
            "skip",
            "--report",
            report,
        )
        told += json.loads(report.read_text())["tiles"]
    assert sorted(t["name"] for t in told) == NAMES
    assert [t["source"] for t in told if t["state"] == "failed"] == [str(tiles / "t10_2024")]
