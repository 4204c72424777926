"""`tf.probe` and `tessera-fast probe` as a whole: what they judge, draw, write and refuse."""

import json
import shutil

import numpy as np
import pytest

import tessera_fast as tf
from conftest import needs_zarr
from label_squares import squares
from places import SHARED
from probe_heads import Seen
from tessera_fast.errors import InputError, StoreError
from tessera_fast.probing.config import read_config
from tessera_fast.synthetic import synthetic_classes, synthetic_tile, write_tile

base = pytest.importorskip("sklearn.base", reason="a probe needs scikit-learn")
rasterio = pytest.importorskip("rasterio", reason="maps need rasterio")
FLANDERS = SHARED / "data" / "flanders_2019"
SIDE = 40


def field_marks(numbers: np.ndarray) -> np.ndarray:
    """Features that tell the field and nothing of its class, (H, W, 16)."""
    rng = np.random.default_rng(0)
    marks = rng.standard_normal((int(numbers.max()) + 1, 16))
    return (marks[numbers] + 0.01 * rng.standard_normal((*numbers.shape, 16))).astype(np.float32)


def test_a_split_by_field_shows_what_a_random_one_hides():
    """Features of the field alone are perfect by pixels and worth nothing by fields."""
    labels, numbers = squares()
    features = field_marks(numbers)
    kw = {"head": "knn", "per_class": None, "seeds": 8, "extent": "none"}
    leaks = tf.probe(features, labels, split="random", **kw)
    honest = tf.probe(features, labels, split="field", **kw)
    assert leaks.mean("embeddings", 0, "accuracy")[0] == 1
    assert honest.mean("embeddings", 0, "accuracy")[0] < 0.5
    assert "a random split leaks" in leaks.text() and "leaks" not in honest.text()
    assert honest.groups == 64 and leaks.groups == 1024


def test_no_field_is_mapped_by_a_head_that_saw_it():
    labels, _ = squares(16)
    labels[:, :2] = 0
    features = np.random.default_rng(1).standard_normal((16, 16, 3)).astype(np.float32)
    report = tf.probe(features, labels, head=Seen(), per_class=None, seeds=6)
    assert report.head == "Seen"
    (found,) = report.maps["embeddings"]
    assert set(np.unique(found)) <= {0, 2} and (found == 2).mean() > 0.9  # 0: always learned from
    labelled = tf.probe(features, labels, head=Seen(), per_class=None, seeds=6, extent="labelled")
    (found,) = labelled.maps["embeddings"]
    assert (found[:, :2] == 0).all() and (found[:, 2:] != 1).all() and (found == 2).any()


def test_every_kind_of_features_has_the_same_splits():
    """So the same features under another name have the same scores, and gain nothing."""
    labels, numbers = squares()
    features = field_marks(numbers)
    report = tf.probe(
        features,
        labels,
        beside={"again": features.copy()},
        per_class=(2, 4),
        seeds=3,
        extent="none",
        name="first",
    )
    for count in (2, 4):
        for metric in report.metrics:
            assert report.against("again", count, metric) == (0, 0, 0)
            assert report.mean("first", count, metric) == report.mean("again", count, metric)
    assert report.used == {2: [8, 8, 8], 4: [16, 16, 16]}
    constant = report.mean("constant", 4, "balanced_accuracy")
    assert constant == (0.25, 0)


def test_classes_are_named_joined_and_left_out():
    labels, _ = squares(24, classes=5)
    labels[0:4, 0:4] = 9  # one field
    features = np.random.default_rng(2).standard_normal((24, 24, 3)).astype(np.float32)
    report = tf.probe(
        features,
        labels,
        classes={1: "", 2: "hay", 3: "hay", 4: "corn", 9: "alone"},
        per_class=(3,),
        seeds=2,
    )
    assert [(c.code, c.name) for c in report.classes] == [(2, "hay"), (4, "corn"), (5, "5")]
    assert [(c.code, c.name, c.pixels, c.groups) for c in report.left_out] == [(9, "alone", 16, 1)]
    assert report.pixels == np.isin(labels, (2, 3, 4, 5)).sum()
    assert report.classes[0].pixels == np.isin(labels, (2, 3)).sum()
    assert report.scores["embeddings"].confusion.shape == (3, 3)
    assert "left out, as in one group: alone: 16 pixels, 1 field" in report.text()
    # the field that cannot be judged is mapped as any other pixel
    assert (report.maps["embeddings"][0][:4, :4] != 0).all()


def test_pixels_in_a_table_with_groups():
    rng = np.random.default_rng(4)
    values = rng.uniform(0, 50, 300)
    features = np.stack([values, rng.standard_normal(300)], axis=1).astype(np.float32)
    features[7] = np.nan
    values[9] = np.nan
    report = tf.probe(features, values, split=np.arange(300) // 20, per_class=(30,), seeds=4)
    assert (report.task, report.pixels, report.groups, report.maps) == ("regression", 298, 15, {})
    assert report.mean("embeddings", 30, "r2")[0] > 0.99
    constant = report.mean("constant", 30, "r2")[0]
    assert -0.5 < constant <= 0
    gain, _, wins = report.against("constant", 30, "rmse")
    assert gain > 10 and wins == 4


@pytest.fixture(scope="module")
def crops(tmp_path_factory, mini):
    """A tile, its crop types as a raster and its embeddings as an int8 and a float32 folder."""
    folder = tmp_path_factory.mktemp("crops")
    tile = write_tile(synthetic_tile(SIDE, SIDE, seed=5), folder / "tile_2024")
    labels = synthetic_classes(SIDE, SIDE, seed=5).astype(np.uint8) + 1
    labels[labels > 6] = 0
    with rasterio.open(tile / "roi.tiff") as roi:
        profile = roi.profile | {"dtype": "uint8", "nodata": 0}
    with rasterio.open(folder / "labels.tif", "w", **profile) as raster:
        raster.write(labels, 1)
    np.save(folder / "labels.npy", labels)
    for out, int8 in (("codes", True), ("values", False)):
        tf.embed_tiles([str(tile)], folder / out, model=mini, int8=int8)
    return folder


def scores(report: tf.ProbeReport) -> dict[str, list[float]]:
    name, count = report.name, report.counts[-1]
    return report.scores[name].values[count]


def test_sources_of_embeddings_and_labels_agree(crops):
    kw = {"per_class": (4,), "seeds": 2, "extent": "none"}
    expected = tf.probe(crops / "values", crops / "labels.tif", **kw)
    array = np.load(crops / "values" / "tile_2024.npy")
    for source in (crops / "values" / "tile_2024.npy", array, [array], {"tile_2024": array}):
        assert scores(tf.probe(source, np.load(crops / "labels.npy"), **kw)) == scores(expected)
    codes = np.load(crops / "codes" / "tile_2024.npy")
    pair = tf.QuantizedEmbeddings(codes, np.load(crops / "codes" / "tile_2024_scales.npy"))
    of_codes = tf.probe(crops / "codes", crops / "labels.npy", **kw)
    assert scores(tf.probe(pair, crops / "labels.npy", **kw)) == scores(of_codes)
    assert scores(tf.probe(crops / "codes" / "tile_2024.npy", crops / "labels.npy", **kw)) == (
        scores(of_codes)
    )


@needs_zarr
def test_a_store_of_two_tiles(crops, tmp_path, mini):
    """As the folder of the same codes; labels of a raster that covers both, or by tile."""
    tiles = list(tf.open_windows(crops / "tile_2024", side=SIDE // 2))
    for out, int8 in (("s.zarr", True), ("folder", True)):
        tf.embed_tiles(tiles, tmp_path / out, model=mini, int8=int8)
    kw = {"per_class": (4,), "seeds": 2, "split": "tile"}
    store = tf.probe(tmp_path / "s.zarr", crops / "labels.tif", tiles=tiles, **kw)
    folder = tf.probe(tmp_path / "folder", crops / "labels.tif", tiles=tiles, **kw)
    assert store.to_json()["features"] == folder.to_json()["features"] and store.groups == 4
    assert [i.name for i in store.images] == [t.name for t in tiles]
    assert len(store.maps["statistics"]) == 4
    labels = np.load(crops / "labels.npy")
    half = SIDE // 2
    corners = [(0, 0), (0, half), (half, 0), (half, half)]
    cut = {
        t.name: labels[r : r + half, c : c + half] for t, (r, c) in zip(tiles, corners, strict=True)
    }
    by_name = tf.probe(tmp_path / "folder", cut, **kw)
    assert scores(by_name) == scores(folder)
    report = store.save(tmp_path / "report")
    with rasterio.open(report / f"map_{tiles[3].name}.tif") as raster:
        assert raster.transform.c == tiles[3].transform[2]


def test_labels_on_another_grid(crops, tmp_path):
    """Of 20 m, shifted by 5 m: the value that a centre lies in."""
    with rasterio.open(crops / "labels.tif") as raster:
        left, top = raster.transform.c, raster.transform.f
    coarse = np.arange(1, 1 + 22 * 22, dtype=np.int32).reshape(22, 22)
    profile = {
        "driver": "GTiff",
        "height": 22,
        "width": 22,
        "count": 1,
        "dtype": "int32",
        "crs": "EPSG:32631",
        "nodata": -5,
    }
    profile["transform"] = rasterio.Affine(20, 0, left - 5, 0, -20, top + 5)
    coarse[3, 4] = -5
    with rasterio.open(tmp_path / "coarse.tif", "w", **profile) as raster:
        raster.write(coarse, 1)
    report = tf.probe(
        crops / "values",
        tmp_path / "coarse.tif",
        task="regression",
        per_class=(5,),
        seeds=1,
        split="block",
        extent="none",
    )
    centre = (np.arange(SIDE) * 10 + 10) // 20  # of the pixel, from the raster's edge
    expected = coarse[np.ix_(centre, centre)].astype(float)
    got = report.labels[0]
    known = np.isfinite(np.load(crops / "values" / "tile_2024.npy")).all(axis=-1)
    expected[expected == -5] = np.nan  # what the raster masks is no value
    assert np.isnan(expected).any()
    assert np.array_equal(got[known], expected[known], equal_nan=True)


def test_labels_in_another_crs(crops, tmp_path):
    """Columns of a thousandth of a degree, numbered from the west."""
    pyproj = pytest.importorskip("pyproj")
    west = 3.0135
    profile = {"driver": "GTiff", "height": 1, "width": 9, "count": 1, "dtype": "uint8"}
    profile |= {"crs": "EPSG:4326", "transform": rasterio.Affine(0.001, 0, west, 0, -1, 51.3)}
    with rasterio.open(tmp_path / "degrees.tif", "w", **profile) as raster:
        raster.write(np.arange(1, 10, dtype=np.uint8)[None, None])
    report = tf.probe(
        crops / "values",
        tmp_path / "degrees.tif",
        per_class=(5,),
        seeds=1,
        split="block",
        block=8,
        extent="none",
    )
    with rasterio.open(crops / "tile_2024" / "roi.tiff") as roi:
        left, top = roi.transform.c, roi.transform.f
    x, y = np.meshgrid(left + 5 + 10 * np.arange(SIDE), top - 5 - 10 * np.arange(SIDE))
    longitude, _ = pyproj.Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)
    expected = np.floor((longitude - west) / 0.001).astype(int) + 1
    assert set(np.unique(expected)) > {1, 3, 5}
    assert np.array_equal(report.labels[0][1:], expected[1:])


def test_baselines_of_a_tile(crops, mini):
    kw = {"per_class": (4,), "seeds": 2, "tiles": crops / "tile_2024"}
    report = tf.probe(crops / "values", crops / "labels.tif", model=mini, **kw)
    # the fixture's model has no trained weights: another untrained one would say nothing more
    assert report.name == "v2-mini (untrained)"
    assert report.notes == (
        "untrained: these embeddings are",
        f"{report.name}: labelled pixels without data, which all rows leave out: 1",
    )
    assert report.dims == {report.name: 32, "statistics": 75, "months": 180}
    array = np.load(crops / "values" / "tile_2024.npy")
    beside = tf.probe(array, crops / "labels.npy", model=mini, name="ours", **kw)
    assert list(beside.scores) == ["ours", "untrained", "statistics", "months", "constant"]
    assert beside.scores["untrained"].values == beside.scores["ours"].values  # of the same seed
    assert set(beside.rankme) == {"ours", "untrained"}
    assert list(beside.maps) == ["ours", "untrained", "statistics"]
    without = tf.probe(array, crops / "labels.npy", per_class=(4,), seeds=1, extent="none")
    assert without.notes[0] == "untrained, statistics, months: not computed; give the tiles"


def test_the_command_writes_a_folder(crops, tmp_path, run):
    done = run(
        "probe",
        crops / "values",
        "--labels",
        crops / "labels.tif",
        "--tiles",
        crops / "tile_2024",
        "--per-class",
        "2,4",
        "--seeds",
        3,
        "--classes",
        "1=winter wheat,6=grass",
        "-o",
        tmp_path / "out",
    )
    assert done.code == 0, done.err
    assert "4 labelled pixels a class" in done.out and "statistics (75)" in done.out
    there = {p.name for p in (tmp_path / "out").iterdir()}
    assert there == {
        "report.txt",
        "report.json",
        "scores.png",
        "confusion.png",
        "map_tile_2024.png",
        "map_tile_2024.tif",
    }
    assert (tmp_path / "out" / "report.txt").read_text() in done.out
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(found["features"]["statistics"]["scores"]["4"]["macro_f1"]) == 3
    assert sum(map(sum, found["features"]["months"]["confusion"])) > 0
    report = tf.probe(
        crops / "values", crops / "labels.tif", tiles=crops / "tile_2024", per_class=(2, 4), seeds=3
    )
    with rasterio.open(tmp_path / "out" / "map_tile_2024.tif") as tif:
        assert np.array_equal(tif.read(1), report.maps[report.name][0])
        with rasterio.open(crops / "tile_2024" / "roi.tiff") as roi:
            assert (tif.crs, tif.transform) == (roi.crs, roi.transform)
        assert (tif.nodata, tif.dtypes[0], tif.tags()["CLASS_6"]) == (0, "uint8", "grass")
    again = run(
        "probe",
        crops / "values",
        "--labels",
        crops / "labels.tif",
        "-o",
        tmp_path / "out",
        "--seeds",
        1,
    )
    assert again.code == 1 and "exists" in again.err


@pytest.mark.skipif(not FLANDERS.exists(), reason=f"{FLANDERS} is not there")
def test_fields_of_a_real_tile():
    """Crop types of Flanders by raw features: split by field they are no easy task."""
    labels = np.load(FLANDERS / "label_ct.npy")
    tile = tf.open_tile(FLANDERS)
    from tessera_fast.probing import raw

    features = raw.statistics(tile).read(0, 64)
    report = tf.probe(features, labels, head="knn", per_class=None, seeds=5, extent="none")
    assert [(c.code, c.groups) for c in report.classes] == [(1110, 4), (1200, 4), (9120, 5)]
    assert [c.code for c in report.left_out] == [1500, 1510, 5100, 8100]
    alone = dict.fromkeys((1500, 1510, 5100, 8100), "")
    by_pixel = tf.probe(
        features,
        labels,
        head="knn",
        per_class=None,
        seeds=5,
        split="random",
        classes=alone,
        extent="none",
    )
    score = [r.mean("embeddings", 0, "balanced_accuracy")[0] for r in (report, by_pixel)]
    assert 0.5 < score[0] < score[1] - 0.1


IMAGE = np.random.default_rng(5).standard_normal((8, 8, 4)).astype(np.float32)
CLASSES = squares(8, 2)[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"embeddings": IMAGE.astype(np.int8)}, r"expected float \(H, W, E\).*got int8"),
        ({"labels": CLASSES[:-1]}, r"expected \(8, 8\) numbers.*\(7, 8\)"),
        ({"labels": CLASSES + 0.5, "task": "classification"}, "whole numbers"),
        ({"labels": np.ones((8, 8), int)}, "at least two classes.*1 in 1"),
        ({"labels": {"other": CLASSES}}, "expected those of 'tile' too, got other"),
        ({"labels": CLASSES * 1.0, "split": "tile"}, "at least two groups, got 1"),
        ({"head": "ridge"}, "classification: expected logistic, knn, mlp, forest, got 'ridge'"),
        ({"head": 3}, "or a scikit-learn estimator, got 3"),
        ({"split": "fields"}, "expected field, tile, block, random, or groups, got 'fields'"),
        ({"task": "map"}, "expected classification, regression"),
        ({"per_class": (0, 1)}, "expected positive numbers"),
        ({"seeds": 0}, "seeds: expected a positive number, got 0"),
        ({"extent": "some"}, "expected all, labelled, none"),
        ({"baselines": ("random",)}, "expected untrained, statistics, months, got 'random'"),
        ({"beside": {"months": IMAGE}}, "names that are not taken, got 'months'"),
        ({"beside": {"b": IMAGE[:4]}}, r"expected images of \[\(8, 8\)\] pixels"),
    ],
)
def test_what_does_not_belong_together_is_named(change, says):
    given = {"embeddings": IMAGE, "labels": CLASSES, "seeds": 1, **change}
    with pytest.raises(InputError, match=says):
        tf.probe(given.pop("embeddings"), given.pop("labels"), **given)


def test_tiles_have_to_match(crops):
    image = np.load(crops / "values" / "tile_2024.npy")
    with pytest.raises(InputError, match="expected 39 x 40 pixels as the embeddings have, got 40"):
        tf.probe(image[1:], np.load(crops / "labels.npy")[1:], tiles=crops / "tile_2024")
    two = {"tile_2024": image, "b": image}
    labels = np.load(crops / "labels.npy")
    with pytest.raises(InputError, match="expected that of embeddings 'b', got tile_2024"):
        tf.probe(two, {"tile_2024": labels, "b": labels}, tiles=crops / "tile_2024")


def test_configs_are_read_and_checked(tmp_path, run):
    path = tmp_path / "c.toml"
    path.write_text('embeddings = "e"\nlabels = {a = "a.tif"}\nsplit = "groups.npy"\nhead = "knn"')
    here = str(tmp_path)
    assert read_config(path) == {
        "embeddings": f"{here}/e",
        "labels": {"a": f"{here}/a.tif"},
        "split": f"{here}/groups.npy",
        "head": "knn",
    }
    for text, says in (
        ("embeddings = 'e'\nsead = 3", "got 'sead'"),
        ("labels = 'l.npy'", "expected embeddings"),
        ("a = ", "expected a TOML file"),
        ("embeddings = 'e'\ntiles = ['none_*']", "none_.* to be there, got nothing"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            read_config(path)
    path.write_text("embeddings = 'e'")
    done = run("probe", path)
    assert done.code == 1 and "expected --labels FILE" in done.err


def test_a_report_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    report = tf.probe(IMAGE, CLASSES, per_class=(2,), seeds=1)
    monkeypatch.setattr("tessera_fast.probing.figures.confusion", lambda r: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    report.save(tmp_path / "out")
    with pytest.raises(StoreError, match="exists"):
        report.save(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
