"""From real tiles to products: values are those of the store, and what others open is the same."""

import numpy as np
import pytest

import tessera_fast as tf
from places import SHARED
from products_outputs import assert_cog, names, same
from tessera_fast.store.reader import open_embeddings

rasterio = pytest.importorskip("rasterio")
rioxarray = pytest.importorskip("rioxarray")
xarray = pytest.importorskip("xarray")
pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
TILES = [SHARED / "data" / f"flanders_{y}" for y in (2018, 2019)]
X0, Y0 = 501360.0, 5629680.0  # corner of the tile of 2018, as its roi.tiff says
pytestmark = pytest.mark.skipif(
    not all(t.exists() for t in TILES), reason=f"{TILES[0].parent} is not there"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from tessera_fast.__main__ import main

    out = tmp_path_factory.mktemp("flanders") / "fl.zarr"
    assert (
        main(
            [
                "embed",
                *map(str, TILES),
                "-o",
                str(out),
                "--model",
                "v2-nano",
                "--weights",
                "untrained",
            ]
        )
        == 0
    )
    return out


@pytest.fixture(scope="module")
def arrays(store):
    """The tile of 2018: codes (64, 64, 128), scales (64, 64) and tf.dequantize's values."""
    codes, scales = open_embeddings(store).layer("utm31/2018").codes(slice(0, 64), slice(0, 64))
    return codes, scales, tf.dequantize(codes, scales)


def test_cog_of_every_tile(store, arrays, tmp_path, run):
    assert run("export", store, "-o", tmp_path / "maps", "--format", "cog").code == 0
    assert names(tmp_path / "maps") == ["grid_3.02_50.82_2018.tiff", "grid_4.06_50.75_2019.tiff"]
    assert_cog(tmp_path / "maps" / "grid_3.02_50.82_2018.tiff")
    with rasterio.open(tmp_path / "maps" / "grid_3.02_50.82_2018.tiff") as raster:
        same(np.moveaxis(raster.read(), 0, -1), arrays[2])
        assert raster.tags()["TESSERA_UNTRAINED"] == "YES"
        with rasterio.open(TILES[0] / "roi.tiff") as roi:
            assert raster.transform == roi.transform and raster.crs == roi.crs
    with rioxarray.open_rasterio(tmp_path / "maps" / "grid_3.02_50.82_2018.tiff") as data:
        same(data.transpose("y", "x", "band").values, arrays[2])
        assert data.rio.crs.to_epsg() == 32631


def test_a_store_for_gis_in_xarray(store, arrays, tmp_path, run):
    assert run("export", store, "-o", tmp_path / "gis.zarr", "--gis").code == 0
    cube = xarray.open_zarr(tmp_path / "gis.zarr", group="utm31", consolidated=False)
    here = cube.sel(time=2018).isel(y=slice(0, 64), x=slice(0, 64))
    same(here.embeddings.transpose("y", "x", "band").values, arrays[0])
    same(here.scales.values, arrays[1])


def test_a_mosaic_on_the_tiles_own_roi(store, arrays, tmp_path, run):
    done = run(
        "mosaic",
        store,
        "-o",
        tmp_path / "m.tif",
        "--template",
        TILES[0] / "roi.tiff",
        "--year",
        2018,
    )
    assert done.code == 0, done.err
    with rasterio.open(tmp_path / "m.tif") as raster:
        same(np.moveaxis(raster.read(), 0, -1), arrays[2])


def test_a_picture_and_its_description(store, tmp_path, run):
    assert (
        run("quicklook", store, "-o", tmp_path / "p.png", "--save-basis", tmp_path / "b.json").code
        == 0
    )
    assert (
        run(
            "quicklook",
            store,
            "--cog",
            tmp_path / "c.tif",
            "--year",
            2018,
            "--basis",
            tmp_path / "b.json",
        ).code
        == 0
    )
    with rasterio.open(tmp_path / "c.tif") as raster:
        assert raster.shape == (64, 64) and (raster.read(4) == 255).all()
        assert tuple(raster.transform)[:6] == (10.0, 0.0, X0, 0.0, -10.0, Y0)
    pytest.importorskip("pystac")
    assert run("stac", store, "-o", tmp_path / "stac").out.startswith("2 items")
