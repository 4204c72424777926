"""What a probe may not learn from and judge at once: fields, places, groups, pixels, labels."""

import dataclasses

import numpy as np
import pytest

import tessera_fast as tf
from probe_heads import Seen
from tessera_fast.errors import InputError
from tessera_fast.probing import splits
from tessera_fast.probing.images import Image
from tessera_fast.probing.places import places_of
from tessera_fast.synthetic import synthetic_tile

base = pytest.importorskip("sklearn.base", reason="a probe needs scikit-learn")
rasterio = pytest.importorskip("rasterio", reason="labels of a raster need rasterio")
RNG = np.random.default_rng(11)
QUICK = {"per_class": (4,), "seeds": 2, "extent": "none"}


def features(shape: tuple[int, int], dims: int = 4) -> np.ndarray:
    return RNG.standard_normal((*shape, dims)).astype(np.float32)


# ---- fields


def test_values_that_differ_from_pixel_to_pixel_have_no_fields():
    values = RNG.uniform(0, 30, (24, 24)).astype(np.float32)
    few = RNG.integers(0, 40, (24, 24)).astype(np.float32)  # few values, but scattered
    for labels in (values, few):
        with pytest.raises(InputError, match=r"differ from pixel to pixel.*by block or tile"):
            tf.probe(features((24, 24)), labels, **QUICK)
        assert tf.probe(features((24, 24)), labels, split="block", block=6, **QUICK).groups == 16
    stands = np.kron(RNG.permutation(64).reshape(8, 8) + 0.5, np.ones((3, 3)))
    assert tf.probe(features((24, 24)), stands, **QUICK).groups == 64


def test_a_field_with_a_gap_in_the_embeddings_is_one():
    labels = np.repeat([1, 2, 3, 1, 2, 3], 2)[:, None].repeat(9, axis=1)  # 6 fields, 2 x 9 each
    image = features((12, 9))
    image[:, 4] = np.nan
    report = tf.probe(image, labels, **QUICK)
    assert (report.groups, report.pixels) == (6, 12 * 8)


# ---- places


def placed(name: str, x: float = 0, y: float = 0, side: int = 8, crs: str = "EPSG:32631") -> Image:
    place = (10.0, 0.0, 500_000 + 10 * x, 0.0, -10.0, 5_700_000 - 10 * y)
    array = features((side, side))
    return Image(name, side, side, 4, lambda a, b: array[a:b], crs, place)


def test_images_of_the_same_pixels_are_one_place():
    images = [placed("2023"), placed("b", 8), placed("2024"), placed("c", 30)]
    bare = [dataclasses.replace(placed("d"), crs=None, transform=None)] * 2
    assert places_of([*images, *bare]) == ([0, 1, 0, 2, 3, 4], True)
    assert places_of([images[0], *images[2:], *bare]) == ([0, 0, 1, 2, 3], False)
    for other in (placed("e", 7), placed("e", 7, -7), placed("e", side=9), placed("e", 0.5)):
        with pytest.raises(InputError, match=r"'2023' and 'e'.*overlap.*groups as split"):
            places_of([images[0], other])
    assert places_of([images[0], placed("e", 8, -8)]) == ([0, 1], True)


def test_places_of_two_zones_are_compared():
    warp = pytest.importorskip("rasterio.warp")
    images = [placed("a", 20_000, side=40), placed("far", 0, side=40, crs="EPSG:32632")]
    assert places_of(images) == ([0, 1], False)
    (x,), (y,) = warp.transform("EPSG:32631", "EPSG:32632", [700_150.0], [5_699_900.0])
    same = placed("b", (x - 500_000) / 10, (5_700_000 - y) / 10, side=40, crs="EPSG:32632")
    with pytest.raises(InputError, match=r"'a' and 'b'.*overlap"):
        places_of([images[0], same])


def test_fields_of_two_years_with_a_common_pixel_are_one():
    first = np.array([[1, 1, 0, 2, 2], [1, 1, 0, 2, 2]])
    second = np.array([[0, 3, 3, 3, 0], [0, 0, 0, 0, 0]])  # over both
    third = np.array([[4, 0, 0, 0, 5], [4, 0, 0, 0, 0]])
    apart = np.array([[1, 0, 0, 0, 2], [1, 0, 0, 0, 2]])
    years = [first, second, third, apart]
    known = [y != 0 for y in years]
    a, b, c, d = splits.groups_of("field", years, known, 2, [0, 0, 0, 1])
    assert len({a[0, 0], a[0, 4], b[0, 2], c[0, 0], c[0, 4]}) == 1
    assert d[0, 0] != d[0, 4] and not {d[0, 0], d[0, 4]} & {a[0, 0]}
    a, b = splits.groups_of("field", [first, third], [known[0], known[2]], 2, [0, 0])
    assert a[0, 0] == b[0, 0] != a[0, 4] == b[0, 4]
    for split, groups in (("block", 3), ("tile", 1)):
        a, b, c, d = splits.groups_of(split, years, [np.ones((2, 5), bool)] * 4, 2, [0, 0, 0, 1])
        assert np.array_equal(a, b) and np.array_equal(a, c) and len(np.unique(a)) == groups
        assert not set(a.ravel()) & set(d.ravel())


def test_a_field_is_not_learned_in_one_year_and_judged_in_another(tmp_path, mini):
    tile = synthetic_tile(16, 16, seed=5)
    years = [tf.open_tile(tile, name=f"a_{year}", year=year) for year in (2023, 2024)]
    tf.embed_tiles(years, tmp_path / "out", model=mini)
    stripes = np.repeat([1, 2, 3, 1, 2, 3, 1, 2], 2)[:, None].repeat(16, axis=1)
    labels = {"a_2023": stripes, "a_2024": stripes.copy()}
    assert tf.probe(tmp_path / "out", labels, **QUICK).groups == 8
    assert tf.probe(tmp_path / "out", labels, split="block", block=8, **QUICK).groups == 4
    with pytest.raises(InputError, match=r"two groups each, got 1 in 1, 2 in 1, 3 in 1"):
        tf.probe(tmp_path / "out", labels, split="tile", **QUICK)


# ---- groups of the caller


@pytest.mark.parametrize("none", [-1, -7, np.nan])
def test_pixels_in_no_group_are_not_learned_from(none):
    labels = RNG.integers(1, 3, (12, 12))
    groups = np.arange(144).reshape(12, 12) // 12 * 1e9  # numbers are no places in a list
    groups[3:5] = none
    report = tf.probe(
        features((12, 12)), labels, split=groups, head=Seen(), per_class=None, seeds=5
    )
    assert report.pixels == 120 and report.groups == 10
    assert "24 labelled pixels are in no group and left out" in report.notes
    (found,) = report.maps["embeddings"]
    assert (found[3:5] == 2).all() and (found != 1).all()


def test_classes_of_mixed_groups_are_in_both_halves():
    """Class 3 is a few pixels in two groups, that the majority of which is 1: half of the draws
    of groups of 1 would have both on one side."""
    groups = np.repeat(np.arange(12), 20)
    classes = np.repeat([1, 2], 120)
    classes[[0, 20]] = 3
    for seed in range(30):
        learn = splits.halves(groups, classes, seed)
        assert not set(groups[learn]) & set(groups[~learn])
        for part in (learn, ~learn):
            assert set(classes[part]) == {1, 2, 3}, seed


def test_a_class_that_cannot_be_in_both_halves_is_counted():
    """Pairs 3 and 4, 4 and 5, 5 and 3 share a group each way: one of them has both in one half."""
    kinds = [{3, 4}, {4, 5}, {5, 3}]
    groups = np.repeat(np.arange(3), 20)
    labels = np.concatenate([RNG.permutation(np.repeat(sorted(k), 10)) for k in kinds])
    report = tf.probe(features((60, 1))[:, 0], labels, split=groups, **{**QUICK, "seeds": 6})
    alone = [n for n in report.notes if "in one half alone" in n]
    assert alone and all(" of 6 seeds" in n for n in alone)
    counts = [int(n.split(" with ")[1].split()[0]) for n in alone]
    assert sum(counts) == 6


# ---- pixels and labels


def test_all_rows_are_of_the_same_pixels():
    labels = np.kron((np.arange(16).reshape(4, 4) * 5 // 2) % 4 + 1, np.ones((4, 4), int))
    ours, other = features((16, 16)), features((16, 16))
    ours[0, :3], other[5, 4:9], other[0, 0] = np.nan, np.nan, np.nan
    report = tf.probe(ours, labels, beside={"other": other}, split="block", block=4, **QUICK)
    assert report.pixels == 256 - 3 - 5
    assert [n for n in report.notes if "without data" in n] == [
        "embeddings: labelled pixels without data, which all rows leave out: 3",
        "other: labelled pixels without data, which all rows leave out: 5",
    ]
    labels[0, :3], labels[5, 4:9] = 0, 0
    again = tf.probe(ours, labels, beside={"other": other}, split="block", block=4, **QUICK)
    assert again.scores["other"].values == report.scores["other"].values


def test_a_pixel_that_no_row_has_is_not_mapped_by_a_head_of_its_field():
    """Fields are told apart by their features, so a head that saw a field says 1 of all of it."""
    row, column = np.arange(16)[:, None] // 4, np.arange(16) // 4
    ours = features((4, 4))[row, column]
    other = ours.copy()
    other[::4, ::4] = np.nan  # a pixel a field
    kw = {"head": Seen(), "per_class": None, "seeds": 5, "beside": {"other": other}}
    report = tf.probe(ours, (row + 2 * column) % 4 + 1, **kw)
    assert report.pixels == 256 - 16
    (found,) = report.maps["embeddings"]
    assert (found != 1).all() and (found == 2).sum() > 200


def test_what_a_raster_masks_is_no_label(tmp_path):
    """0 is a value of a regression, and a class where another number means none; 255 is neither."""
    from tessera_fast.probing.labels import read_labels

    image = placed("a")
    content = RNG.integers(0, 3, (8, 6)).astype(np.uint8)  # two columns are outside
    content[2] = 255
    profile = {
        "driver": "GTiff",
        "height": 8,
        "width": 6,
        "count": 1,
        "dtype": "uint8",
        "crs": image.crs,
        "transform": rasterio.Affine(*image.transform),
    }
    for nodata in (255, None):
        with rasterio.open(tmp_path / "l.tif", "w", nodata=nodata, **profile) as raster:
            raster.write(content, 1)
        ((values, known),) = read_labels(tmp_path / "l.tif", [image])
        expected = np.zeros((8, 8), bool)
        expected[:, :6] = content != 255 if nodata else True
        assert np.array_equal(known, expected) and values.dtype.kind == "i"
        assert np.array_equal(values[:, :6][known[:, :6]], content[known[:, :6]])


def test_zero_is_a_class_where_another_code_means_none():
    labels = np.kron((np.arange(16).reshape(4, 4) * 5 // 2) % 4, np.ones((4, 4), int))
    kw = {"split": "block", "block": 4, **QUICK}
    report = tf.probe(features((16, 16)), labels, nodata=255, classes={0: "bare"}, **kw)
    assert (report.classes[0].code, report.classes[0].name, report.pixels) == (0, "bare", 256)
    assert tf.probe(features((16, 16)), labels, **kw).pixels == 192
    with pytest.raises(InputError, match=r"codes other than 0.*got 'bare'; give another nodata"):
        tf.probe(features((16, 16)), labels, classes={0: "bare"}, **kw)
    for nodata in (float("nan"), 0.5):
        with pytest.raises(InputError, match=r"nodata: expected a whole number for classes"):
            tf.probe(features((16, 16)), labels, nodata=nodata, **kw)
    both = tf.probe(features((16, 16)), labels > 1, nodata=255, **kw)
    assert [c.code for c in both.classes] == [0, 1]
