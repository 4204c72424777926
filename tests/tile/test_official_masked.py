"""Masked arrays and other classes that carry more than values, given to the official functions."""

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.errors import InputError
from tile_sources import NAMES, arrays, unobserved

ORBITS = {"s1_asc": NAMES[0], "s1_desc": NAMES[1]}


@pytest.fixture(scope="module")
def model(mini):
    with tf.load_model(mini) as loaded:
        yield loaded


def tile_arguments():
    data, hide = unobserved(arrays())
    out = {"s2_bands": data["bands"], "s2_masks": data["masks"], "s2_doys": data["doys"]}
    for short, name in ORBITS.items():
        out |= {f"{short}_bands": data[name], f"{short}_doys": data[f"{name}_doy"]}
    return out, hide


def pixel_arguments():
    """The same as series of pixels (P, T, ...), with days of their own."""
    tile, hide = tile_arguments()
    pixels = {k: to_pixels(v) for k, v in tile.items() if v.ndim > 1}
    for name, days in ((k, v) for k, v in tile.items() if v.ndim == 1):
        pixels[name] = np.repeat(days[None], len(pixels["s2_bands"]), 0)
    return pixels, to_pixels(hide)


def to_pixels(array):
    return np.moveaxis(array, 0, 2).reshape(-1, len(array), *array.shape[3:])


FUNCTIONS = {"encode_tile": tile_arguments, "encode_pixels": pixel_arguments}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masked_arrays(name, model):
    arguments, hide = FUNCTIONS[name]()
    encode = getattr(tf, name)
    expected = encode(model, **arguments)
    clear = arguments["s2_masks"] == 1
    cloud = np.repeat(~clear[..., None], 10, axis=-1)
    given = arguments | {
        "s2_bands": np.ma.masked_array(np.where(cloud, np.uint16(7), arguments["s2_bands"]), cloud),
        "s2_masks": np.ma.masked_array(np.ones_like(arguments["s2_masks"]), ~clear),
        "s1_asc_bands": np.ma.masked_array(
            np.where(hide, np.int16(-32768), arguments["s1_asc_bands"]), hide
        ),
        "s2_doys": np.ma.masked_array(arguments["s2_doys"], False),
    }
    np.testing.assert_array_equal(encode(model, **given), expected)
    t = tuple(np.argwhere(clear)[0])
    given["s2_bands"][t] = np.ma.masked
    with pytest.raises(
        InputError, match="s2_bands: expected values where s2_masks is clear, got a"
    ):
        encode(model, **given)
    del given["s2_masks"]  # everything is clear
    with pytest.raises(
        InputError, match="s2_bands: expected values where s2_masks is clear, got a"
    ):
        encode(model, **given)


def test_masked_days(model):
    tile, _ = tile_arguments()
    tile["s2_doys"] = np.ma.masked_array(tile["s2_doys"], [0, 1, 0, 0, 0])
    with pytest.raises(InputError, match=r"s2_doys: .* a masked array in which 1 of 5 values"):
        tf.encode_tile(model, **tile)
    pixels, _ = pixel_arguments()
    expected = tf.encode_pixels(model, **pixels)
    unseen = pixels["s2_masks"] == 0  # padding, whose days do not matter
    pixels["s2_doys"] = np.ma.masked_array(pixels["s2_doys"], unseen)
    np.testing.assert_array_equal(tf.encode_pixels(model, **pixels), expected)
    pixels["s2_doys"][np.nonzero(~unseen)[0][0], np.nonzero(~unseen)[1][0]] = np.ma.masked
    with pytest.raises(InputError, match=r"s2_doys: expected whole days 1\.\.366, got 0 at"):
        tf.encode_pixels(model, **pixels)


class Quantity(np.ndarray):
    """As astropy's: an array with a unit."""


@pytest.mark.parametrize("argument", ["s2_bands", "s2_masks", "s2_doys", "s1_desc_bands"])
def test_units_are_not_dropped(argument, model):
    tile, _ = tile_arguments()
    with pytest.raises(InputError, match=f"{argument}: expected a plain numpy array, got .*Quanti"):
        tf.encode_tile(model, **tile | {argument: tile[argument].view(Quantity)})


@pytest.mark.parametrize("value", ["NaN", "text", "None"])
def test_values_that_say_nothing(value, model):
    tile, _ = tile_arguments()
    masks = tile["s2_masks"].astype(np.float32)
    masks[1, 2, 3] = np.nan
    wrong = {
        "NaN": masks,
        "text": tile["s2_masks"].astype(str),
        "None": np.full_like(masks, None, object),
    }
    with pytest.raises(InputError, match=r"s2_masks: expected numbers, not 0 = clear, got"):
        tf.encode_tile(model, **tile | {"s2_masks": wrong[value]})
    with pytest.raises(InputError, match=r"s2_doys: expected numbers, days of year 1\.\.366, got"):
        tf.encode_tile(model, **tile | {"s2_doys": tile["s2_doys"].astype(str)})
