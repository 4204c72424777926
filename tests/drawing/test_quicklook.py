"""Pictures: PNGs decode to what went in, colours follow components, captions say untrained."""

import numpy as np
import pytest

from pictures_read import read_png, yellow
from tessera_fast.drawing.quicklook import (
    pca_basis,
    pca_image,
    quicklook,
    side_by_side,
    true_colour,
    write_png,
)
from tessera_fast.errors import InputError, StoreError
from tessera_fast.synthetic import CLASSES, synthetic_classes, synthetic_tile
from tessera_fast.tile import open_tile


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1, 4), (13, 2, 4)])
@pytest.mark.parametrize("upscale", [1, 3])
def test_png_round_trip(tmp_path, shape, upscale):
    image = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    path = write_png(tmp_path / "a.png", image, upscale)
    expected = image.repeat(upscale, 0).repeat(upscale, 1)
    np.testing.assert_array_equal(read_png(path).reshape(expected.shape), expected)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_png_is_read_by_gdal(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    image = np.random.RandomState(0).randint(0, 256, (9, 4, 3)).astype(np.uint8)
    path = write_png(tmp_path / "a.png", image)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as png:
        np.testing.assert_array_equal(png.read().transpose(1, 2, 0), image)


BAD_IMAGES = {
    "float": (np.ones((3, 3)), 1),
    "two channels": (np.ones((3, 3, 2), np.uint8), 1),
    "one axis": (np.ones(3, np.uint8), 1),
    "no pixels": (np.ones((0, 3), np.uint8), 1),
    "upscale 0": (np.ones((3, 3), np.uint8), 0),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(tmp_path, case):
    with pytest.raises(InputError, match="image: expected"):
        write_png(tmp_path / "a.png", *BAD_IMAGES[case])
    assert not list(tmp_path.iterdir())


def test_png_that_cannot_be_written(tmp_path):
    with pytest.raises(StoreError, match="could not be written"):
        write_png(tmp_path / "no folder" / "a.png", np.ones((2, 2), np.uint8))


def embeddings(h=12, w=9, e=16):
    """Three orthogonal directions of falling strength: columns, rows, and both."""
    r = np.random.RandomState(4)
    axes = np.linalg.qr(r.standard_normal((e, 3)))[0]
    y, x = np.mgrid[:h, :w]
    scores = np.stack([9.0 * (x - x.mean()), 3.0 * (y - y.mean()), ((x + y) % 2) - 0.5], -1)
    return (scores @ axes.T + 2).astype(np.float32)


def test_pca_colours_follow_the_components():
    image = pca_image(embeddings())
    assert image.shape == (12, 9, 4) and image.dtype == np.uint8
    assert (image[..., 3] == 255).all()
    red = image[..., 0].astype(int)
    assert abs(np.corrcoef(red.mean(0), np.arange(9))[0, 1]) > 0.99
    green = image[..., 1].astype(int)
    assert abs(np.corrcoef(green.mean(1), np.arange(12))[0, 1]) > 0.99
    assert red.min() == 0 and red.max() == 255


def test_no_data_is_transparent_and_does_not_change_the_rest():
    values = embeddings()
    with_gap = np.concatenate([values, np.full_like(values[:1], np.nan)])
    image = pca_image(with_gap)
    assert (image[-1] == 0).all()
    np.testing.assert_array_equal(image[:-1], pca_image(values))
    assert (pca_image(np.full((3, 4, 8), np.nan, np.float32)) == 0).all()
    with pytest.raises(InputError, match="at least one pixel"):
        pca_basis(np.full((3, 4, 8), np.nan, np.float32))


def test_sign_is_fixed_and_a_basis_is_shared():
    values = embeddings()
    basis = pca_basis(values)
    strongest = np.abs(basis.components).argmax(axis=1)
    assert (basis.components[np.arange(3), strongest] > 0).all()
    half = pca_image(values[:5], basis)
    np.testing.assert_array_equal(half, pca_image(values)[:5])


def test_constant_embedding_is_grey():
    image = pca_image(np.ones((2, 2, 4), np.float32))
    assert (image[..., :3] == 128).all()


@pytest.mark.parametrize(
    "bad", [np.ones((2, 2, 2), np.float32), np.ones((2, 2, 8), np.int8), np.ones(8, np.float32)]
)
def test_bad_embeddings(bad):
    with pytest.raises(InputError, match="embeddings: expected float"):
        pca_basis(bad)


def tiny(values, masks, doys):
    """A tile of one row whose red, green and blue all are ``values`` (T, W)."""
    values, masks = np.array(values, np.uint16), np.array(masks, np.uint8)
    bands = np.repeat(values[:, None, :, None], 10, axis=-1)
    source = {"bands": bands, "masks": masks[:, None], "doys": np.array(doys)}
    return open_tile(source, allow_missing_s1=True)


def test_true_colour_takes_clear_summer_dates_then_the_year_then_nothing():
    values = [[100, 100, 9, 500, 9], [200, 9000, 9, 9, 9], [300, 300, 9, 9, 9], [9, 9, 300, 9, 9]]
    masks = [[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    image = true_colour(tiny(values, masks, [150, 180, 200, 20]))
    # Medians 200, (100 + 300) / 2 without the cloud of 9000, 300 from January, 500, none.
    assert image[0, :, 3].tolist() == [255, 255, 255, 255, 0]
    grey = image[0, :, 0].tolist()
    assert grey[0] == grey[1] < grey[2] < grey[3] == 255
    assert grey[4] == 0 and (image[..., 0] == image[..., 2]).all()


def test_true_colour_in_bands_of_rows_is_the_same(monkeypatch):
    from tessera_fast.drawing import quicklook as module

    tile = synthetic_tile(20, 16)
    whole = true_colour(tile)
    monkeypatch.setattr(module, "_BAND_BYTES", 1)
    np.testing.assert_array_equal(true_colour(tile), whole)


def test_true_colour_shows_the_land():
    image = true_colour(synthetic_tile(96, 80, seed=5)).astype(int)
    classes = synthetic_classes(96, 80, seed=5)
    grass = image[classes == CLASSES.index("grassland")].mean(axis=0)
    roofs = image[classes == CLASSES.index("built-up")].mean(axis=0)
    water = image[classes == CLASSES.index("water")].mean(axis=0)
    assert grass[1] > grass[0] > grass[2]
    assert roofs[:3].mean() > grass[:3].mean() > water[:3].mean()


def test_untrained_weights_show():
    tile = synthetic_tile(24, 32)
    values = np.random.RandomState(0).standard_normal((24, 32, 16)).astype(np.float32)
    image = quicklook(tile, values, model="v2-nano", trained=False)
    right = image[:, image.shape[1] // 2 :]
    assert yellow(image).sum() > 1000 and yellow(right).sum() == yellow(image).sum()
    trained = quicklook(tile, values, model="v2-nano", trained=True)
    assert not yellow(trained).any()
    assert image.shape[1] == 2 * 32 * 13 + 4  # 400 / 32, rounded up, and the gap


def ink(image):
    """How much of the caption's paper is covered, in pixels."""
    return float((250 - image[..., 0].astype(float)).clip(0).sum() / 220)


def test_captions_are_written_and_wrapped():
    panel = np.full((10, 60, 4), 255, np.uint8)
    one = side_by_side([panel], ["I"], upscale=1)
    assert one.shape == (10 + 29, 60, 3)
    assert 11 < ink(one[10:]) < 18  # a stem of ten pixels, 1.3 wide
    two = side_by_side([panel], ["two lines"], upscale=1)
    assert two.shape == (10 + 48, 60, 3)
    long = side_by_side([panel, panel], ["a" * 20, ""], upscale=1)
    assert long.shape[0] > 10 + 48 and long.shape[1] == 124
    # letters are as they are given: no capitals in place of small ones
    small, capital = (side_by_side([panel], [text], upscale=1) for text in ("a", "A"))
    assert ink(small) > 5 and abs(ink(small) - ink(capital)) > 1


def test_panels_of_different_size_are_refused():
    with pytest.raises(InputError, match="images: expected one size"):
        side_by_side([np.ones((2, 2, 3), np.uint8), np.ones((2, 3, 3), np.uint8)], ["a", "b"])
