"""The same data gives the same embedding and fingerprint in whatever form it comes, to the bit."""

import importlib.util
import pickle

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.tile import open_tile, open_windows
from tile_sources import (
    NAMES,
    H,
    W,
    arrays,
    by_variable,
    classes_apart,
    dated,
    in_db,
    in_power,
    masked,
    newest_first,
    save,
    save_dates,
    scene_classes,
    stacked,
    to_memory,
    with_fills,
    write_zarr,
)

pytest.importorskip("xarray")
pytest.importorskip("fsspec")
needs_zarr = pytest.mark.skipif(importlib.util.find_spec("zarr") is None, reason="no zarr")
netcdf = any(importlib.util.find_spec(m) for m in ("netCDF4", "h5netcdf", "scipy"))
needs_netcdf = pytest.mark.skipif(not netcdf, reason="no package that xarray reads netCDF with")


def folder(tmp_path, data):
    return open_tile(save(tmp_path / "t_2024", data))


def folder_with_dates(tmp_path, data):
    path = save(tmp_path / "t", data)
    save_dates(path, data)
    return open_tile(path, period=2024)


def folder_with_dates_alone(tmp_path, data):
    path = save(tmp_path / "t", data)
    save_dates(path, data)
    for name in ("doys", *(f"{n}_doy" for n in NAMES)):
        (path / f"{name}.npy").unlink()
    return open_tile(path)


def folder_of_its_own_year(tmp_path, data):
    return open_tile(save(tmp_path / "t_2024", data), period="2024")


def folder_with_classes(tmp_path, data):
    changed = data | {"scl": scene_classes(data["masks"])}
    del changed["masks"]
    return open_tile(save(tmp_path / "t", changed))


def memory_folder(tmp_path, data):
    return open_tile(to_memory("memory://forms/t_2024", save(tmp_path / "t", data)))


def file_folder(tmp_path, data):
    return open_tile(save(tmp_path / "t_2024", data).as_uri() + "/")


def dataset_with_classes(tmp_path, data):
    dataset = stacked(data)
    classes = dataset["masks"].copy(data=scene_classes(dataset["masks"].values))
    return open_tile(dataset.drop_vars("masks").assign(SCL=classes))


def dataset_of_a_period(tmp_path, data):
    return open_tile(dated(data), period=("2024-01-01", "2024-12-31"))


def in_units(data, to):
    return data | {name: to(data[name]) for name in NAMES}


def dict_in_db(tmp_path, data):
    return open_tile(in_units(data, in_db), s1_units="db")


def folder_in_power(tmp_path, data):
    return open_tile(save(tmp_path / "t", in_units(data, in_power)), s1_units="power")


def dict_in_official(tmp_path, data):
    return open_tile(data, s1_units="official")


def dataset_that_declares_db(tmp_path, data):
    dataset = stacked(in_units(data, in_db))
    for name in NAMES:
        dataset[name].attrs["units"] = "dB"
    return open_tile(dataset)


def dataset_that_declares_power(tmp_path, data):
    dataset = by_variable(in_units(data, lambda v: in_power(v, np.float64)))
    for name in NAMES:
        for band in ("VV", "VH"):
            dataset[f"{name}_{band}"].attrs["units"] = "1"
    return open_tile(dataset, s1_units="power")


def dataset_with_offset(tmp_path, data):
    return open_tile(dated(data | {"bands": data["bands"] + np.uint16(1000)}), s2_offset="present")


def dict_with_offset(tmp_path, data):
    return open_tile(data | {"bands": data["bands"] + np.uint16(500)}, s2_offset=500)


def dict_newest_first(tmp_path, data):
    return open_tile(newest_first(data))


def folder_newest_first(tmp_path, data):
    return open_tile(save(tmp_path / "t_2024", newest_first(data)))


def folder_with_dates_newest_first(tmp_path, data):
    return folder_with_dates_alone(tmp_path, newest_first(data))


def memory_folder_newest_first(tmp_path, data):
    return memory_folder(tmp_path, newest_first(data))


def dataset_newest_first(tmp_path, data):
    return open_tile(dated(newest_first(data)))


def dict_of_masked_arrays(tmp_path, data):
    return open_tile(masked(data))


def masked_arrays_in_db(tmp_path, data):
    changed = masked(data)
    for name in NAMES:
        changed[name] = np.ma.masked_array(
            np.where(data[name] == 0, np.float32(9), in_db(data[name])), data[name] == 0
        )
    return open_tile(changed, s1_units="db")


def dataset_with_fills(tmp_path, data):
    return open_tile(with_fills(data, dated))


def dataset_with_missing_values(tmp_path, data):
    return open_tile(with_fills(data, by_variable, "missing_value"))


def dataset_with_nodata(tmp_path, data):
    return open_tile(with_fills(data, stacked, "nodata", fill=-1))


def classes_on_a_time_axis_of_their_own(tmp_path, data):
    return open_tile(classes_apart(data, np.array([3, 1, 4, 0, 2])))


FORMS = {
    f.__name__: f
    for f in (
        folder,
        folder_with_dates,
        folder_with_dates_alone,
        folder_of_its_own_year,
        folder_with_classes,
        memory_folder,
        file_folder,
        dataset_with_classes,
        dataset_of_a_period,
        dict_in_db,
        folder_in_power,
        dict_in_official,
        dataset_that_declares_db,
        dataset_that_declares_power,
        dataset_with_offset,
        dict_with_offset,
        dict_newest_first,
        folder_newest_first,
        folder_with_dates_newest_first,
        memory_folder_newest_first,
        dataset_newest_first,
        dict_of_masked_arrays,
        masked_arrays_in_db,
        dataset_with_fills,
        dataset_with_missing_values,
        dataset_with_nodata,
        classes_on_a_time_axis_of_their_own,
    )
} | {
    "dict": lambda tmp_path, data: open_tile(data),
    "stacked": lambda tmp_path, data: open_tile(stacked(data)),
    "by variable": lambda tmp_path, data: open_tile(by_variable(data)),
    "tile": lambda tmp_path, data: open_tile(open_tile(data, year=2024), period=2024),
}


@pytest.fixture(scope="module")
def expected(mini):
    with tf.load_model(mini) as model:
        yield model, tf.embed(open_tile(arrays()), model), open_tile(arrays()).fingerprint()


def check(tile, expected):
    model, values, fingerprint = expected
    np.testing.assert_array_equal(tf.embed(tile, model), values)
    assert tile.fingerprint() == fingerprint
    sent = pickle.loads(pickle.dumps(tile))  # as to another process
    assert sent.fingerprint() == fingerprint and sent.name == tile.name


@pytest.mark.parametrize("form", FORMS)
def test_form(form, tmp_path, expected):
    check(FORMS[form](tmp_path, arrays()), expected)


def filled(data):
    return with_fills(data, dated)


def backwards(data):
    return by_variable(newest_first(data))


CUBES = {
    "newest first": (backwards, "c.zarr", {}),
    "fill values": (filled, "c.zarr", {}),
    "fill values of format 2": (filled, "c.zarr", {"zarr_format": 2}),
    "stacked": (stacked, "c.zarr", {}),
    "by variable": (by_variable, "c.zarr", {"consolidated": False}),
    "dated": (dated, "c.zarr", {}),
    "format 2": (by_variable, "c.zarr", {"zarr_format": 2}),
    "without its end": (by_variable, "cube", {}),
    "behind a URL": (stacked, "memory://forms/c.zarr", {}),
    "without its end behind a URL": (by_variable, "memory://forms/cube", {}),
}


@needs_zarr
@pytest.mark.parametrize("case", CUBES)
def test_zarr_cube(case, tmp_path, expected):
    make, name, options = CUBES[case]
    path = write_zarr(make(arrays()), name if "://" in name else tmp_path / name, **options)
    tile = open_tile(path)
    check(tile, expected)
    assert tile.name == ("c" if name.endswith(".zarr") else "cube")
    assert tile.year == (None if make is stacked else 2024)


@needs_netcdf
@pytest.mark.parametrize("make", [by_variable, filled, backwards])
def test_netcdf_cube(make, tmp_path, expected):
    make(arrays()).to_netcdf(tmp_path / "c.nc")
    tile = open_tile(tmp_path / "c.nc")
    check(tile, expected)
    assert (tile.name, tile.year) == ("c", 2024)


@needs_zarr
@pytest.mark.parametrize("form", ["dict", "folder", "memory", "zarr", "power"])
def test_windows_join_to_the_whole(form, tmp_path, expected):
    data, options = arrays(), {}
    sources = {
        "dict": lambda: data,
        "folder": lambda: save(tmp_path / "t", data),
        "memory": lambda: to_memory("memory://forms/w", save(tmp_path / "t", data)),
        "zarr": lambda: write_zarr(stacked(data), tmp_path / "c.zarr"),
        "power": lambda: in_units(data, in_power),
    }
    if form == "power":
        options["s1_units"] = "power"
    model, values, _ = expected
    joined = np.full_like(values, np.nan)
    names = []
    for window in open_windows(sources[form](), side=4, **options):
        y, x = (int(part[1:]) for part in window.name.rsplit("_", 2)[1:])
        names.append((y, x))
        joined[y : y + 4, x : x + 4] = tf.embed(window, model)
        cut = {k: v[:, y : y + 4, x : x + 4] if v.ndim > 1 else v for k, v in data.items()}
        assert window.fingerprint() == open_tile(cut).fingerprint()
    assert names == [(0, 0), (0, 4), (4, 0), (4, 4)] and (H, W) == (7, 6)
    np.testing.assert_array_equal(joined, values)


def test_the_forms_differ_when_the_data_does(expected):
    data = arrays()
    data["bands"][data["masks"] == 1] += 1
    with pytest.raises(AssertionError):
        check(open_tile(data), expected)
