"""`tf.verify` names what a difference is consistent with, and draws where it is."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

import tessera_fast as tf
from verify_outputs import (
    HERE,
    INT8,
    arrays,
    copy,
    float_folder,
    geotessera_like,
    sound,
    store,
    tile,
    values,
)

pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
pytest.importorskip("pyproj", reason="a store needs pyproj")


def causes(a, b, **options):
    found = tf.verify(a, b, **options)
    assert not found.same
    return " / ".join(found.causes)


def moved(data, row, column):
    """The same pixels, so many rows and columns further on; what comes in is without data."""
    out = []
    for array, fill in zip(data, (0, np.inf, 0), strict=True):
        new = np.full_like(array, fill)
        h, w = array.shape[:2]
        new[max(row, 0) : h + min(row, 0), max(column, 0) : w + min(column, 0)] = array[
            max(-row, 0) : h + min(-row, 0), max(-column, 0) : w + min(-column, 0)
        ]
        out.append(new)
    return tuple(out)


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (-1, 1)])
def test_a_shift_by_a_pixel(tmp_path, shift):
    a = store(tmp_path / "a.zarr")
    b = store(tmp_path / "b.zarr", {HERE: moved(sound(), *shift)})
    text = causes(a, b)
    assert f"shift by {shift[0]} rows and {shift[1]} columns" in text
    assert f"at r {shift[0]:+d} and c {shift[1]:+d} of B" in text


def test_half_a_pixel_between_the_lattices(tmp_path):
    a = store(tmp_path / "a.zarr")
    b = geotessera_like(tmp_path / "b.zarr", a, shard=256, margin=0, shift=5.0)
    text = causes(a, b)
    assert "0 rows and 0.5 columns apart (half a pixel" in text


@pytest.mark.parametrize(("axis", "words"), [(0, "flipped rows"), (1, "flipped columns")])
def test_flips(tmp_path, axis, words):
    flipped = tuple(np.flip(array, axis) for array in sound())
    a, b = store(tmp_path / "a.zarr"), store(tmp_path / "b.zarr", {HERE: flipped})
    assert words in causes(a, b)
    folders = [
        float_folder(tmp_path / n, {HERE: v})
        for n, v in (("a", values()), ("b", np.flip(values(), axis)))
    ]
    assert words in causes(*folders)


def test_other_weights_everywhere(tmp_path):
    a, b = store(tmp_path / "a.zarr"), store(tmp_path / "b.zarr", {HERE: sound(seed=0)})
    codes = arrays(b)["embeddings"]
    codes[:] = np.roll(codes[:], 1, axis=1)  # another order of dimensions
    text = causes(a, b)
    assert "other weights, other statistics" in text and "flipped" not in text


def test_scales_of_another_rule(tmp_path):
    codes, scales, counts = sound()
    a = store(tmp_path / "a.zarr")
    b = store(tmp_path / "b.zarr", {HERE: (codes, scales * np.float32(127 / 128), counts)})
    text = causes(a, b)
    assert "times those of A" in text and "the same values times a constant" in text


def test_other_inputs(tmp_path):
    codes, scales, counts = sound()
    a = store(tmp_path / "a.zarr")
    valid = np.isfinite(scales)
    counts[valid, 0] += 1
    codes[valid, 3] ^= 64
    b = store(tmp_path / "b.zarr", {HERE: (codes, scales, counts)})
    n = int(valid.sum())
    assert f"{n:,} of {n:,} pixels have other numbers of observed dates" in causes(a, b)


def test_only_some_tiles(tmp_path):
    keys = [tile(f"t{n}", 20, 30, x0=HERE.transform[2] + 300 * n) for n in range(6)]
    tiles = {key: sound(key, seed=n) for n, key in enumerate(keys)}
    a = store(tmp_path / "a.zarr", tiles)
    codes, scales, counts = sound(keys[4], seed=4)
    codes[np.isfinite(scales), 2] ^= 32
    b = store(tmp_path / "b.zarr", tiles | {keys[4]: (codes, scales, counts)})
    n = int(np.isfinite(scales).sum())
    assert f"only 1 of 6 tiles differ: t4 ({n} of {n} pixels)" in causes(a, b)


@pytest.mark.parametrize("where", ["border", "overlap"])
def test_borders_and_overlaps(tmp_path, where):
    right = tile("b", 45, 61, x0=HERE.transform[2] + 500)
    a = store(tmp_path / "a.zarr", {HERE: sound(empty=0), right: sound(right, seed=1, empty=0)})
    b = copy(a, tmp_path / "b.zarr")
    codes = arrays(b)["embeddings"]
    if where == "border":
        codes[0, 2, 0] ^= 32
        assert "lie within 2 pixels of a tile's border" in causes(a, b)
    else:
        codes[0, 2, 4:40, 52:59] ^= 32
        assert "252 of 252 pixels beyond the gate lie where tiles overlap" in causes(a, b)


def test_an_unexplained_difference_has_no_cause(tmp_path):
    a = store(tmp_path / "a.zarr")
    b = copy(a, tmp_path / "b.zarr")
    codes = arrays(b)["embeddings"]
    codes[0, 2, 10:40:3, 10:50:3] ^= 32
    found = tf.verify(a, b)
    assert not found.same and found.causes == ()


# ---- maps


def read_png(path):
    """(height, width, channels) and the pixels of an 8-bit PNG without filters."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[n : n + 4], "big") for n in (16, 20))
    channels = {0: 1, 2: 3, 6: 4}[data[25]]
    start = data.index(b"IDAT") + 4
    rows = np.frombuffer(zlib.decompress(data[start : data.index(b"IEND") - 8]), np.uint8)
    return rows.reshape(height, 1 + width * channels)[:, 1:].reshape(height, width, channels)


def test_maps_show_the_changed_pixels(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    key = tile("a", 300, 400)
    data = sound(key)
    a = store(tmp_path / "a.zarr", {key: data})
    b = copy(a, tmp_path / "b.zarr")
    valid = np.isfinite(data[1])
    planted = [tuple(p) for p in np.argwhere(valid)[::20_000].tolist()]
    group = arrays(b)
    for row, column in planted:
        group["embeddings"][0, 7, row, column] ^= 64
    gone = tuple(np.argwhere(valid)[500].tolist())
    group["scales"][(0, *gone)] = np.inf
    found = tf.verify(a, b, maps=tmp_path / "maps")
    assert sorted(p.name for p in found.maps) == ["utm31_2020.png", "utm31_2020.tif"]
    assert {p.name for p in (tmp_path / "maps").iterdir()} == {p.name for p in found.maps}
    with rasterio.open(tmp_path / "maps" / "utm31_2020.tif") as raster:
        assert raster.crs.to_epsg() == 32631
        assert tuple(raster.transform)[:6] == key.transform
        deviation, distance = raster.read()
    np.testing.assert_array_equal(np.isnan(deviation), ~valid)
    assert [tuple(p) for p in np.argwhere(np.isinf(deviation)).tolist()] == [gone]
    for band in (deviation, distance):
        changed = np.argwhere(np.isfinite(band) & (band > 0)).tolist()
        assert [tuple(p) for p in changed] == planted
    picture = read_png(tmp_path / "maps" / "utm31_2020.png")[:300, :400]  # the first panel
    shown = (picture == (222, 228, 232)).all(-1)
    np.testing.assert_array_equal(shown.sum(), valid.sum() - len(planted) - 1)
    assert (picture[gone] == (0, 170, 90)).all()
    assert not any(shown[p] for p in planted)


def test_maps_are_cropped_and_a_large_layer_shows_the_worst_of_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr("tessera_fast.verification.maps.LONGEST", 50)
    far = tile("far", 40, 40, x0=HERE.transform[2] + 60_000, y0=HERE.transform[5] - 60_000)
    other_year = replace(far, name="other", year=2021)
    tiles = {HERE: sound(empty=0), far: sound(far, empty=0), other_year: sound(far, empty=0)}
    a = store(tmp_path / "a.zarr", tiles)
    b = copy(a, tmp_path / "b.zarr")
    codes = arrays(b)["embeddings"]
    codes[1, 7, 6010, 6020] ^= 64
    found = tf.verify(a, b, maps=tmp_path / "maps")
    picture = read_png(tmp_path / "maps" / "utm31_2021.png")
    assert picture.shape[1] < 1000
    assert (picture == (222, 228, 232)).all(-1).any()
    assert found.overall.off == 1 and {p["layer"] for p in found.pixels} == {"utm31/2021"}
    drawn = read_png(tmp_path / "maps" / "utm31_2020.png")
    assert (drawn == (222, 228, 232)).all(-1).any()


def test_maps_of_a_folder_without_places_are_pictures_alone(tmp_path):
    nowhere = replace(HERE, year=None, crs=None, transform=None)
    a, b = (float_folder(tmp_path / n, {nowhere: values()}) for n in ("a", "b"))
    found = tf.verify(a, b, maps=tmp_path / "maps")
    assert [p.name for p in found.maps] == ["a.png"]
    assert found.verdict == "equal" and INT8.dtype == "int8"


def test_a_comparison_that_fails_leaves_no_map(tmp_path):
    a = store(tmp_path / "a.zarr")
    b = copy(a, tmp_path / "b.zarr")
    (b / "utm31/embeddings/c/0/0/0/0").write_bytes(b"x" * 100)
    with pytest.raises(tf.StoreError, match="cannot be read"):
        tf.verify(a, b, maps=tmp_path / "maps")
    assert list((tmp_path / "maps").iterdir()) == []
