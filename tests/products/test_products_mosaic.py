"""Mosaics: exact on the store's own lattice, the nearest pixel elsewhere, NaN outside."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import tessera_fast as tf
from fake_tiles import FLOAT, X0, Y0, fake, tile, write
from products_outputs import (
    EAST,
    LATER,
    LEFT,
    RIGHT,
    assert_cog,
    full_disk,
    lonlat,
    names,
    rectangle,
    ring,
    same,
    store,
)
from tessera_fast.errors import InputError, StoreError
from tessera_fast.products.mosaics import mosaic

rasterio = pytest.importorskip("rasterio", reason="mosaics are written with rasterio")
pyproj = pytest.importorskip("pyproj", reason="a store needs pyproj")
pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
# Rows 5..64 and columns 200..289 of the two tiles: the seam is at 250, a block's end at 256.
ACROSS = rectangle(X0 + 2000, Y0 - 650, X0 + 2900, Y0 - 50)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return store(tmp_path_factory.mktemp("store") / "x.zarr", LEFT, RIGHT, LATER, EAST)


def both(values):
    """The two tiles as one array (70, 310, E)."""
    return np.concatenate([values[LEFT], values[RIGHT]], axis=1)


def read(path):
    """(h, w, bands) and the open file's profile, CRS code and tags."""
    with rasterio.open(path) as raster:
        return (
            np.moveaxis(raster.read(), 0, -1),
            raster.profile,
            raster.crs.to_epsg(),
            raster.tags(),
        )


@pytest.mark.parametrize("form", ["cog", "geotiff"])
def test_over_the_boundary_of_tiles_it_is_the_store(made, tmp_path, form):
    path, values = made
    mosaic(path, tmp_path / "m.tif", polygon=ACROSS, year=2020, format=form)
    found, profile, epsg, tags = read(tmp_path / "m.tif")
    same(found, both(values)[5:65, 200:290])
    assert epsg == 32631
    assert tuple(profile["transform"])[:6] == (10.0, 0.0, X0 + 2000, 0.0, -10.0, Y0 - 50)
    assert tags["TESSERA_YEAR"] == "2020" and tags["TESSERA_UNTRAINED"] == "YES"
    if form == "cog":
        assert_cog(tmp_path / "m.tif")


def test_a_year_has_its_own_values(made, tmp_path):
    path, values = made
    mosaic(path, tmp_path / "m.tif", polygon=ACROSS, year=2021, bands=[3, 1])
    found = read(tmp_path / "m.tif")[0]
    same(found[:, :50], values[LATER][5:65, 200:, [3, 1]])
    assert np.isnan(found[:, 50:]).all()


TRIANGLE = {
    "type": "Polygon",
    "crs": ACROSS["crs"],
    "coordinates": [
        [[X0 + 2003, Y0 - 601], [X0 + 2803, Y0 - 601], [X0 + 2403, Y0 - 102], [X0 + 2003, Y0 - 601]]
    ],
}


def half_planes():
    """(70, 310) bool: the centre of a pixel lies in the triangle, by its three edges."""
    y, x = np.mgrid[:70, :310]
    x, y = X0 + 10 * x + 5, Y0 - 10 * y - 5
    corners = np.array(TRIANGLE["coordinates"][0])
    inside = np.ones((70, 310), bool)
    for (ax, ay), (bx, by) in pairwise(corners):
        inside &= (bx - ax) * (y - ay) > (by - ay) * (x - ax)
    return inside


def test_outside_the_polygon_is_no_data(made, tmp_path):
    path, values = made
    mosaic(path, tmp_path / "m.tif", polygon=TRIANGLE, year=2020)
    found, profile, _, _ = read(tmp_path / "m.tif")
    expected = np.where(half_planes()[..., None], both(values), np.nan)
    # The window: from the pixel that a corner lies in to that of the other.
    assert tuple(profile["transform"])[:6] == (10.0, 0.0, X0 + 2000, 0.0, -10.0, Y0 - 100)
    same(found, expected[10:61, 200:281])
    assert 0 < np.isfinite(found[..., 0]).sum() < half_planes().sum()  # some have no data at all


def test_forms_of_geojson(made, tmp_path):
    path, values = made
    plain = {k: ACROSS[k] for k in ("type", "coordinates")}
    collection = {
        "type": "FeatureCollection",
        "crs": ACROSS["crs"],
        "features": [{"type": "Feature", "properties": {}, "geometry": plain}],
    }
    several = {
        "type": "MultiPolygon",
        "crs": ACROSS["crs"],
        "coordinates": [
            [ring(X0 + 2000, Y0 - 650, X0 + 2400, Y0 - 50)],
            [ring(X0 + 2400, Y0 - 650, X0 + 2900, Y0 - 50)],
        ],
    }
    file = tmp_path / "region.geojson"
    file.write_text(json.dumps(collection))
    for number, polygon in enumerate((collection, several, file, str(file))):
        mosaic(path, tmp_path / f"{number}.tif", polygon=polygon, year=2020)
        same(read(tmp_path / f"{number}.tif")[0], both(values)[5:65, 200:290])


def test_longitude_and_latitude_unless_it_says_otherwise(made, tmp_path):
    path, values = made
    inner = rectangle(X0 + 2002, Y0 - 648, X0 + 2898, Y0 - 52)
    mosaic(path, tmp_path / "m.tif", polygon=lonlat(inner), year=2020)
    same(read(tmp_path / "m.tif")[0], both(values)[5:65, 200:290])


def test_a_hole_has_no_data(made, tmp_path):
    path, values = made
    hole = dict(
        ACROSS, coordinates=[*ACROSS["coordinates"], ring(X0 + 2200, Y0 - 400, X0 + 2600, Y0 - 200)]
    )
    mosaic(path, tmp_path / "m.tif", polygon=hole, year=2020)
    expected = both(values)[5:65, 200:290].copy()
    expected[15:35, 20:60] = np.nan
    same(read(tmp_path / "m.tif")[0], expected)


def nearest(values, crs, transform, height, width, source="EPSG:32631", corner=(X0, Y0)):
    """What lies under the centres of another grid's pixels, one at a time."""
    to = pyproj.Transformer.from_crs(crs, source, always_xy=True)
    out = np.full((height, width, values.shape[2]), np.nan, np.float32)
    for row in range(height):
        for column in range(width):
            x, y = to.transform(*(rasterio.Affine(*transform) @ (column + 0.5, row + 0.5)))
            r, c = int((corner[1] - y) // 10), int((x - corner[0]) // 10)
            if 0 <= r < values.shape[0] and 0 <= c < values.shape[1]:
                out[row, column] = values[r, c]
    return out


def template(path, crs, transform, height, width):
    grid = {"height": height, "width": width, "transform": rasterio.Affine(*transform)}
    with rasterio.open(path, "w", "GTiff", count=1, dtype="uint8", crs=crs, **grid) as raster:
        raster.write(np.zeros((1, height, width), np.uint8))
    return path


def place_in(crs, x, y):
    return pyproj.Transformer.from_crs(32631, crs, always_xy=True).transform(x, y)


@pytest.mark.parametrize(
    ("crs", "a", "b"),
    [
        ("EPSG:3035", 13.0, 0.0),
        ("EPSG:3035", 6.0, 4.0),
        ("EPSG:4326", 0.0002, 0.0),
        ("EPSG:32631", 7.0, 0.0),
        ("EPSG:3035", 700.0, 0.0),
    ],
)
def test_a_template_gives_the_grid(made, tmp_path, crs, a, b):
    """Another projection, a turned grid, degrees, a finer and a much coarser lattice."""
    path, values = made
    x, y = place_in(crs, X0 + 1800 - 20 * min(a, 13), Y0 + 60)
    transform = (a, b, x, b, -a, y)
    height, width = (64, 80) if a < 100 else (3, 4)
    given = template(tmp_path / "t.tif", crs, transform, height, width)
    mosaic(path, tmp_path / "m.tif", template=given, year=2020)
    found, profile, epsg, _ = read(tmp_path / "m.tif")
    assert epsg == int(crs[5:]) and tuple(profile["transform"])[:6] == transform
    same(found, nearest(both(values), crs, transform, height, width))
    assert np.isfinite(found).any() and np.isnan(found).any()


def test_zones_meet_in_one_grid(tmp_path):
    """Two tiles of two zones, where the zones meet at 6 degrees east."""
    west = tile("west", 60, 80, x0=711_000.0, y0=5_630_000.0)
    x, y = pyproj.Transformer.from_crs(32631, 32632, always_xy=True).transform(711_500, 5_630_000)
    corner = (round(x, -1), round(y, -1))
    east = tile("east", 60, 80, x0=corner[0], y0=corner[1], zone=32632)
    path, values = store(tmp_path / "x.zarr", west, east)
    around = lonlat(rectangle(711_000, 5_629_450, 712_200, 5_629_950))
    mosaic(path, tmp_path / "m.tif", polygon=around, crs="EPSG:32632")
    found, profile, epsg, _ = read(tmp_path / "m.tif")
    assert epsg == 32632
    transform = tuple(profile["transform"])[:6]
    grid = ("EPSG:32632", transform, *found.shape[:2])
    one = nearest(values[east], *grid, source="EPSG:32632", corner=corner)
    other = nearest(values[west], *grid, source="EPSG:32631", corner=(711_000.0, 5_630_000.0))
    # Zone 32's own tile is taken as it is, zone 31's fills what it leaves.
    expected = np.where(np.isfinite(one), one, other)
    inside = np.isfinite(found)
    same(found[inside], expected[inside])
    alone = inside & ~np.isfinite(one)
    assert (inside & np.isfinite(one)).any() and alone.any()
    # Without a CRS it is that of the zone with more of it: most of the polygon is in the west.
    mosaic(
        path, tmp_path / "w.tif", polygon=lonlat(rectangle(711_050, 5_629_450, 711_500, 5_629_950))
    )
    assert read(tmp_path / "w.tif")[2] == 32631


def test_a_resolution(made, tmp_path):
    path, values = made
    mosaic(path, tmp_path / "m.tif", polygon=ACROSS, year=2020, resolution=5.0)
    same(read(tmp_path / "m.tif")[0], both(values)[5:65, 200:290].repeat(2, 0).repeat(2, 1))
    mosaic(path, tmp_path / "e.tif", polygon=ACROSS, year=2020, crs="EPSG:3035", resolution=20.0)
    transform = read(tmp_path / "e.tif")[1]["transform"]
    assert transform.a == 20 and transform.c % 20 == 0 and transform.f % 20 == 0
    with pytest.raises(InputError, match="give it in degrees"):
        mosaic(path, tmp_path / "d.tif", polygon=ACROSS, year=2020, crs="EPSG:4326")


def test_bilinear_is_exact_on_a_plane_and_at_centres(tmp_path):
    """Values that rise evenly, and whose halves float32 holds, are met half way between pixels."""
    key = tile("plane", 40, 50)
    y, x = np.mgrid[:40, :50].astype(np.float32)
    values = np.stack([x, y, x + 2 * y], axis=-1)
    values[20:, 30:] = np.nan
    counts = np.ones((40, 50, 3), np.uint16)
    write(tmp_path / "n", {key: (values, None, counts)}, replace(FLOAT, dims=3, prefixes=()))
    for name, shift, add in (("same", 0, 0), ("half", 5, 0.5)):
        grid = (10.0, 0.0, X0 + 10 + shift, 0.0, -10.0, Y0 - 10 - shift)
        given = template(tmp_path / f"{name}_t.tif", "EPSG:32631", grid, 12, 20)
        mosaic(tmp_path / "n", tmp_path / f"{name}.tif", template=given, resampling="bilinear")
        found = read(tmp_path / f"{name}.tif")[0]
        same(found, values[1:13, 1:21] + np.array([add, add, 3 * add], np.float32))
    # At the edge of the data a pixel that is there has what its neighbours with data say.
    given = template(
        tmp_path / "e_t.tif", "EPSG:32631", (10.0, 0.0, X0 + 280, 0.0, -10.0, Y0 - 180), 4, 6
    )
    mosaic(tmp_path / "n", tmp_path / "e.tif", template=given, resampling="bilinear")
    same(read(tmp_path / "e.tif")[0], values[18:22, 28:34])


def test_quantized(made, tmp_path):
    path, _ = made
    mosaic(path, tmp_path / "m.tif", polygon=TRIANGLE, year=2020, quantized=True)
    assert names(tmp_path) == ["m.tif", "m_scales.tif"]
    codes, profile, _, _ = read(tmp_path / "m.tif")
    scales = read(tmp_path / "m_scales.tif")[0][..., 0]
    assert codes.dtype == np.int8 and profile["nodata"] == -128 and scales.dtype == np.float32
    assert (codes[np.isnan(scales)] == -128).all() and codes[np.isfinite(scales)].min() > -128
    mosaic(path, tmp_path / "f.tif", polygon=TRIANGLE, year=2020)
    same(tf.dequantize(codes, scales), read(tmp_path / "f.tif")[0])


def test_a_folder_of_npy_files(tmp_path):
    data = {key: fake(key, seed=k) for k, key in enumerate((LEFT, RIGHT))}
    values = {key: tf.dequantize(*d[:2]) for key, d in data.items()}
    write(tmp_path / "n", {k: (values[k], None, d[2]) for k, d in data.items()}, FLOAT)
    mosaic(tmp_path / "n", tmp_path / "m.tif", polygon=ACROSS)
    same(read(tmp_path / "m.tif")[0], both(values)[5:65, 200:290])
    with pytest.raises(StoreError, match="not codes and scales"):
        mosaic(tmp_path / "n", tmp_path / "q.tif", polygon=ACROSS, quantized=True)


LINE = {"type": "LineString", "coordinates": [[3, 50], [4, 51]]}
BAD = {
    "no region": (dict(), "expected a polygon or a template"),
    "both": (dict(polygon=ACROSS, template="t.tif"), "and not both"),
    "year": (dict(polygon=ACROSS, year=None), "year: give one, .* has 2020, 2021"),
    "no such year": (dict(polygon=ACROSS, year=1999), "has 2020, 2021, got 1999"),
    "elsewhere": (dict(polygon=rectangle(X0, Y0 + 100, X0 + 100, Y0 + 900)), "no pixel with data"),
    "far away": (
        dict(polygon={"type": "Polygon", "coordinates": [ring(100, 10, 101, 11)]}),
        "no pixel with data lies in it",
    ),
    "a line": (dict(polygon=LINE), "got 'LineString'"),
    "no file": (dict(polygon="nothing.geojson"), "expected a GeoJSON file"),
    "short ring": (
        dict(polygon={"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]}),
        "rings of at least four",
    ),
    "words": (
        dict(polygon={"type": "Polygon", "coordinates": [[["a", "b"]] * 4]}),
        "rings of numbers",
    ),
    "crs of the polygon": (dict(polygon=dict(ACROSS, crs={"type": "link"})), "a named crs"),
    "crs": (dict(polygon=ACROSS, crs="EPSG:0"), "one that pyproj reads"),
    "resolution": (dict(polygon=ACROSS, resolution=0.0), "a number above 0"),
    "grid of a template": (dict(template="t.tif", crs="EPSG:3035"), "a template has its own"),
    "no template": (dict(template="nothing.tif"), "template nothing.tif: expected a raster"),
    "resampling": (dict(polygon=ACROSS, resampling="cubic"), "expected nearest, bilinear"),
    "blended codes": (dict(polygon=ACROSS, resampling="bilinear", quantized=True), "be blended"),
    "format": (dict(polygon=ACROSS, format="png"), "expected cog, geotiff"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments(made, tmp_path, case):
    options, message = BAD[case]
    with pytest.raises(InputError, match=message):
        mosaic(made[0], tmp_path / "m.tif", **{"year": 2020, **options})
    assert not list(tmp_path.iterdir())


def test_a_template_elsewhere_writes_nothing(made, tmp_path):
    given = template(tmp_path / "t.tif", "EPSG:32631", (10.0, 0.0, X0, 0.0, -10.0, Y0 + 900), 5, 5)
    with pytest.raises(InputError, match="no pixel with data there in 2020"):
        mosaic(made[0], tmp_path / "m.tif", template=given, year=2020)
    assert names(tmp_path) == ["t.tif"]


def test_a_template_without_a_place(made, tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        raster = rasterio.open(
            tmp_path / "t.tif", "w", driver="GTiff", height=2, width=2, count=1, dtype="uint8"
        )
        raster.close()
        with pytest.raises(InputError, match="a raster with a CRS"):
            mosaic(made[0], tmp_path / "m.tif", template=tmp_path / "t.tif", year=2020)


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_full_disk_leaves_nothing(made, tmp_path, size):
    with full_disk(size), pytest.raises(StoreError, match="could not be written"):
        mosaic(made[0], tmp_path / "m.tif", polygon=ACROSS, year=2020, quantized=True)
    assert not list(tmp_path.iterdir())


def test_command_line(made, tmp_path, run):
    path, values = made
    region = tmp_path / "region.geojson"
    region.write_text(json.dumps(ACROSS))
    out = tmp_path / "m.tif"
    done = run("mosaic", path, "-o", out, "--polygon", region, "--year", 2020, "--bands", "4-5")
    assert done.code == 0 and str(out) in done.out
    same(read(out)[0], both(values)[5:65, 200:290, 4:6])
    again = run("mosaic", path, "-o", out, "--template", out, "--year", 2020)
    assert again.code == 1 and "exists; give overwrite (--overwrite)" in again.err
    over = run("mosaic", path, "-o", tmp_path / "n.tif", "--template", out, "--year", 2020)
    assert over.code == 0
    same(read(tmp_path / "n.tif")[0], both(values)[5:65, 200:290])
    with pytest.raises(SystemExit) as ended:
        run("mosaic", path, "-o", out)
    assert ended.value.code == 2
