"""geotessera reads our store unchanged. Opt-in: needs Python 3.12 and geotessera (92 packages)."""

import importlib.util
from contextlib import closing

import numpy as np
import pytest

if importlib.util.find_spec("geotessera") is None:
    pytest.skip(
        "geotessera is not installed (Python 3.12: pip install geotessera)",
        allow_module_level=True,
    )

from geotessera import GeoTesseraZarr
from pyproj import Transformer

from tessera_fast.store.base import Provenance, TileKey
from tessera_fast.store.output import open_output

PROVENANCE = Provenance(
    model="v2-nano",
    weights_sha256="ab" * 32,
    weights_source="untrained:1",
    trained=False,
    precision="fp32",
    dims=128,
    prefixes=(16, 32, 64),
)
NORTH = TileKey(
    "north", 300, 70, "n", 2020, "EPSG:32631", (10.0, 0.0, 501360.0, 0.0, -10.0, 5629680.0)
)
SOUTH = TileKey(
    "south", 40, 60, "s", 2021, "EPSG:32737", (10.0, 0.0, 300000.0, 0.0, -10.0, 9870000.0)
)


def fake(key, dims):
    rng = np.random.default_rng(key.height)
    codes = rng.integers(-127, 128, (key.height, key.width, dims), dtype=np.int8)
    scales = rng.uniform(0.001, 0.1, codes.shape[:2]).astype(np.float32)
    codes[3:9, 5:11], scales[3:9, 5:11] = 0, np.inf
    return codes, scales, np.ones((*codes.shape[:2], 3), np.uint16)


def written(path, provenance):
    tiles = {key: fake(key, provenance.dims) for key in (NORTH, SOUTH)}
    with closing(open_output(path, tiles, provenance)) as out:
        for key, data in tiles.items():
            writer = out.begin(key)
            writer.write_rows(0, *data)
            writer.commit()
    return tiles


def values(codes, scales):
    """(H, W, E) float32 as geotessera returns them: NaN where there is no data."""
    known = np.isfinite(scales)
    out = codes.astype(np.float32) * np.where(known, scales, 0)[..., None]
    out[~known] = np.nan
    return out


def centres(key, rows, cols):
    """Longitude and latitude of pixel centres."""
    x = key.transform[2] + 10 * (np.asarray(cols) + 0.5)
    y = key.transform[5] - 10 * (np.asarray(rows) + 0.5)
    return list(
        zip(
            *Transformer.from_crs(key.crs, "EPSG:4326", always_xy=True).transform(x, y), strict=True
        )
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "x.zarr"
    return path, written(path, PROVENANCE)


def test_opens(store):
    gt = GeoTesseraZarr(str(store[0]))
    assert gt.n_bands == 128
    assert gt.years == [2020, 2021]
    assert sorted(gt.depths) == [16, 32, 64, 128]
    assert "untrained" in gt.model_version
    assert gt.dataset is None  # no published data set is claimed


@pytest.mark.parametrize("key", [NORTH, SOUTH], ids=lambda k: k.name)
@pytest.mark.parametrize("depth", [None, 16, 32, 64, 128])
def test_sample_points(store, key, depth):
    codes, scales, _ = store[1][key]
    rows, cols = np.array([0, 1, 20, 39, 39, 6]), np.array([0, 1, 33, 0, 59, 8])
    found = GeoTesseraZarr(str(store[0])).sample_points(
        centres(key, rows, cols), key.year, depth=depth, search_px=0
    )
    expected = values(codes, scales)[rows, cols][:, : depth or 128]
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found[-1]).all()


@pytest.mark.parametrize("key", [NORTH, SOUTH], ids=lambda k: k.name)
def test_probe(store, key):
    gt = GeoTesseraZarr(str(store[0]))
    codes, scales, _ = store[1][key]
    (inside, hole) = centres(key, [20, 6], [33, 8])
    vector, status = gt.probe(*inside, key.year)
    assert status == "valid"
    np.testing.assert_array_equal(vector, values(codes, scales)[20, 33])
    assert gt.probe(*hole, key.year)[1] == "nodata"
    assert gt.probe(*inside, 2020 + 2021 - key.year)[1] == "nodata"
    assert gt.probe(100.0, 50.0, key.year)[1] == "outside"


@pytest.mark.parametrize("key", [NORTH, SOUTH], ids=lambda k: k.name)
@pytest.mark.parametrize("depth", [None, 16])
def test_read_region_and_patch(store, key, depth):
    gt = GeoTesseraZarr(str(store[0]))
    expected = values(*store[1][key][:2])
    (lon0, lat0), (lon1, lat1) = centres(key, [30, 2], [4, 50])
    found, transform, crs = gt.read_region((lon0, lat0, lon1, lat1), key.year, depth=depth)
    assert crs == f"EPSG:326{key.crs[-2:]}"
    northing = key.transform[5] - (1e7 if key is SOUTH else 0)
    row, col = round((northing - transform.f) / 10), round((transform.c - key.transform[2]) / 10)
    assert (transform.c, transform.f) == (key.transform[2] + 10 * col, northing - 10 * row)
    h, w = found.shape[:2]
    assert h > 25
    assert w > 40
    part = expected[row : row + h, col : col + w, : depth or 128]
    np.testing.assert_array_equal(found, part)
    patch, _, _ = gt.read_patch(*centres(key, [20], [30])[0], key.year, size_px=16)
    np.testing.assert_array_equal(patch, expected[12:28, 22:38])


def test_teacher_width(tmp_path):
    provenance = Provenance(
        model="v2-teacher",
        weights_sha256="cd" * 32,
        weights_source="x.pt",
        trained=True,
        precision="fp32",
        dims=1024,
    )
    codes, scales, _ = written(tmp_path / "x.zarr", provenance)[NORTH]
    gt = GeoTesseraZarr(str(tmp_path / "x.zarr"))
    found = gt.sample_points(centres(NORTH, [20], [33]), 2020)
    np.testing.assert_array_equal(found, values(codes, scales)[20:21, 33])


def test_rioxarray_by_convention_alone(store):
    """Newer rioxarray finds the CRS in the convention, without the CF variable."""
    xr = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray", minversion="0.20")
    with xr.open_zarr(store[0], group="utm31") as ds:
        codes = ds["embeddings"].drop_vars("spatial_ref")
        del codes.attrs["grid_mapping"]
        assert codes.rio.crs.to_epsg() == 32631
        assert tuple(codes.rio.transform())[:6] == NORTH.transform
