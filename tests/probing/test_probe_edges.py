"""Probes of odd data: what is not known is said and does not end them; what is wrong is refused."""

import dataclasses
import datetime
import json
import sys

import numpy as np
import pytest

import tessera_fast as tf
from oracle import assert_op
from tessera_fast.errors import InputError, StoreError
from tessera_fast.probing import figures, raw
from tessera_fast.probing.beside import Asked, all_features
from tessera_fast.probing.canvas import Canvas
from tessera_fast.probing.config import read_config
from tessera_fast.probing.images import Features, Image
from tessera_fast.synthetic import synthetic_tile, write_tile

pytest.importorskip("sklearn", reason="a probe needs scikit-learn")
RNG = np.random.default_rng(12)
LABELS = np.kron((np.arange(16).reshape(4, 4) * 5 // 2) % 4 + 1, np.ones((4, 4), int))
IMAGE = RNG.standard_normal((16, 16, 4)).astype(np.float32)
BLOCKS = {"split": "block", "block": 4, "per_class": (4,)}


@pytest.mark.parametrize("counts", [(2, 4), (4,)])
def test_r2_of_a_constant_half_is_none(counts, tmp_path):
    """Four groups, of which three are constant: with some seeds they alone are judged."""
    values = RNG.uniform(0, 9, (16, 16))
    values[:12] = 3
    groups = np.repeat(np.arange(4), 4)[:, None].repeat(16, axis=1)
    kw = {"split": groups, "per_class": counts, "seeds": 12}
    report = tf.probe(IMAGE, values, **kw)
    seeds = np.array(report.scores["constant"].values[counts[-1]]["r2"])
    known = seeds[np.isfinite(seeds)]
    assert 0 < len(known) < 12
    mean, spread = report.mean("constant", counts[-1], "r2")
    assert_op(np.array([mean, spread]), np.array([known.mean(), known.std(ddof=1)]))
    assert f"r2 is of the {len(known)} of 12 seeds" in report.text() and "nan" not in report.text()
    written = (report.save(tmp_path / "out") / "report.json").read_text()
    assert "NaN" not in written
    found = json.loads(written)["features"]["constant"]["scores"][str(counts[-1])]["r2"]
    assert found.count(None) == 12 - len(known)


def test_no_seed_at_all_may_have_an_r2(tmp_path):
    values = np.full((16, 16), 3.0)
    report = tf.probe(IMAGE, values, seeds=3, **{**BLOCKS, "per_class": (2, 4)})
    assert np.isnan(report.mean("embeddings", 4, "r2")[0])
    assert report.mean("embeddings", 4, "rmse")[0] == 0
    report.save(tmp_path / "out")


@pytest.mark.parametrize("value", [0, 1, 5e8])
@pytest.mark.parametrize("counts", [(2, 4), (4,)])
def test_embeddings_that_are_all_equal(value, counts, tmp_path):
    """One class is said of everything; RankMe of zeros is none."""
    image = np.full((16, 16, 4), value, np.float32)
    report = tf.probe(image, LABELS, seeds=2, **{**BLOCKS, "per_class": counts})
    written = json.loads((report.save(tmp_path / "out") / "report.json").read_text())
    assert written["rankme"]["embeddings"] == (None if value == 0 else report.rankme["embeddings"])
    assert ("embeddings none" in report.text()) == (value == 0)


def test_one_feature_has_no_rankme(tmp_path):
    report = tf.probe(IMAGE[..., :1], LABELS, seeds=1, **BLOCKS)
    assert report.to_json()["rankme"] == {"embeddings": None}
    report.save(tmp_path / "out")


@pytest.mark.parametrize(
    "ends", [(0.5, 0.5), (0, 0), (-0.5, -3), (1e9, 1e9), (np.nan, 1), (0, 1), (-2e-7, 0)]
)
def test_an_axis_has_a_length(ends):
    low, high, step = figures._range(*map(float, ends))
    assert low < high and step > 0 and (high - low) / step < 20


def test_nan_is_not_drawn():
    canvas = Canvas(20, 20)
    canvas.line([(np.nan, 3)], (0, 0, 0))
    assert (canvas.image == Canvas(20, 20).image).all()
    canvas.line([(2, 3), (np.nan, 3), (15, 3)], (0, 0, 0))
    assert (canvas.image[3, 2:15] == 0).all()


def test_every_row_has_its_own_colour():
    others = {str(i): IMAGE for i in range(7)}
    report = tf.probe(IMAGE, LABELS, beside=others, seeds=1, extent="none", **BLOCKS)
    assert len({figures._ink(report, name) for name in report.scores}) == 9


def test_a_deviation_is_that_of_a_sample():
    report = tf.probe(IMAGE, LABELS, beside={"b": -IMAGE[::-1]}, seeds=5, extent="none", **BLOCKS)
    seeds = [np.array(report.scores[n].values[4]["accuracy"]) for n in ("embeddings", "b")]
    mean, spread = report.mean("embeddings", 4, "accuracy")
    assert_op(np.array([mean, spread]), np.array([seeds[0].mean(), seeds[0].std(ddof=1)]))
    gain, spread, wins = report.against("b", 4, "accuracy")
    gains = seeds[0] - seeds[1]
    assert_op(np.array([gain, spread]), np.array([gains.mean(), gains.std(ddof=1)]))
    assert wins == (gains > 0).sum() and "±" in report.text()


def test_one_seed_has_no_deviation(tmp_path):
    for counts in ((2, 4), (4,)):
        report = tf.probe(IMAGE, LABELS, seeds=1, **{**BLOCKS, "per_class": counts})
        assert "±" not in report.text() and "nan" not in report.text()
        report.save(tmp_path / str(len(counts)))


def test_a_head_of_the_other_task_is_refused():
    linear = pytest.importorskip("sklearn.linear_model")
    values = LABELS * 1.5
    for labels, head in ((LABELS, linear.Ridge()), (values, linear.LogisticRegression())):
        name = type(head).__name__
        with pytest.raises(InputError, match=f"expected an estimator for .*, got {name}"):
            tf.probe(IMAGE, labels, head=head, seeds=1, **BLOCKS)
    with pytest.raises(InputError, match="or a scikit-learn estimator, got"):
        tf.probe(IMAGE, values, head=linear.Ridge, seeds=1, **BLOCKS)
    report = tf.probe(IMAGE, values, head=linear.Ridge(), seeds=1, extent="none", **BLOCKS)
    assert report.head == "Ridge"


def test_one_number_of_labels_and_names_by_code():
    kw = {k: v for k, v in BLOCKS.items() if k != "per_class"}
    report = tf.probe(IMAGE, LABELS, per_class=3, seeds=1, extent="none", **kw)
    assert report.counts == (3,)
    for bad in (0, (), "all"):
        with pytest.raises(InputError, match="per_class: expected positive numbers"):
            tf.probe(IMAGE, LABELS, per_class=bad, seeds=1, **kw)
    with pytest.raises(InputError, match=r"classes: expected names by code.*got \{'wheat': 1\}"):
        tf.probe(IMAGE, LABELS, classes={"wheat": 1}, seeds=1, **BLOCKS)


# ---- folders and configs


def test_only_a_report_is_replaced(tmp_path):
    report = tf.probe(IMAGE, LABELS, seeds=1, extent="none", **BLOCKS)
    data = tmp_path / "data"
    data.mkdir()
    (data / "precious").write_text("x")
    with pytest.raises(StoreError, match="expected a report"):
        report.save(data, overwrite=True)
    with pytest.raises(StoreError, match="expected a report"):
        report.save(data / "precious", overwrite=True)
    assert (data / "precious").read_text() == "x"
    report.save(tmp_path / "out")
    (tmp_path / "out" / "old").write_text("x")
    report.save(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "old").exists()


def test_a_folder_that_exists_is_refused_before_the_run(tmp_path, run, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the probe ran")

    monkeypatch.setattr("tessera_fast.probing.probe", never)
    command = ("probe", tmp_path / "e.npy", "--labels", tmp_path / "l.npy", "-o", tmp_path)
    done = run(*command)
    assert done.code == 1 and "exists; give overwrite" in done.err
    done = run(*command, "--overwrite")
    assert done.code == 1 and "expected a report" in done.err


def test_without_rasterio_a_map_is_left_out_and_said(tmp_path, monkeypatch):
    """The images of the report get a place here, as those of a store have."""
    from tessera_fast.probing import few_labels

    opened = few_labels.open_features

    def placed(source):
        found = opened(source)
        place = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)}
        return dataclasses.replace(
            found, images=[dataclasses.replace(i, **place) for i in found.images]
        )

    monkeypatch.setattr(few_labels, "open_features", placed)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    report = tf.probe(IMAGE, LABELS, seeds=1, **BLOCKS)
    assert [n for n in report.notes if "GeoTIFF" in n] == [
        "maps are not written as GeoTIFF: pip install 'tessera_fast[geo]'"
    ]
    there = {p.name for p in report.save(tmp_path / "out").iterdir()}
    assert "map_tile.png" in there and "map_tile.tif" not in there


def test_paths_of_a_config(tmp_path):
    path = tmp_path / "c.toml"
    for name in ("tile_1", "tile_2"):
        (tmp_path / name).mkdir()
    url = "https://example.org/l.tif"
    path.write_text(f'embeddings = "e"\nlabels = "{url}"\ntiles = "tile_*"')
    found = read_config(path)
    assert found["labels"] == url
    assert found["tiles"] == [str(tmp_path / "tile_1"), str(tmp_path / "tile_2")]
    path.write_text('embeddings = "e"\ntiles = ["@list.txt", "s3://b/a_2024", "tile_2"]')
    assert read_config(path)["tiles"] == [
        f"@{tmp_path / 'list.txt'}",
        "s3://b/a_2024",
        str(tmp_path / "tile_2"),
    ]


# ---- tiles as they were embedded


@pytest.fixture(scope="module")
def crop(tmp_path_factory):
    folder = write_tile(synthetic_tile(12, 12, seed=5), tmp_path_factory.mktemp("t") / "tile_2024")
    return folder, Features([Image("tile_2024", 12, 12, 4, lambda a, b: IMAGE[a:b, :12])], {})


def asked(tiles, **opening) -> Asked:
    return Asked({}, ("statistics",), tiles, None, opening, None)


def test_baselines_are_of_the_tiles_as_they_were_embedded(crop):
    folder, ours = crop
    found = []
    for opening in ({}, {"s2_offset": 500}):
        kinds, _ = all_features(ours, "ours", asked(folder, **opening))
        found.append(kinds["statistics"][0].read(0, 12))
        expected = raw.statistics(tf.open_tile(folder, **opening)).read(0, 12)
        assert np.array_equal(found[-1], expected, equal_nan=True)
    assert not np.array_equal(*found, equal_nan=True)


def test_the_period_of_the_embeddings_is_that_of_the_tiles(crop):
    folder, ours = crop
    recorded = dataclasses.replace(ours, provenance={"period": "07-01/06-30"})
    with pytest.raises(InputError, match=r"period of the embeddings, 07-01/06-30, got a calendar"):
        all_features(recorded, "ours", asked(folder))
    days = (datetime.date(2024, 7, 1), datetime.date(2025, 6, 30))
    tile = dataclasses.replace(tf.open_tile(folder), period=days)
    assert "statistics" in all_features(recorded, "ours", asked(tile))[0]


def test_options_of_tiles_reach_the_probe(tmp_path, run, monkeypatch):
    seen = {}

    def note(embeddings, labels, **options):
        seen.update(options)
        raise InputError("that is enough")

    monkeypatch.setattr("tessera_fast.probing.probe", note)
    path = tmp_path / "c.toml"
    path.write_text('embeddings = "e"\nlabels = "l.npy"\nperiod = "2024"\ns2_offset = "present"')
    given = {"period": "2024", "s2_offset": "present"}
    run("probe", path)
    assert seen == given
    run("probe", path, "--s2-offset", 400, "--s1-units", "db", "--year", 2023)
    assert seen == given | {"s2_offset": 400, "s1_units": "db", "year": 2023}


def test_two_tiles_of_one_name_are_refused(crop):
    folder, ours = crop
    tile = tf.open_tile(folder)
    with pytest.raises(InputError, match="one of each name, got two of 'tile_2024'"):
        raw.matched([tile, tile], ours.images)
    years = [dataclasses.replace(ours.images[0], name=f"utm31/{y}/tile_2024") for y in (1, 2)]
    with pytest.raises(InputError, match="one image a tile, got utm31/1/tile_2024, utm31/2"):
        raw.matched([tile], years)


def test_embeddings_without_data_at_the_labels_are_refused():
    with pytest.raises(InputError, match="other: expected data at labelled pixels, got none"):
        tf.probe(IMAGE, LABELS, beside={"other": IMAGE * np.nan}, seeds=1, **BLOCKS)
