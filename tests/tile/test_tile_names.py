"""What a tile is called: by the path that was given. Two tiles of one name are never mixed."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.jobs import tasks as job_tasks
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.tile.sources import name_of, source_path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two tiles that differ, both in folders called dpixel, and links with names of their own."""
    root = tmp_path_factory.mktemp("sites")
    for seed, name in enumerate("AB"):
        write_tile(synthetic_tile(6, 6, seed=seed), root / name / "dpixel")
    (root / "links").mkdir()
    (root / "links" / "farm_2023").symlink_to(root / "A" / "dpixel")
    (root / "links" / "farm_2024").symlink_to(root / "B" / "dpixel")
    return root


def test_a_link_gives_the_tile_its_name_and_year(site):
    for year in (2023, 2024):
        for given in (
            site / "links" / f"farm_{year}",
            f"{site}/links/farm_{year}/",
            f"{site}/links/./farm_{year}/.",
        ):
            tile = tf.open_tile(given)
            assert (tile.name, tile.year) == (f"farm_{year}", year)
            assert tile.source == f"{os.path.realpath(site)}/links/farm_{year}"
    same = tf.open_tile(site / "A" / "dpixel")
    assert same.fingerprint() == tf.open_tile(site / "links" / "farm_2023").fingerprint()


def test_dots_stand_for_the_real_name(site, monkeypatch):
    monkeypatch.chdir(site / "links" / "farm_2024")
    assert tf.open_tile(".").name == tf.open_tile("./").name == "dpixel"
    assert tf.open_tile("../dpixel").name == "dpixel"
    assert name_of("..") == "B" and name_of("../../links/farm_2023") == "farm_2023"
    # ".." behind a link is the folder that the target lies in
    assert name_of(f"{site}/links/farm_2023/..") == "A"
    assert source_path(f"{site}/links/farm_2023/..") == os.path.realpath(site / "A")


def test_a_link_to_a_cube(tmp_path):
    (tmp_path / "data_2019.zarr").mkdir()
    (tmp_path / "farm_2020.zarr").symlink_to(tmp_path / "data_2019.zarr")
    assert name_of(tmp_path / "farm_2020.zarr") == name_of(f"{tmp_path}/farm_2020.zarr/")
    assert name_of(tmp_path / "farm_2020.zarr") == "farm_2020"


def test_urls_are_told_without_secrets():
    assert source_path("s3://user:word@host/a_2024?X-Amz-Signature=1") == "s3://host/a_2024"
    assert source_path("memory://tiles/a@b_2024") == "memory://tiles/a@b_2024"
    assert source_path({"bands": 1}) is None


def test_a_path_behind_a_link_is_what_the_system_takes_it_for(site, mini, tmp_path):
    """links/farm_2023/../dpixel is in A, whatever lies beside the link."""
    given = f"{site}/links/farm_2023/../dpixel"
    tf.embed_tiles(given, tmp_path / "x", mini)
    expected = tf.embed(site / "A" / "dpixel", mini)
    np.testing.assert_array_equal(np.load(tmp_path / "x" / "dpixel.npy"), expected)
    plan = tf.plan(given, mini, calibrate=False)
    assert plan[0].fingerprint == tf.open_tile(site / "A" / "dpixel").fingerprint()


@pytest.mark.parametrize("executor", ["process", "local"])
def test_links_are_two_tiles_of_one_output(executor, site, mini, tmp_path):
    result = tf.embed_tiles(site / "links", tmp_path / "x", mini, executor=executor)
    assert [(t.name, t.year) for t in sorted(result.tiles, key=lambda t: t.name)] == [
        ("farm_2023", 2023),
        ("farm_2024", 2024),
    ]
    for link, name in (("farm_2023", "A"), ("farm_2024", "B")):
        expected = tf.embed(site / name / "dpixel", mini)
        np.testing.assert_array_equal(np.load(tmp_path / "x" / f"{link}.npy"), expected)


def test_keys_and_reports_say_where_a_tile_is(site, mini, tmp_path):
    keys = []
    work = job_tasks.JobTasks(
        site / "links", tmp_path / "x", {}, None, False, job_tasks.checked_shard(None)
    )
    work.open(lambda report: pytest.fail(str(report)))
    keys = work.keys
    place = f"{os.path.realpath(site)}/links/farm_2023"
    assert keys[0].source == place and keys[0] == job_tasks.tile_key(
        tf.open_tile(site / "A" / "dpixel", name="farm_2023", year=2023), georeferenced=False
    )  # another source, the same tile
    arrays = {
        "bands": np.ones((1, 2, 2, 10), np.uint16),
        "masks": np.ones((1, 2, 2), np.uint8),
        "doys": np.ones(1, np.int32),
    }
    tile = tf.open_tile(arrays, allow_missing_s1=True)
    assert job_tasks.tile_key(tile, georeferenced=False).source is None
    plan = tf.plan(site / "links", mini, calibrate=False)
    result = tf.embed_tiles(plan, tmp_path / "x", mini)
    assert {t.source for t in result.tiles} == {place, place.replace("2023", "2024")}
    (window, *_) = tf.embed_tiles(site / "links", tmp_path / "y", mini, window=4).tiles
    assert window.source == place


@pytest.mark.parametrize("skip", ["raise", "skip"])
def test_the_second_of_one_name_in_another_run_fails_alone(skip, site, mini, tmp_path):
    """The first result stays as it is."""
    tf.embed_tiles(site / "A" / "dpixel", tmp_path / "x", mini)
    before = (tmp_path / "x" / "dpixel.npy").read_bytes()
    other = shutil.copytree(site / "B" / "dpixel", tmp_path / "B" / "dpixel")
    np.save(other / "bands.npy", np.load(other / "bands.npy")[:, :5])
    np.save(other / "masks.npy", np.load(other / "masks.npy")[:, :5])
    for name in ("sar_ascending", "sar_descending"):
        np.save(other / f"{name}.npy", np.load(other / f"{name}.npy")[:, :5])
    (other / "roi.tiff").unlink()
    sources = [other, site / "links" / "farm_2024"]
    if skip == "raise":
        with pytest.raises(tf.StoreError, match="two tiles have the name 'dpixel'") as caught:
            tf.embed_tiles(sources, tmp_path / "x", mini)
        assert all(f"{site}/dpixel" in str(caught.value) for site in "AB")
    else:
        result = tf.embed_tiles(sources, tmp_path / "x", mini, on_error="skip")
        assert {t.name: t.state for t in result.tiles} == {"dpixel": "failed", "farm_2024": "done"}
    assert (tmp_path / "x" / "dpixel.npy").read_bytes() == before


def pair(site, root, first, second):
    """Copies of the two tiles under two names, in folders of their own."""
    names = zip("12", (first, second), "AB", strict=True)
    return [shutil.copytree(site / old / "dpixel", root / n / name) for n, name, old in names]


@pytest.mark.parametrize("out", ["x.zarr", "x"])
@pytest.mark.parametrize(
    "names",
    [
        ("t_2024", "t_2024"),
        tuple(unicodedata.normalize(form, "f\u00e9_2024") for form in ("NFC", "NFD")),
    ],
    ids=["same", "spelled in two ways"],
)
def test_two_of_one_name_are_refused_and_both_are_named(out, names, site, mini, tmp_path):
    if out == "x.zarr":
        pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
    sources = pair(site, tmp_path, *names)
    for given in (sources, tf.plan(sources, mini, calibrate=False, on_error="skip")):
        if not isinstance(given, list) and len(given) < 2:
            assert "1" in given.failed[0].message  # the plan has refused the second
            continue
        with pytest.raises(tf.StoreError, match="would both write") as caught:
            tf.embed_tiles(given, tmp_path / out, mini, on_error="skip")
        assert all(str(source) in str(caught.value) for source in sources)
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("insensitive", [False, True])
def test_names_that_differ_in_case(insensitive, site, mini, tmp_path, monkeypatch):
    """They are two tiles where the file system tells them apart."""
    sources = pair(site, tmp_path, "Farm_2024", "farm_2024")
    assert not job_tasks._ignores_case(tmp_path) or (tmp_path / "1" / "FARM_2024").exists()
    monkeypatch.setattr(job_tasks, "_ignores_case", lambda folder: insensitive)
    if not insensitive:
        assert tf.embed_tiles(sources, tmp_path / "x", mini).count("done") == 2
        return
    with pytest.raises(tf.StoreError, match="would both write") as caught:
        tf.embed_tiles(sources, tmp_path / "x", mini)
    assert all(str(source) in str(caught.value) for source in sources)


def test_a_tile_called_as_the_scales_of_another(site, mini, tmp_path):
    sources = pair(site, tmp_path, "a", "a_scales")
    assert tf.embed_tiles(sources, tmp_path / "x", mini).count("done") == 2  # no scales
    with pytest.raises(tf.StoreError, match=r"would both write 'a_scales\.npy'") as caught:
        tf.embed_tiles(sources, tmp_path / "y", mini, int8=True)
    assert all(str(source) in str(caught.value) for source in sources)
    tf.embed_tiles(sources[:1], tmp_path / "z", mini, int8=True)  # in two runs
    with pytest.raises(tf.StoreError, match=r"a_scales\.npy"):
        tf.embed_tiles(sources[1:], tmp_path / "z", mini, int8=True)


def test_a_name_that_no_file_can_have_is_one_failure(site, mini, tmp_path):
    long = shutil.copytree(site / "A" / "dpixel", tmp_path / ("n" * 245 + "_2024"))
    result = tf.embed_tiles([long, site / "links"], tmp_path / "x", mini, on_error="skip")
    assert (result.count("failed"), result.count("done")) == (1, 2)
    (error,) = [str(t.error) for t in result.tiles if t.error]
    assert "expected a name in UTF-8 that a file can have" in error


def test_names_that_are_no_utf_8(site, mini, run, tmp_path):
    """A tile cannot be called so; a folder above it may be."""
    odd = os.fsencode(tmp_path) + b"/f\xe4rm_2024"
    try:
        shutil.copytree(os.fsencode(site / "A"), odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    shutil.copytree(os.fsencode(site / "A" / "dpixel"), odd + b"/t\xfc_2024")
    report = tmp_path / "report.json"
    result = run(
        "embed",
        os.fsdecode(odd),
        "-o",
        tmp_path / "x",
        "--model",
        mini,
        "--on-error",
        "skip",
        "--report",
        report,
    )
    assert result.code == 3 and "t\\udcfc_2024: failed" in result.err
    assert "expected a name in UTF-8" in result.err and "dpixel: 36 px" in result.out
    told = {t["name"]: t["source"] for t in json.loads(report.read_text())["tiles"]}
    assert told["dpixel"].endswith("/f\\udce4rm_2024/dpixel")
    assert run(
        "embed", os.fsdecode(odd + b"/dpixel"), "-o", tmp_path / "x", "--model", mini
    ).out.startswith("dpixel: already done")
