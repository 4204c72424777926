"""STAC: a collection that pystac reads, and items that say where, when and what made of."""

import shutil
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import pytest

from fake_tiles import FLOAT, PROVENANCE, X0, Y0, fake, tile, write
from products_outputs import EAST, LATER, LEFT, RIGHT, full_disk, names, same, store
from tessera_fast.errors import StoreError
from tessera_fast.products.stac import stac_items

pystac = pytest.importorskip("pystac", reason="items are made with pystac")
pyproj = pytest.importorskip("pyproj", reason="a store needs pyproj")
pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
FAR = tile("far", 64, 64, x0=X0 + 70_000, y0=Y0 - 7_000)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return store(tmp_path_factory.mktemp("store") / "x.zarr", LEFT, RIGHT, LATER, EAST, FAR)[0]


def read(collection):
    return {item.id: item for item in pystac.Collection.from_file(str(collection)).get_items()}


def test_a_collection_with_an_item_a_zone_and_year(path, tmp_path):
    made = stac_items(path, tmp_path / "stac")
    assert made == tmp_path / "stac" / "collection.json"
    collection = pystac.Collection.from_file(str(made))
    assert collection.license == "other" and "UNTRAINED" in collection.title
    # zone 32 has no tile in 2021: there is nothing to describe
    assert set(read(made)) == {"x_utm31_2020", "x_utm31_2021", "x_utm32_2020"}
    assert names(tmp_path / "stac") == [
        "collection.json",
        "x_utm31_2020.json",
        "x_utm31_2021.json",
        "x_utm32_2020.json",
    ]
    first, last = collection.extent.temporal.intervals[0]
    assert (first.year, last.year) == (2020, 2021)
    west, south, east, north = collection.extent.spatial.bboxes[0]
    assert 3 < west < east < 10 and 50 < south < north < 51


def test_what_an_item_says(path, tmp_path):
    item = read(stac_items(path, tmp_path / "stac"))["x_utm31_2020"]
    p = item.properties
    assert item.datetime is None and item.common_metadata.gsd == 10.0
    assert item.common_metadata.start_datetime == datetime(2020, 1, 1, tzinfo=timezone.utc)
    assert item.common_metadata.end_datetime == datetime(
        2020, 12, 31, 23, 59, 59, tzinfo=timezone.utc
    )
    assert p["proj:code"] == "EPSG:32631"
    assert p["proj:transform"] == [10.0, 0.0, X0, 0.0, -10.0, Y0, 0.0, 0.0, 1.0]
    assert p["proj:shape"] == [764, 7064]
    assert p["proj:bbox"] == [X0, Y0 - 7640, X0 + 70_640, Y0]
    assert p["geoemb:dimensions"] == 24 and p["geoemb:quantization"]["method"] == "per_pixel_scale"
    assert p["geoemb:model"] == f"urn:tessera-fast:untrained:v2-nano:sha256:{'ab' * 32}"
    assert p["processing:software"] == {"tessera_fast": "0.1"} and p["tessera_fast:untrained"]
    assert "ab" * 32 in p["processing:lineage"] and "UNTRAINED" in p["processing:lineage"]


def test_the_footprint_is_that_of_the_tiles(path, tmp_path):
    item = read(stac_items(path, tmp_path / "stac"))["x_utm31_2020"]
    outlines = [np.array(polygon) for (polygon,) in item.geometry["coordinates"]]
    back = pyproj.Transformer.from_crs(4326, 32631, always_xy=True)
    boxes = []
    for outline in outlines:
        assert (outline[0] == outline[-1]).all()
        x, y = outline.T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # counterclockwise
        boxes.append([np.rint(f(v)) for v in back.transform(x, y) for f in (np.min, np.max)])
    # The two that touch are one; the third is 70 km off, and the ground between is no footprint.
    assert boxes == [
        [X0, X0 + 3100, Y0 - 700, Y0],
        [X0 + 70_000, X0 + 70_640, Y0 - 7640, Y0 - 7000],
    ]
    same(
        item.bbox,
        [*np.min([o.min(0) for o in outlines], 0), *np.max([o.max(0) for o in outlines], 0)],
    )


def test_the_asset_is_the_group(path, tmp_path):
    xarray = pytest.importorskip("xarray")
    item = read(stac_items(path, tmp_path / "deep" / "stac"))["x_utm32_2020"]
    asset = item.assets["embeddings"]
    assert asset.href.startswith("..") and asset.media_type == pystac.MediaType.ZARR
    group = xarray.open_dataset(
        asset.get_absolute_href(), **asset.extra_fields["xarray:open_kwargs"]
    )
    assert group.sizes["band"] == 24 and group.sizes["y"] == 40
    group.close()


def test_a_year_that_begins_in_july(tmp_path):
    write(tmp_path / "x.zarr", {RIGHT: fake(RIGHT)}, replace(PROVENANCE, period="07-01/06-30"))
    (item,) = read(stac_items(tmp_path / "x.zarr", tmp_path / "stac")).values()
    assert item.common_metadata.start_datetime == datetime(2020, 7, 1, tzinfo=timezone.utc)
    assert item.common_metadata.end_datetime.date().isoformat() == "2021-06-30"


def test_without_the_state_the_footprint_is_around_the_pixels(path, tmp_path):
    shutil.copytree(path, tmp_path / "x.zarr")
    item = read(stac_items(tmp_path / "x.zarr", tmp_path / "stac"))["x_utm31_2020"]
    assert len(item.geometry["coordinates"]) == 1
    assert item.bbox[2] - item.bbox[0] > 0.9  # degrees, 70 km


def test_trained_weights_are_not_called_untrained(tmp_path):
    write(tmp_path / "x.zarr", {RIGHT: fake(RIGHT)}, replace(PROVENANCE, trained=True))
    made = stac_items(tmp_path / "x.zarr", tmp_path / "stac")
    assert "UNTRAINED" not in made.read_text()
    (item,) = read(made).values()
    assert item.properties["tessera_fast:untrained"] is False
    assert "UNTRAINED" not in item.properties["processing:lineage"]


def test_what_is_refused(path, tmp_path):
    write(
        tmp_path / "n",
        {RIGHT: (np.ones((70, 60, 24), np.float32), None, np.ones((70, 60, 3), np.uint16))},
        FLOAT,
    )
    with pytest.raises(StoreError, match="expected a Zarr store, got a folder"):
        stac_items(tmp_path / "n", tmp_path / "stac")
    with pytest.raises(StoreError, match="lies in it"):
        stac_items(path, path / "stac")
    stac_items(path, tmp_path / "stac")
    (tmp_path / "stac" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="give overwrite"):
        stac_items(path, tmp_path / "stac")
    assert (tmp_path / "stac" / "mine.txt").exists()
    with full_disk(1000), pytest.raises(StoreError, match="could not be written"):
        stac_items(path, tmp_path / "stac", overwrite=True)
    assert names(tmp_path) == ["n", "stac"] and len(names(tmp_path / "stac")) == 5


def test_command_line(path, tmp_path, run):
    done = run("stac", path, "-o", tmp_path / "stac")
    assert done.code == 0 and done.out.startswith("3 items -> ")
    assert run("stac", path, "-o", tmp_path / "stac").code == 1
    assert run("stac", path, "-o", tmp_path / "stac", "--overwrite").code == 0
    assert len(read(tmp_path / "stac" / "collection.json")) == 3
