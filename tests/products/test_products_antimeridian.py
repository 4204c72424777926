"""Stores near and across the 180th meridian: STAC items, mosaics, labels and places of a probe."""

import json
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

import tessera_fast as tf
from fake_tiles import fake, tile, write
from products_outputs import names
from tessera_fast.errors import InputError, StoreError
from tessera_fast.probing.images import Image
from tessera_fast.probing.labels import read_labels
from tessera_fast.probing.places import places_of
from tessera_fast.products.globe import bounds, cut, joined, narrowest
from tessera_fast.products.stac import stac_items

pyproj = pytest.importorskip("pyproj", reason="a store needs pyproj")
pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")


def at(lon, lat, name="t", size=64, zone=None):
    """A tile whose north-west corner is near a place; in the place's own zone unless told."""
    zone = zone or int((lon + 180) // 6) % 60 + 1
    code = (32600 if lat >= 0 else 32700) + zone
    x, y = pyproj.Transformer.from_crs(4326, code, always_xy=True).transform(lon, lat)
    return tile(name, size, size, x0=round(x, -1), y0=round(y, -1), zone=code)


# ---- rings


def area(rings):
    return sum(float((r[:-1, 0] * r[1:, 1] - r[1:, 0] * r[:-1, 1]).sum()) / 2 for r in rings)


def crosses_itself(ring):
    edges = list(pairwise(ring.tolist()))

    def side(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    for i, (a, b) in enumerate(edges):
        for c, d in edges[i + 2 :]:
            if a in (c, d) or b in (c, d):
                continue
            if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
                return True
    return False


def check_rings(rings):
    """What RFC 7946 asks of a polygon's exterior."""
    for ring in rings:
        assert len(ring) >= 4 and (ring[0] == ring[-1]).all()
        assert (np.abs(ring[:, 0]) <= 180).all() and (np.abs(ring[:, 1]) <= 90).all()
        assert np.abs(np.diff(ring[:, 0])).max() < 180
        assert area([ring - ring[0]]) > 0  # counterclockwise
        assert not crosses_itself(ring)


BOX = np.array([[-1.0, 0], [1, 0], [1, 2], [-1, 2], [-1, 0]])
NOTCH = np.array(
    [[-1.0, 0], [1, 0], [1, 1], [-0.5, 1], [-0.5, 2], [1, 2], [1, 3], [-1, 3], [-1, 0]]
)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("ring", "shift", "parts"),
    [
        (BOX, 0, 1),
        (BOX, 180, 2),
        (BOX, -180, 2),
        (BOX, 179, 1),
        (BOX, 181, 1),
        (BOX, 540, 2),
        (NOTCH, 180, 3),
        (NOTCH, -180, 3),
        (-NOTCH, 180, 3),
        (NOTCH, 179, 1),
        (NOTCH, 179.3, 3),
        (NOTCH, 180.5, 2),
        (NOTCH, 0, 1),
    ],
)
def test_a_ring_is_cut_at_the_meridian(ring, shift, parts, turned):
    moved = ring + np.array([shift, 0.0])
    pieces = cut(moved[::-1] if turned else moved)
    check_rings(pieces)
    assert len(pieces) == parts
    assert round(area(pieces), 6) == round(abs(area([ring])), 6)


def test_the_narrowest_box():
    assert narrowest([(1, 2), (3, 4)]) == (1, 4)
    assert narrowest([(179, 180), (-180, -179.5)]) == (179, -179.5)
    assert narrowest([(177, 178), (-178, -177)]) == (177, -177)
    assert narrowest([(-170, -10), (5, 20), (30, 40)]) == (-170, 40)
    assert joined([[179, 1, -179, 2], [176, 0, 177, 1]]) == [176, 0, -179, 2]
    assert joined([[179, 1, -179, 2], [-170, -5, -169, 1]]) == [179, -5, -169, 2]
    assert bounds(cut(BOX + np.array([180, 5.0]))) == [179, 5, -179, 7]


# ---- STAC


@pytest.mark.parametrize(
    "place",
    [(179.995, -17.0), (179.995, 52.0), (179.995, 65.5), (179.998, -0.001), (179.99, 72.0)],
    ids=["Fiji", "Aleutians", "Chukotka", "equator", "Wrangel"],
)
def test_an_item_across_the_meridian(tmp_path, place):
    pystac = pytest.importorskip("pystac", reason="items are made with pystac")
    key = at(*place, zone=60)
    write(tmp_path / "x.zarr", {key: fake(key)})
    made = stac_items(tmp_path / "x.zarr", tmp_path / "stac")
    (item,) = pystac.Collection.from_file(str(made)).get_items()
    west, south, east, north = item.bbox
    assert 179.9 < west <= 180 and -180 <= east < -179.9 and south < north
    assert item.geometry["type"] == "MultiPolygon"
    rings = [np.array(ring) for (ring,) in item.geometry["coordinates"]]
    check_rings(rings)
    assert sorted(r[:, 0].mean() > 0 for r in rings) == [False, True]
    # each side ends at the meridian, between the same two latitudes
    ends = [sorted(r[np.abs(r[:, 0]) == 180][:, 1]) for r in rings]
    assert ends[0][0] == ends[1][0] and ends[0][-1] == ends[1][-1]
    # all corners are there, and the ground has the tile's size
    there = pyproj.Transformer.from_crs(4326, 32660, always_xy=True)
    moved = [np.stack(there.transform(*r.T), -1) for r in rings]
    metres = area([m - m[0] for m in moved])
    assert round(metres / 640**2, 3) == 1
    collection = json.loads(made.read_text())
    assert collection["extent"]["spatial"]["bbox"] == [item.bbox]


def test_zones_1_and_60_in_one_store(tmp_path):
    pystac = pytest.importorskip("pystac", reason="items are made with pystac")
    keys = [at(178.5, -17, "a"), at(-178.5, -17, "b"), at(-178.5, 10, "c")]
    write(tmp_path / "x.zarr", {key: fake(key, seed=k) for k, key in enumerate(keys)})
    made = stac_items(tmp_path / "x.zarr", tmp_path / "stac")
    collection = pystac.Collection.from_file(str(made))
    items = {item.id: item for item in collection.get_items()}
    assert set(items) == {"x_utm60_2020", "x_utm01_2020"}
    for item in items.values():
        check_rings([np.array(ring) for (ring,) in item.geometry["coordinates"]])
        assert item.bbox[0] < item.bbox[2]
    assert len(items["x_utm01_2020"].geometry["coordinates"]) == 2
    west, south, east, north = collection.extent.spatial.bboxes[0]
    assert (round(west, 1), round(east, 1), round(south), round(north)) == (178.5, -178.5, -17, 10)


def test_two_tiles_on_either_side_in_one_zone(tmp_path):
    """Neither crosses, but the box around both does."""
    pystac = pytest.importorskip("pystac", reason="items are made with pystac")
    keys = [at(179.9, 52, "a"), at(-179.9, 52, "b", zone=60)]
    write(tmp_path / "x.zarr", {key: fake(key, seed=k) for k, key in enumerate(keys)})
    (item,) = pystac.Collection.from_file(
        str(stac_items(tmp_path / "x.zarr", tmp_path / "stac"))
    ).get_items()
    assert len(item.geometry["coordinates"]) == 2
    assert 179.8 < item.bbox[0] < 180 and -180 < item.bbox[2] < -179.8


@pytest.mark.parametrize("place", [(3.0, 50.8), (179.99999, -17.0), (-60.0, -3.1), (25.0, 83.5)])
def test_one_pixel(tmp_path, place):
    pystac = pytest.importorskip("pystac", reason="items are made with pystac")
    key = at(*place, size=1)
    write(tmp_path / "x.zarr", {key: fake(key, empty=0)})
    (item,) = pystac.Collection.from_file(
        str(stac_items(tmp_path / "x.zarr", tmp_path / "stac"))
    ).get_items()
    check_rings([np.array(ring) for (ring,) in item.geometry["coordinates"]])
    west, south, east, north = item.bbox
    side = 0.002  # degrees: a pixel has 10 m, and longitudes are narrow in the north
    assert 0 < north - south < side and 0 < (east - west) % 360 < side


def test_a_tile_over_the_equator(tmp_path):
    """Its northing is that of the north; one polygon, both hemispheres."""
    pystac = pytest.importorskip("pystac", reason="items are made with pystac")
    key = at(-60.0, 0.002)
    write(tmp_path / "x.zarr", {key: fake(key)})
    (item,) = pystac.Collection.from_file(
        str(stac_items(tmp_path / "x.zarr", tmp_path / "stac"))
    ).get_items()
    assert item.bbox[1] < 0 < item.bbox[3] and len(item.geometry["coordinates"]) == 1


def test_a_tile_at_the_pole_is_refused(tmp_path):
    pytest.importorskip("pystac", reason="items are made with pystac")
    key = tile("pole", 64, 64, x0=500_000.0 - 320, y0=9_997_965.0 + 320, zone=32660)
    write(tmp_path / "x.zarr", {key: fake(key)})
    with pytest.raises(StoreError, match="reaches a pole"):
        stac_items(tmp_path / "x.zarr", tmp_path / "stac")
    assert names(tmp_path) == ["x.zarr", "x.zarr.state"]


# ---- mosaics


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A tile at the eastern edge of zone 60 and one at the western edge of zone 1; 2 km apart."""
    path = tmp_path_factory.mktemp("both") / "x.zarr"
    keys = [at(179.990, -17, "west"), at(-179.998, -17, "east")]
    write(path, {key: fake(key, seed=k, empty=0) for k, key in enumerate(keys)})
    return path


def box(west, east, south=-17.004, north=-17.001):
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


FORMS = {
    "181": {"type": "Polygon", "coordinates": [box(179.991, 180.006)]},
    "-181": {"type": "Polygon", "coordinates": [box(-180.009, -179.994)]},
    "a jump": {"type": "Polygon", "coordinates": [box(179.991, -179.994)]},
    "cut": {
        "type": "MultiPolygon",
        "coordinates": [[box(-180, -179.994)], [box(179.991, 180)]],
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "grid", [{}, {"crs": "EPSG:32660"}, {"crs": "EPSG:4326", "resolution": 1e-4}]
)
def test_a_mosaic_of_a_polygon_across_the_meridian(both, tmp_path, form, grid):
    """The same raster whichever way the polygon is written, with pixels of both zones."""
    rasterio = pytest.importorskip("rasterio", reason="a mosaic is a GeoTIFF")
    made = tf.mosaic(
        both, tmp_path / "a.tif", polygon=FORMS[form], bands=[0], format="geotiff", **grid
    )
    like = tf.mosaic(
        both, tmp_path / "b.tif", polygon=FORMS["181"], bands=[0], format="geotiff", **grid
    )
    with rasterio.open(made) as a, rasterio.open(like) as b:
        values = a.read(1)
        assert a.crs == b.crs and a.width < 200 and a.height < 80
        turn = a.transform.c - b.transform.c
        assert round(turn) in (0, -360) and a.shape == b.shape
        inside = np.isfinite(values)
        columns = np.flatnonzero(inside.any(axis=0))
        assert columns[-1] - columns[0] > 120  # from the one tile to the other
        assert inside[:, : a.width // 2].any() and inside[:, a.width // 2 :].any()
        assert (inside != np.isfinite(b.read(1))).mean() < 0.01


def test_a_crs_that_ends_at_the_meridian_is_refused(both, tmp_path):
    pytest.importorskip("rasterio", reason="a mosaic is a GeoTIFF")
    for form in FORMS.values():
        with pytest.raises(InputError, match="lies across the 180th meridian, where EPSG:3857"):
            tf.mosaic(both, tmp_path / "a.tif", polygon=form, crs="EPSG:3857")
    west = {"type": "Polygon", "coordinates": [box(179.991, 179.995)]}
    tf.mosaic(both, tmp_path / "a.tif", polygon=west, crs="EPSG:3857", bands=[0])


def test_a_template_beyond_180_degrees(both, tmp_path):
    rasterio = pytest.importorskip("rasterio", reason="a mosaic is a GeoTIFF")
    profile = {
        "driver": "GTiff",
        "height": 30,
        "width": 150,
        "count": 1,
        "dtype": "uint8",
        "crs": "EPSG:4326",
    }
    found = []
    for west in (179.991, -180.009):
        transform = rasterio.Affine(1e-4, 0, west, 0, -1e-4, -17.001)
        with rasterio.open(tmp_path / "t.tif", "w", transform=transform, **profile) as file:
            file.write(np.zeros((1, 30, 150), np.uint8))
        made = tf.mosaic(
            both, tmp_path / "a.tif", template=tmp_path / "t.tif", bands=[0], overwrite=True
        )
        with rasterio.open(made) as file:
            found.append(file.read(1))
    assert np.isfinite(found[0][:, :40]).any() and np.isfinite(found[0][:, -40:]).any()
    assert (np.isfinite(found[0]) == np.isfinite(found[1])).mean() > 0.99


# ---- labels and places of a probe


def image(name, west, width=20, crs="EPSG:4326", step=1e-4):
    transform = (step, 0.0, west, 0.0, -step, -17.0)
    return Image(name, 10, width, 4, lambda a, b: np.zeros((b - a, width, 4)), crs, transform)


@pytest.mark.parametrize("west", [179.99, -180.01])
def test_labels_on_the_other_side_of_the_meridian(tmp_path, west):
    rasterio = pytest.importorskip("rasterio", reason="labels are a raster")
    numbers = np.arange(1, 20 * 300 + 1, dtype=np.int32).reshape(20, 300)
    with rasterio.open(
        tmp_path / "l.tif",
        "w",
        driver="GTiff",
        height=20,
        width=300,
        count=1,
        dtype="int32",
        crs="EPSG:4326",
        transform=rasterio.Affine(1e-4, 0, west, 0, -1e-4, -17.0),
    ) as file:
        file.write(numbers, 1)
    for name in (180.005, -179.995):
        ((values, known),) = read_labels(str(tmp_path / "l.tif"), [image("a", name)])
        assert known.all() and (values == numbers[:10, 150:170]).all()


def test_labels_from_a_raster_of_the_whole_world(tmp_path):
    """Both of its ends are read, and not what is between them."""
    rasterio = pytest.importorskip("rasterio", reason="labels are a raster")
    width = 3_600_000  # 36 m of the equator; 20 rows of it are 72 MB
    with rasterio.open(
        tmp_path / "l.tif",
        "w",
        driver="GTiff",
        height=20,
        width=width,
        count=1,
        dtype="uint8",
        crs="EPSG:4326",
        transform=rasterio.Affine(1e-4, 0, -180, 0, -1e-4, -17.0),
        tiled=True,
        SPARSE_OK=True,
    ) as file:
        for column, value in ((0, 1), (width - 256, 2)):
            window = rasterio.windows.Window(column, 0, 256, 20)
            file.write(np.full((1, 20, 256), value, np.uint8), window=window)
    tracemalloc.start()
    ((values, known),) = read_labels(str(tmp_path / "l.tif"), [image("a", 179.999)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert known.all() and (values[:, :10] == 2).all() and (values[:, 10:] == 1).all()
    assert peak < 20e6


def test_places_know_that_181_is_minus_179():
    pytest.importorskip("rasterio", reason="places are compared by GDAL")
    same = [image("a", 180.005), image("b", -179.9946)]
    with pytest.raises(InputError, match="but they overlap"):
        places_of(same)
    assert places_of([image("a", 180.005), image("b", -179.993)]) == ([0, 1], True)
    assert places_of([image("a", 180.005), image("b", -179.99)]) == ([0, 1], False)
    utm = at(-179.995, -17.0005, size=5)
    far = Image("u", 5, 5, 4, same[0].read, utm.crs, utm.transform)
    with pytest.raises(InputError, match="but they overlap"):
        places_of([far, image("a", 180.004)])
