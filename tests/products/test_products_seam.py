"""A land cut into tiles that are embedded one by one: the mosaic is that of the whole, no seam."""

import numpy as np
import pytest

import tessera_fast as tf
from pictures_read import read_png
from products_outputs import rectangle, same
from tessera_fast.drawing.quicklook import pca_image
from tessera_fast.jobs.embed_tiles import embed_tiles
from tessera_fast.products.mosaics import mosaic
from tessera_fast.products.pictures import picture
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.tile import open_windows

rasterio = pytest.importorskip("rasterio")
pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")


@pytest.fixture(scope="module")
def land(tmp_path_factory, mini):
    """A store of six tiles of at most 32 x 32, and the whole land embedded at once."""
    tile = synthetic_tile(48, 80)
    out = tmp_path_factory.mktemp("land") / "x.zarr"
    windows = list(open_windows(tile, side=32))
    assert len(windows) == 6
    embed_tiles(windows, out, mini, precision="fp32")
    return out, tile, tf.dequantize(*tf.embed(tile, mini, precision="fp32", output="int8"))


def test_the_mosaic_is_the_whole_land(land, tmp_path):
    out, tile, values = land
    x0, y0 = tile.transform[2], tile.transform[5]
    mosaic(out, tmp_path / "m.tif", polygon=rectangle(x0, y0 - 480, x0 + 800, y0, crs=tile.crs))
    with rasterio.open(tmp_path / "m.tif") as raster:
        same(np.moveaxis(raster.read(), 0, -1), values)


def test_the_picture_is_that_of_the_whole_land(land, tmp_path):
    out, _, values = land
    basis = picture(out, tmp_path / "p.png")
    image = read_png(tmp_path / "p.png")
    whole = pca_image(values, basis)
    known = whole[..., 3] > 0
    same(image[: 48 * 8 : 8, ::8][known], whole[..., :3][known])
