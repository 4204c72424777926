"""What sources stand for: folders of tiles, lists, cubes, windows, and where a tile lies."""

import builtins
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tessera_fast.errors import InputError
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.tile import expand, open_tile, open_windows
from tessera_fast.tile.arrays import ALL, Converted, MemoryArray, NpyArray, Part
from tessera_fast.tile.geotiff import read_plain
from tile_sources import (
    NAMES,
    H,
    W,
    arrays,
    assert_same,
    by_variable,
    flat,
    save,
    stacked,
    write_zarr,
)


def tile_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "bands.npy").touch()
    return folder


def test_a_tile_stands_for_itself(tmp_path):
    folder = tile_at(tmp_path / "a")
    assert list(expand([folder, str(folder)])) == [str(folder)] * 2
    assert list(expand(folder)) == [str(folder)] == list(expand(str(folder)))
    assert list(expand([])) == []


def test_a_folder_stands_for_its_tiles_by_name(tmp_path, caplog):
    for name in ("b_2020", "a_2020", "c_2020", ".hidden", "deep/d_2020"):
        tile_at(tmp_path / name)
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "y.nc").touch()
    (tmp_path / "readme.txt").touch()
    with caplog.at_level(logging.WARNING, "tessera_fast"):
        found = list(expand([tmp_path]))
    assert found == [str(tmp_path / n) for n in ("a_2020", "b_2020", "c_2020", "x.zarr", "y.nc")]
    assert "1 folders without bands.npy are left out (deep)" in caplog.text


def test_one_scan_of_a_level(tmp_path, monkeypatch):
    for k in range(5):
        tile_at(tmp_path / f"t{k}")
    scanned, found = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or found(path))
    assert len(list(expand(tmp_path))) == 5
    assert scanned == [str(tmp_path)]


@pytest.mark.parametrize("name", ["zarr.json", ".zgroup", ".zmetadata"])
def test_cubes_stand_for_themselves(tmp_path, name):
    (tmp_path / "cube").mkdir()
    (tmp_path / "cube" / name).touch()
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "f.nc").touch()
    sources = [str(tmp_path / n) for n in ("cube", "empty.zarr", "f.nc")]
    assert list(expand(sources)) == sources


def test_urls_and_what_is_not_there_are_passed_on(tmp_path):
    sources = ["s3://bucket/tiles/", "https://host/a.zarr", str(tmp_path / "absent")]
    assert list(expand(sources)) == sources


def test_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a_2020\n\n  s3://bucket/ü \n# a comment\nb_2020\n", "utf-8")
    tile_at(tmp_path / "c")
    assert list(expand(["@list.txt", "c"])) == ["a_2020", "s3://bucket/ü", "b_2020", "c"]
    with pytest.raises(InputError, match=r"@absent\.txt: expected a text file with one tile a"):
        list(expand(["@absent.txt"]))
    Path("bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"@bad\.txt: expected a text file"):
        list(expand("@bad.txt"))


def test_folders_without_a_tile(tmp_path):
    expected = r"expected a tile \(a folder with bands\.npy, .* or a cube .*, got "
    with pytest.raises(InputError, match=expected + "an empty folder"):
        list(expand(tmp_path))
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=expected + "1 folders without it"):
        list(expand(tmp_path))
    (tmp_path / "a" / "x.txt").touch()
    with pytest.raises(InputError, match=expected + "1 files"):
        list(expand(tmp_path / "a"))


def test_expanded_tiles_open(tmp_path):
    data = arrays()
    for name in ("b_2021", "a_2020"):
        save(tmp_path / name, data)
    tiles = [open_tile(path) for path in expand(tmp_path)]
    assert [(t.name, t.year) for t in tiles] == [("a_2020", 2020), ("b_2021", 2021)]


# ---- cubes


@pytest.fixture
def cube(tmp_path):
    pytest.importorskip("zarr")

    def make(dataset, name="c_2021.zarr", **options):
        return write_zarr(dataset, tmp_path / name, **options)

    return make


def test_a_cube_without_dates_has_the_year_of_its_name(cube):
    assert open_tile(cube(stacked(arrays()))).year == 2021
    dated = cube(by_variable(arrays()))
    with pytest.raises(
        InputError, match=r"expected dates of 2021, the year in its name, got dates"
    ):
        open_tile(dated)
    assert open_tile(dated, year=2024).year == 2024


def test_a_cube_is_read_by_rows(cube):
    """Chunks of other rows are not touched: here they are broken."""
    dataset = stacked(arrays(), dims=("time", "y", "x", "band"))
    chunks = {"bands": {"chunks": (1, 2, W, 10)}}
    path = cube(dataset, encoding=chunks)
    broken = [p for p in Path(path, "bands", "c").rglob("*") if p.is_file() and p.parts[-3] == "2"]
    assert len(broken) == 5
    for file in broken:
        file.write_bytes(b"broken")
    tile = open_tile(path)
    np.testing.assert_array_equal(tile.rows(2, 4).s2_bands, arrays()["bands"][:, 2:4])
    with pytest.raises(InputError, match="Dataset: cannot be read"):
        tile.rows(4, 5)


def test_values_are_those_that_are_stored(cube):
    """A fill value does not make floats of integers."""
    dataset = by_variable(arrays())
    for name in dataset.data_vars:
        dtype = dataset[name].dtype
        dataset[name].attrs["_FillValue"] = dtype.type(250 if dtype == np.uint8 else 9500)
    tile = open_tile(cube(dataset, "c_2024.zarr", zarr_format=2))
    assert_same(flat(tile), arrays())


def test_packed_values_are_refused(cube):
    dataset = by_variable(arrays())
    dataset["B04"].attrs["scale_factor"] = 0.0001
    with pytest.raises(InputError, match=r"c_2021\.zarr: B04: .* packed ones \(scale_factor 0\.0"):
        open_tile(cube(dataset))


def test_bad_cubes_are_named(cube, tmp_path):
    dataset = by_variable(arrays())
    with pytest.raises(InputError, match=r"c_2021\.zarr: bands: expected B04.*missing B8A"):
        open_tile(cube(dataset.drop_vars("B8A")))
    with pytest.raises(InputError, match=r"c_2021\.zarr/masks: missing in the cube .*c_2021\.zarr"):
        open_tile(cube(dataset.drop_vars("mask")))
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match=r"empty\.zarr: expected a cube that xarray opens"):
        open_tile(tmp_path / "empty.zarr")
    (tmp_path / "x.nc").write_text("no netCDF")
    with pytest.raises(InputError, match=r"x\.nc: expected a cube that xarray opens"):
        open_tile(tmp_path / "x.nc")
    for absent in ("absent.zarr", "absent.nc"):
        with pytest.raises(InputError, match="got nothing there"):
            open_tile(tmp_path / absent)


def test_a_cube_without_xarray(cube, monkeypatch):
    path = cube(stacked(arrays()))
    monkeypatch.setitem(sys.modules, "xarray", None)
    expected = r"needs xarray, which is not installed: pip install 'tessera_fast\[geo\]'"
    with pytest.raises(InputError, match=expected):
        open_tile(path)


# ---- windows


def test_windows_have_names_and_places():
    place = {"name": "t", "crs": 32631, "transform": (10, 0, 500, 0, -10, 900)}
    tile = open_tile(arrays(), year=2020, **place)
    windows = list(open_windows(tile, side=4))
    assert [(w.name, w.height, w.width) for w in windows] == [
        ("t_y0_x0", 4, 4),
        ("t_y0_x4", 4, 2),
        ("t_y4_x0", 3, 4),
        ("t_y4_x4", 3, 2),
    ]
    assert [w.transform for w in windows[::3]] == [
        (10, 0, 500, 0, -10, 900),
        (10, 0, 540, 0, -10, 860),
    ]
    assert {(w.crs, w.year) for w in windows} == {("EPSG:32631", 2020)}
    turned = open_tile(tile, transform=(0, 10, 500, -10, 0, 900))
    assert list(open_windows(turned, side=4))[1].transform == (0, 10, 500, -10, 0, 860)


def test_a_tile_that_fits_is_passed_as_it_is():
    tile = open_tile(arrays())
    assert list(open_windows(tile, side=H)) == [tile] == list(open_windows(tile))
    assert [w.name for w in open_windows(arrays(), side=6, name="a")] == ["a_y0_x0", "a_y6_x0"]
    with pytest.raises(InputError, match="side: expected at least 1 pixel, got 0"):
        next(open_windows(tile, side=0))


def test_a_bad_mask_in_a_window_names_its_place():
    data = arrays()
    data["masks"] = data["masks"].astype(np.int16)
    data["masks"][2, 5, 5] = 7
    windows = list(open_windows(data, side=4))
    windows[0].rows(0, 4)
    assert windows[3].where == "dict from row 4 and column 4"
    with pytest.raises(InputError, match="got 7 at date 2, row 1, column 1"):
        windows[3].rows(0, 3)


def parts_of(source) -> None:
    """A part of a part, in every combination of ranges and picked dates."""
    whole = source.rows(0, H)
    once = Part(source, np.array([4, 1, 2]), slice(1, 6), slice(2, 6))
    twice = Part(once, slice(1, 3), slice(2, 5), slice(1, 3))
    expected = whole[[1, 2], 3:6, 3:5]
    assert twice.shape == expected.shape and twice.dtype == expected.dtype
    np.testing.assert_array_equal(twice.rows(0, 3), expected)
    np.testing.assert_array_equal(twice.read(ALL, slice(1, 2), slice(1, 2)), expected[:, 1:2, 1:2])
    np.testing.assert_array_equal(twice.read(np.array([1, 0]), ALL, ALL), expected[::-1])
    dates, rows = np.array([0, 1, 1]), np.array([2, 0, 2])
    np.testing.assert_array_equal(twice.lines(dates, rows), expected[dates, rows])
    np.testing.assert_array_equal(twice.lines(dates, rows, slice(1, 2)), expected[dates, rows, 1:2])


@pytest.mark.parametrize("name", ["bands", "masks"])
@pytest.mark.parametrize("form", ["memory", "file", "column-major file", "dataset", "converted"])
def test_parts_of_parts(form, name, tmp_path):
    array = arrays()[name]
    if form == "dataset":
        tile = open_tile(stacked(arrays()))
        return parts_of(tile.s2_bands if name == "bands" else tile.s2_masks)
    file = tmp_path / "a.npy"
    np.save(file, np.asfortranarray(array) if form == "column-major file" else array)
    added = np.arange(5, dtype=array.dtype)  # a number of each date

    def add(values, dates):
        return values + added[dates].reshape(-1, *(1,) * (values.ndim - 1))

    forms = {
        "memory": MemoryArray(array),
        "file": NpyArray(file),
        "column-major file": NpyArray(file),
        "converted": Converted(MemoryArray(array), array.dtype, add),
    }
    return parts_of(forms[form])


# ---- roi.tiff


def test_a_plain_geotiff_is_read_as_rasterio_reads_it(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "roi.tiff"
    here = rasterio.Affine(10, 0, 500_000, 0, -10, 5_600_000)
    turned = rasterio.Affine(7, 7, 500_000, 7, -7, 5_600_000)
    cases = [
        ("EPSG:32631", here, {}, True),
        ("EPSG:32760", here, {"TILED": "YES"}, True),
        ("EPSG:32601", here, {"ENDIANNESS": "BIG"}, True),
        ("EPSG:4326", here, {}, False),
        ("EPSG:3035", here, {}, False),
        ("EPSG:32631", turned, {}, False),
        (None, here, {}, False),
        ("EPSG:32631", here, {"BIGTIFF": "YES"}, False),
    ]
    for crs, transform, options, plain in cases:
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=H,
            width=W,
            count=1,
            dtype="uint8",
            crs=crs,
            transform=transform,
            **options,
        ) as roi:
            roi.write(np.ones((H, W), np.uint8), 1)
        content = path.read_bytes()
        found = read_plain(content)
        assert (found is not None) == plain, crs
        if found is not None:
            with rasterio.open(path) as roi:
                assert found == (roi.shape, roi.crs.to_epsg(), tuple(roi.transform)[:6])
        for length in range(0, len(content), 7):
            assert read_plain(content[:length]) in (None, found)


def test_a_plain_roi_needs_no_rasterio(tmp_path, monkeypatch):
    pytest.importorskip("rasterio")
    tile = synthetic_tile(5, 7)
    folder = write_tile(tile, tmp_path / "t_2024")
    found = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("rasterio"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    opened = open_tile(folder)
    assert (opened.crs, opened.transform) == (tile.crs, tile.transform)


def test_an_aux_file_beside_the_roi_counts(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    folder = write_tile(synthetic_tile(5, 7), tmp_path / "t_2024")
    transform = rasterio.Affine(10, 0, 100, 0, -10, 200)
    (folder / "roi.tiff.aux.xml").write_text(
        "<PAMDataset><GeoTransform> 100, 10, 0, 200, 0, -10</GeoTransform></PAMDataset>"
    )
    assert open_tile(folder).transform == tuple(transform)[:6]


def test_every_orbit_has_its_place_in_a_window():
    for window in open_windows(arrays(), side=4):
        assert [NAMES[orbit.index] for orbit in window.orbits] == list(NAMES)
        assert all(
            orbit.bands.shape[1:3] == (window.height, window.width) for orbit in window.orbits
        )
