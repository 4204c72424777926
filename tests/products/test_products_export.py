"""Exports of a store hold its values exactly, say what they are, and appear whole or not at all."""

import shutil

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
    names,
    same,
    store,
    tiff_directories,
)
from tessera_fast.errors import InputError, StoreError
from tessera_fast.products.export import export_store
from tessera_fast.products.parts import clusters, parts
from tessera_fast.store.reader import open_embeddings, tiles_of

rasterio = pytest.importorskip("rasterio", reason="GeoTIFFs are read with rasterio")
zarr = pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    return store(tmp_path_factory.mktemp("store") / "x.zarr", LEFT, RIGHT, LATER, EAST)


@pytest.fixture
def made(_made, tmp_path):
    path, values = _made
    shutil.copytree(path, tmp_path / "x.zarr")
    shutil.copytree(f"{path}.state", tmp_path / "x.zarr.state")
    return tmp_path / "x.zarr", values


def test_tiles_of(made):
    found = {(t.name, t.year): t for t in tiles_of(made[0])}
    assert set(found) == {("left", 2020), ("right", 2020), ("left", 2021), ("east", 2020)}
    right = found["right", 2020]
    assert right.crs == "EPSG:32631" and (right.height, right.width) == (70, 60)
    assert right.transform == (10.0, 0.0, X0 + 2500, 0.0, -10.0, Y0)


def test_a_damaged_marker(made):
    (made[0].with_name("x.zarr.state") / "done" / "left.2020.json").write_text("{}")
    with pytest.raises(StoreError, match="Embed the tile again"):
        tiles_of(made[0])


@pytest.mark.parametrize("form", ["geotiff", "cog"])
def test_geotiff(made, tmp_path, form):
    path, values = made
    files = export_store(path, tmp_path / "maps", format=form)
    if form == "cog":
        for file in files:
            assert_cog(file)
    assert names(tmp_path / "maps") == sorted(f.name for f in files)
    by_name = {f.name: f for f in files}
    # All centres by hand: the tiles' corners are at 3.02 degrees east, the zone's next 6 further.
    assert set(by_name) == {
        "grid_3.04_50.82_2020.tiff",
        "grid_3.06_50.82_2020.tiff",
        "grid_3.04_50.82_2021.tiff",
        "grid_9.02_50.82_2020.tiff",
    }
    with rasterio.open(by_name["grid_3.06_50.82_2020.tiff"]) as right:
        same(np.moveaxis(right.read(), 0, -1), values[RIGHT])
        assert right.crs.to_epsg() == 32631
        assert tuple(right.transform)[:6] == (10.0, 0.0, X0 + 2500, 0.0, -10.0, Y0)
        assert right.dtypes == ("float32",) * 24 and np.isnan(right.nodata)
        assert right.descriptions[:2] == ("embedding 0", "embedding 1")
        structure = right.tags(ns="IMAGE_STRUCTURE")
        assert structure["COMPRESSION"] == "DEFLATE" and structure["PREDICTOR"] == "3"
        assert structure["INTERLEAVE"] == "BAND"
        assert right.block_shapes[0] == (256, 256)
        tags = right.tags()
    assert tags["TESSERA_YEAR"] == "2020" and tags["TESSERA_MODEL"] == "v2-nano"
    assert tags["TESSERA_UNTRAINED"] == "YES" and tags["TESSERA_PRECISION"] == "fp32"
    assert tags["TESSERA_WEIGHTS_SHA256"] == "ab" * 32
    assert tags["TESSERA_DATASET_VARIANT"] == "tessera_fast:v2-nano:untrained"
    assert tags["TESSERA_DATASET_VERSION"] == "tessera_fast-0.1"
    for key, name in (
        (LEFT, "3.04_50.82_2020"),
        (LATER, "3.04_50.82_2021"),
        (EAST, "9.02_50.82_2020"),
    ):
        with rasterio.open(by_name[f"grid_{name}.tiff"]) as raster:
            same(np.moveaxis(raster.read(), 0, -1), values[key])


def test_a_cog_has_overviews_that_leave_out_what_is_not_there(tmp_path):
    key = tile("big", 600, 520)
    codes, scales, counts = fake(key, dims=24)
    codes[:] = 100
    scales[np.isfinite(scales)] = 0.5
    write(tmp_path / "x.zarr", {key: (codes, scales, counts)})
    (file,) = export_store(tmp_path / "x.zarr", tmp_path / "maps", format="cog", bands=[3])
    with rasterio.open(file) as raster:
        assert raster.overviews(1) == [2, 4]
        assert raster.count == 1 and raster.descriptions == ("embedding 3",)
    with rasterio.open(file, overview_level=0) as half:
        values = half.read(1)
    # A fifth of the pixels has no data, and the rest is 50: so is the mean of those that are there.
    assert np.isnan(values).any() and (values[np.isfinite(values)] == 50).all()
    assert_cog(file)
    # An ordinary GeoTIFF has no overviews, and its directory may lie anywhere.
    (plain,) = export_store(tmp_path / "x.zarr", tmp_path / "plain", bands=[3])
    assert len(tiff_directories(plain.read_bytes())) == 1


def test_bands_tiles_and_years(made, tmp_path):
    path, values = made
    (file,) = export_store(path, tmp_path / "m", bands=[5, 0], tiles=["left"], years=[2021])
    assert file.name == "grid_3.04_50.82_2021.tiff"
    with rasterio.open(file) as raster:
        same(np.moveaxis(raster.read(), 0, -1), values[LATER][..., [5, 0]])
        assert raster.descriptions == ("embedding 5", "embedding 0")


def test_tiles_that_would_get_one_name_keep_their_own(tmp_path):
    here, beside = tile("here", 20, 20), tile("beside", 20, 20, x0=X0 + 200)
    path, values = store(tmp_path / "x.zarr", here, beside)
    files = export_store(path, tmp_path / "maps")
    assert {f.name for f in files} == {
        "grid_3.02_50.82_2020_here.tiff",
        "grid_3.02_50.82_2020_beside.tiff",
    }
    with rasterio.open(tmp_path / "maps" / "grid_3.02_50.82_2020_beside.tiff") as raster:
        same(np.moveaxis(raster.read(), 0, -1), values[beside])


def test_a_store_without_its_state_is_a_file_a_zone_and_year(made, tmp_path, run):
    path, values = made
    shutil.rmtree(f"{path}.state")
    done = run("export", path, "-o", tmp_path / "maps")
    assert done.code == 0 and "all data of a zone and year" in done.err
    assert len(names(tmp_path / "maps")) == 3
    with rasterio.open(tmp_path / "maps" / "grid_3.04_50.82_2020.tiff") as raster:
        both = np.concatenate([values[LEFT], values[RIGHT]], axis=1)
        same(np.moveaxis(raster.read(), 0, -1)[:70, :310], both)


def test_npy(made, tmp_path):
    path, values = made
    export_store(path, tmp_path / "n", format="npy", years=[2020])
    assert names(tmp_path / "n") == [
        f"{n}{s}.npy" for n in ("east", "left", "right") for s in ("", "_scales")
    ]
    codes, scales = (
        np.load(tmp_path / "n" / "left.npy"),
        np.load(tmp_path / "n" / "left_scales.npy"),
    )
    assert codes.dtype == np.int8 and scales.dtype == np.float32
    same(tf.dequantize(codes, scales), values[LEFT])
    same(
        open_embeddings(tmp_path / "n").layer("left").values(slice(0, 70), slice(0, 250)),
        values[LEFT],
    )
    export_store(path, tmp_path / "f", format="npy", float32=True, tiles=["left"], bands=[1, 2])
    assert names(tmp_path / "f") == ["left_2020.npy", "left_2021.npy"]  # two years of one tile
    same(np.load(tmp_path / "f" / "left_2021.npy"), values[LATER][..., 1:3])


def test_a_folder_of_npy_files(tmp_path):
    data = fake(RIGHT)
    values = tf.dequantize(*data[:2])
    write(tmp_path / "n", {RIGHT: (values, None, data[2])}, FLOAT)
    (file,) = export_store(tmp_path / "n", tmp_path / "maps", format="cog")
    with rasterio.open(file) as raster:
        same(np.moveaxis(raster.read(), 0, -1), values)
        assert raster.tags()["TESSERA_YEAR"] == "2020"
    with pytest.raises(StoreError, match="give float32"):
        export_store(tmp_path / "n", tmp_path / "again", format="npy")
    with pytest.raises(StoreError, match="no grid to become a store"):
        export_store(tmp_path / "n", tmp_path / "z", format="zarr")
    np.save(tmp_path / "n" / "loose.npy", values)  # of somebody else: no place is known
    with pytest.raises(StoreError, match="loose: its CRS and transform are not recorded"):
        export_store(tmp_path / "n", tmp_path / "maps", tiles=["loose"])


def test_zarr_without_shards(made, tmp_path):
    path, _ = made
    (gis,) = export_store(path, tmp_path / "gis.zarr", format="zarr")
    old, new = (zarr.open_group(str(p), mode="r") for p in (path, gis))
    assert dict(new.attrs) == dict(old.attrs)
    assert sorted(new.group_keys()) == ["utm31", "utm32"]
    assert "consolidated_metadata" in (gis / "zarr.json").read_text()
    for group in ("utm31", "utm32"):
        assert sorted(new[group].array_keys()) == sorted(old[group].array_keys())
        assert dict(new[group].attrs) == dict(old[group].attrs)
        for name, array in new[group].arrays():
            was = old[group][name]
            assert array.shards is None and array.dtype == was.dtype
            assert dict(array.attrs) == dict(was.attrs)
            assert array.metadata.dimension_names == was.metadata.dimension_names
            same(array[...], was[...])
            if array.ndim > 2:
                assert max(array.chunks[-2:]) <= 128
    # What reads stores reads it.
    window = slice(0, 70), slice(0, 250)
    same(
        open_embeddings(gis).layer("utm31/2020").values(*window),
        open_embeddings(path).layer("utm31/2020").values(*window),
    )


def test_xarray_reads_what_is_exported(made, tmp_path):
    xarray = pytest.importorskip("xarray")
    rioxarray = pytest.importorskip("rioxarray")
    path, values = made
    export_store(path, tmp_path / "gis.zarr", format="zarr")
    gis = xarray.open_zarr(tmp_path / "gis.zarr", group="utm31", consolidated=False)
    data = (gis.embeddings.astype("float32") * gis.scales).sel(time=2020)
    left = data.transpose("y", "x", "band").values[:70, :250]
    known = np.isfinite(values[LEFT])
    same(left[known], values[LEFT][known])
    assert gis.embeddings.rio.crs.to_epsg() == 32631
    (file,) = export_store(path, tmp_path / "maps", tiles=["right"])
    with rioxarray.open_rasterio(file) as raster:
        same(raster.transpose("y", "x", "band").values, values[RIGHT])
        assert float(raster.x[0]) == X0 + 2505 and float(raster.y[0]) == Y0 - 5


BAD = {
    "format": (dict(format="png"), InputError, "format: expected geotiff, cog, npy, zarr"),
    "float32": (dict(float32=True), InputError, "format 'npy' alone"),
    "no such tile": (dict(tiles=["upper"]), InputError, "no tile 'upper'; it has east, left"),
    "no such year": (dict(years=[1999]), InputError, "no year 1999; it has 2020, 2021"),
    "neither": (dict(tiles=["right"], years=[2021]), InputError, "no tile of"),
    "bands": (dict(bands=[24]), StoreError, r"dimensions 0..23, got \[24\]"),
    "part of zarr": (dict(format="zarr", tiles=["left"]), InputError, "exported to zarr whole"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_options(_made, tmp_path, case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        export_store(_made[0], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["geotiff", "cog", "npy", "zarr"])
def test_what_is_there_stays_unless_it_may_be_replaced(made, tmp_path, form):
    path, _ = made
    out = tmp_path / "out.zarr"
    first = export_store(path, out, format=form)
    for file in first:
        if file.is_file():
            file.write_bytes(b"mine")
    with pytest.raises(StoreError, match="exists; give overwrite"):
        export_store(path, out, format=form)
    assert form == "zarr" or first[-1].read_bytes() == b"mine"
    again = export_store(path, out, format=form, overwrite=True)
    assert again == first and (form == "zarr" or first[-1].read_bytes() != b"mine")
    assert not [n for n in names(tmp_path) if n.startswith(".")]


@pytest.mark.parametrize("form", ["geotiff", "cog", "npy", "zarr"])
@pytest.mark.parametrize("size", [100, 20_000])
def test_a_full_disk_leaves_nothing(_made, tmp_path, form, size):
    with full_disk(size), pytest.raises(StoreError, match="could not be written"):
        export_store(_made[0], tmp_path / "out", format=form)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert form != "zarr" or not list(tmp_path.iterdir())


def test_a_write_that_only_closing_refuses_is_seen(tmp_path):
    """A file smaller than GDAL's cache is written when it is closed, and GDAL tells nobody."""
    path, _ = store(tmp_path / "x.zarr", tile("a", 100, 100))
    whole = export_store(path, tmp_path / "whole")[0].stat().st_size
    with full_disk(whole - 5000), pytest.raises(StoreError, match="could not be written"):
        export_store(path, tmp_path / "cut")
    assert names(tmp_path / "cut") == []


def test_windows_that_touch_are_one_cluster():
    def box(top, left, height=10, width=10):
        return slice(top, top + height), slice(left, left + width)

    apart = [box(0, 0), box(0, 11), box(50, 50)]
    assert clusters(apart) == sorted(apart, key=lambda w: (w[0].start, w[1].start))
    assert clusters([box(0, 10), box(0, 0), box(10, 0)]) == [box(0, 0, 20, 20)]
    # A row of tiles, given from both ends; and two that the box around a third joins.
    row = [box(0, 10 * k) for k in (0, 5, 1, 4, 2, 3)]
    assert clusters(row) == [box(0, 0, 10, 60)]
    assert clusters([box(0, 0), box(30, 30), box(5, 5, 26, 26)]) == [box(0, 0, 40, 40)]


def test_only_stored_windows_are_looked_at(tmp_path):
    far = tile("far", 30, 30, x0=X0 + 100_000, y0=Y0 - 90_000)
    path, _ = store(tmp_path / "x.zarr", tile("near", 30, 30), far)
    layer = open_embeddings(path).layer("utm31/2020")
    assert layer.height * layer.width > 90_000_000
    found = layer.stored()
    assert len(found) == 2 and all(layer.valid(*window).any() for window in found)
    assert len(parts(open_embeddings(path))) == 2


def test_command_line(made, tmp_path, run, capsys):
    path, values = made
    done = run(
        "export",
        path,
        "-o",
        tmp_path / "maps",
        "--format",
        "cog",
        "--tile",
        "right",
        "--bands",
        "0-2,7",
    )
    assert done.code == 0 and not done.err
    assert "grid_3.06_50.82_2020.tiff" in done.out
    with rasterio.open(tmp_path / "maps" / "grid_3.06_50.82_2020.tiff") as raster:
        same(np.moveaxis(raster.read(), 0, -1), values[RIGHT][..., [0, 1, 2, 7]])
    assert run("export", path, "-o", tmp_path / "gis.zarr", "--gis").code == 0
    assert zarr.open_group(str(tmp_path / "gis.zarr"))["utm31"]["embeddings"].shards is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8"], "--precision is an option of a model"),
        (["--int8-output"], "--int8-output is an option of a model"),
        (["--format", "onnx"], "--format onnx is for a model"),
        (["--bands", "3-1"], "expected indices such as 0-15,20"),
    ],
)
def test_options_of_a_model_do_not_go_with_a_store(_made, tmp_path, run, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        run("export", _made[0], "-o", tmp_path / "x", *options)
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bands", "0"], "--bands is an option of a store"),
        (["--gis"], "--format zarr is for a store"),
        (["--format", "cog"], "v2-nano is not a store of embeddings"),
    ],
)
def test_options_of_a_store_do_not_go_with_a_model(tmp_path, run, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        run("export", "v2-nano", "-o", tmp_path / "x", *options)
    assert ended.value.code == 2 and message in capsys.readouterr().err
