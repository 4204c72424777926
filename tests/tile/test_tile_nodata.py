"""Values that a source declares to be none: masked arrays, fill values."""

import importlib.util

import numpy as np
import pytest

from tessera_fast.errors import InputError
from tessera_fast.tile import open_tile, open_windows
from tessera_fast.tile.nodata import declared
from tile_sources import (
    NAMES,
    H,
    arrays,
    assert_same,
    by_variable,
    dated,
    flat,
    in_db,
    in_power,
    save,
    scene_classes,
    stacked,
    unobserved,
    with_fills,
    write_zarr,
)

xr = pytest.importorskip("xarray")
needs_zarr = pytest.mark.skipif(importlib.util.find_spec("zarr") is None, reason="no zarr")
needs_pandas = pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="no pandas")


# ---- masked arrays


def test_masked_sentinel1_is_not_observed():
    data, hide = unobserved(arrays())
    sar = np.ma.masked_array(np.where(hide, np.int16(-32768), data["sar_ascending"]), mask=hide)
    assert_same(flat(open_tile(data | {"sar_ascending": sar})), data)
    floats = {n: data[n].astype(np.float32) for n in NAMES}
    sar = np.ma.masked_array(np.where(hide, np.nan, floats["sar_ascending"]).astype("f4"), hide)
    assert_same(flat(open_tile(data | floats | {"sar_ascending": sar})), data | floats)


def test_a_masked_mask_is_not_clear():
    data = arrays()
    for dtype in (np.uint8, bool, np.int64):
        ones = np.ones_like(data["masks"], dtype)
        masks = np.ma.masked_array(ones, mask=data["masks"] == 0)
        assert_same(flat(open_tile(data | {"masks": masks})), data)
    classes = np.ma.masked_array(np.full_like(data["masks"], 4), mask=data["masks"] == 0)
    given = {k: v for k, v in data.items() if k != "masks"} | {"scl": classes}
    assert_same(flat(open_tile(given)), data)
    nothing = np.ma.masked_array(data["masks"])  # without a mask
    assert_same(flat(open_tile(data | {"masks": nothing})), data)


def test_masked_sentinel2_has_to_be_where_the_mask_is_not_clear():
    data = arrays()
    cloud = np.repeat((data["masks"] == 0)[..., None], 10, axis=-1)
    assert_same(flat(open_tile(data | {"bands": np.ma.masked_array(data["bands"], cloud)})), data)
    cloud[2, 5, 3, 7] = True
    data["masks"][2, 5, 3] = 1
    tile = open_tile(data | {"bands": np.ma.masked_array(data["bands"], cloud)})
    tile.rows(0, 5)
    message = r"bands: expected values where the mask is clear, got no data \(masked values\) at "
    with pytest.raises(InputError, match=message + "date 2, row 5, column 3, and at 1 of"):
        tile.rows(4, 7)
    window = list(open_windows(tile, side=4))[2]
    with pytest.raises(InputError, match="date 2, row 5, column 3"):
        window.rows(0, 3)


@pytest.mark.parametrize("name", ["doys", "sar_ascending_doy"])
def test_masked_days_are_refused(name):
    data = arrays()
    days = np.ma.masked_array(data[name], mask=False)
    assert_same(flat(open_tile(data | {name: days})), data)
    days[1] = np.ma.masked
    message = rf"{name}: expected a value everywhere, got a masked array in which 1 of . values"
    with pytest.raises(InputError, match=message):
        open_tile(data | {name: days})


class Quantity(np.ndarray):
    """As astropy's and unyt's: an array with a unit."""


class Measured:
    """As pint's: beside an array, not one."""

    magnitude, units = arrays()["sar_ascending"], "dB"

    def __array__(self, dtype=None, copy=None):
        return self.magnitude


def test_what_would_lose_a_mask_or_a_unit_is_refused():
    data = arrays()
    message = "expected a plain numpy array, got .*, which may carry a unit or a mask"
    for value in (data["sar_ascending"].view(Quantity), Measured()):
        with pytest.raises(InputError, match=f"sar_ascending: {message}"):
            open_tile(data | {"sar_ascending": value})
    listed = [np.ma.masked_array(a, mask=a > 8000) for a in data["bands"]]
    with pytest.raises(InputError, match=r"bands: .*a list that holds masked values"):
        open_tile(data | {"bands": listed})
    assert_same(flat(open_tile(data | {"bands": list(data["bands"])})), data)
    with pytest.raises(InputError, match=r"bands: expected what numpy\.asarray takes, got list"):
        open_tile(data | {"bands": [[1], [1, 2]]})


def test_maps_of_files_are_taken(tmp_path):
    folder, data = save(tmp_path / "t", arrays()), arrays()
    maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in data}
    assert_same(flat(open_tile(maps)), data)


@needs_pandas
def test_pandas_days():
    import pandas as pd

    data = arrays()
    for days in (pd.Series(data["doys"]), pd.array(data["doys"], dtype="Int64")):
        assert_same(flat(open_tile(data | {"doys": days})), data)
    with pytest.raises(InputError, match="doys: expected"):
        open_tile(data | {"doys": pd.array([1, None, 3, 4, 5], dtype="Int64")})


def test_data_arrays_in_a_dict():
    """Coordinates would be ignored there, so they belong into a Dataset."""
    data, hide = unobserved(arrays())
    filled = np.where(hide, np.int16(-9999), data["sar_ascending"])
    sar = xr.DataArray(filled, attrs={"_FillValue": -9999})
    assert_same(flat(open_tile(data | {"sar_ascending": sar})), data)
    masks = xr.DataArray(data["masks"][:, ::-1], {"y": np.arange(H)}, ("time", "y", "x"))
    with pytest.raises(InputError, match=r"masks: .*DataArray with coordinates \(y\), which would"):
        open_tile(data | {"masks": masks})


# ---- declared fill values


@pytest.mark.parametrize("make", [stacked, by_variable, dated])
@pytest.mark.parametrize("place", ["attributes", "encoding", "decoded"])
@pytest.mark.parametrize("name", ["_FillValue", "missing_value", "nodata"])
def test_declared_no_data(make, place, name):
    data, _ = unobserved(arrays())
    dataset = with_fills(data, make, name, fill=-9999)
    if place != "attributes":
        for variable in dataset.data_vars.values():
            if name in variable.attrs:
                variable.encoding[name] = variable.attrs.pop(name)
    expected = dict(data)
    if place == "decoded":  # as xarray opens a file with mask_and_scale=True
        for key in dataset.data_vars:
            fill = dataset[key].encoding.get(name)
            if fill is not None:
                kept = dict(dataset[key].encoding)
                dataset[key] = dataset[key].where(dataset[key] != fill).astype(np.float32)
                dataset[key].encoding = kept
        expected |= {n: data[n].astype(np.float32) for n in NAMES}
    assert_same(flat(open_tile(dataset)), expected)


@pytest.mark.parametrize("units", ["db", "power"])
def test_fill_values_of_units_that_are_converted(units):
    data, hide = unobserved(arrays())
    plain = {n: in_db(data[n]) if units == "db" else in_power(data[n]) for n in NAMES}
    dataset = stacked(data | plain)
    values = dataset["sar_ascending"]
    fill = np.float32(-3)  # would be a plausible value in dB
    dataset["sar_ascending"] = values.copy(data=np.where(hide[..., ::-1], fill, values.values))
    dataset["sar_ascending"].attrs["_FillValue"] = fill
    assert_same(flat(open_tile(dataset, s1_units=units)), data)


@pytest.mark.parametrize("make", [stacked, by_variable])
def test_filled_sentinel2_is_an_error_where_the_mask_is_clear(make):
    data = arrays()
    cloud = data["masks"] == 0
    filled = data | {"bands": np.where(cloud[..., None], np.uint16(65535), data["bands"])}

    def declared_of(data):
        dataset = make(data)
        for name in dataset.data_vars:
            if str(name) == "bands" or str(name).startswith("B"):
                dataset[name].attrs["_FillValue"] = np.uint16(65535)
        return dataset

    assert_same(flat(open_tile(declared_of(filled))), filled)
    filled["bands"][1, 2, 3, 4] = 65535
    filled["masks"][1, 2, 3] = 1
    message = r"got no data \(_FillValue 65535\) at date 1, row 2, column 3"
    with pytest.raises(InputError, match=message):
        open_tile(declared_of(filled)).rows(0, H)
    # also where ESA's offset is subtracted, and in other orders of dates
    backwards = {k: v[::-1] for k, v in filled.items()}
    for source, options in (
        (declared_of(filled), {"s2_offset": 1000}),
        (declared_of(backwards), {}),
    ):
        with pytest.raises(InputError, match=r"_FillValue 65535\) at date"):
            open_tile(source, **options).rows(0, H)


def test_a_fill_value_of_0_is_no_data_where_all_bands_are_0():
    """One band may be 0 over dark water."""
    data = arrays()
    data["masks"][:] = 1
    data["bands"][0, 1, 2, :9] = 0
    dataset = stacked(data)
    dataset["bands"].attrs["_FillValue"] = np.uint16(0)
    assert_same(flat(open_tile(dataset)), data)
    dataset["bands"][{"time": 0, "y": 1, "x": 2}] = 0
    with pytest.raises(InputError, match=r"\(_FillValue 0\) at date 0, row 1, column 2"):
        open_tile(dataset).rows(0, H)
    decoded = dataset.copy(deep=True)
    decoded["bands"] = decoded["bands"].where(decoded["bands"] != 0).astype(np.float32)
    decoded["bands"].encoding["_FillValue"] = np.uint16(0)
    with pytest.raises(InputError, match=r"\(_FillValue 0\) at date 0, row 1, column 2"):
        open_tile(decoded).rows(0, H)


def test_classes_with_a_fill_value():
    data = arrays()
    classes = scene_classes(data["masks"])
    filled = np.where(classes == 0, np.uint8(255), classes)
    for values, attrs, encoding in (
        (filled, {"_FillValue": 255}, {}),
        (np.where(classes == 0, np.nan, classes).astype("f4"), {}, {"_FillValue": 0}),
    ):
        dataset = by_variable(data).drop_vars("mask")
        dataset["SCL"] = (("time", "y", "x"), values, attrs)
        dataset["SCL"].encoding.update(encoding)
        assert_same(flat(open_tile(dataset)), data)
    del dataset["SCL"].encoding["_FillValue"]
    with pytest.raises(InputError, match=r"SCL: expected whole classes .*float32; cast .* is NaN"):
        open_tile(dataset)
    for name, wrong in (("SCL", 4), ("mask", 1)):
        values = classes if name == "SCL" else data["masks"]
        dataset = by_variable(data).drop_vars("mask")
        dataset[name] = (("time", "y", "x"), values, {"_FillValue": np.uint8(wrong)})
        with pytest.raises(InputError, match=f"{name}: expected no data .*_FillValue {wrong}"):
            open_tile(dataset)


def test_unsigned_values_that_are_stored_as_signed():
    data = arrays()
    data["bands"][..., 0] += np.uint16(40000)
    dataset = stacked(data)
    signed = dataset["bands"].astype(np.int16).assign_attrs(_Unsigned="true")
    assert (signed < 0).any()
    dataset["bands"] = signed.assign_attrs(_FillValue=np.int16(-1))  # 65535
    assert_same(flat(open_tile(dataset)), data)
    dataset["masks"][:] = 1
    dataset["bands"][{"time": 3, "y": 0, "x": 1}] = -1
    with pytest.raises(InputError, match=r"no data \(_FillValue -1\) at date 3, row 0, column 1"):
        open_tile(dataset).rows(0, H)


def test_packed_values_of_a_dataset_are_refused():
    dataset = by_variable(arrays())
    dataset["B04"].attrs["scale_factor"] = 0.0001
    with pytest.raises(InputError, match=r"^B04: .* packed ones \(scale_factor 0\.0001\)"):
        open_tile(dataset)
    dataset["B04"].attrs.update(scale_factor=1.0, add_offset=0)
    open_tile(dataset)


def test_declarations_that_are_none():
    assert not declared({"nodata": None}, {}, np.dtype(np.int16))
    assert not declared({"nodata": 70000}, {}, np.dtype(np.uint16))  # which no value is
    assert not declared({"nodata": np.nan}, {}, np.dtype(np.uint16))
    for place in ({}, {"fill_value": 0}):  # what every array of Zarr format 3 has
        assert not declared({}, place, np.dtype(np.uint16))
    assert declared({}, {"fill_value": -9999}, np.dtype(np.int16)).numbers == (-9999,)
    several = declared({"missing_value": np.array([-1, -2])}, {}, np.dtype(np.int16))
    assert set(several.numbers) == {-1, -2}
    dataset = stacked(arrays())
    dataset["sar_ascending"].attrs["nodata"] = "none"
    with pytest.raises(InputError, match="sar_ascending: expected nodata to be a number, got 'no"):
        open_tile(dataset)


@needs_zarr
@pytest.mark.parametrize("decode", [True, False])
def test_a_dataset_that_xarray_opened(decode, tmp_path):
    data, _ = unobserved(arrays())
    path = write_zarr(with_fills(data, by_variable), tmp_path / "c.zarr")
    found = flat(open_tile(xr.open_zarr(path, mask_and_scale=decode, chunks=None)))
    floats = {n: data[n].astype(np.float32) for n in NAMES} if decode else {}
    assert_same(found, data | floats)


def test_nan_that_is_declared():
    """xarray declares NaN as the fill value of floats that it writes."""
    data, hide = unobserved(arrays())
    floats = {n: data[n].astype(np.float32) for n in NAMES}
    filled = np.where(hide, np.float32(np.nan), floats["sar_ascending"])
    dataset = stacked(data | floats | {"sar_ascending": filled})
    with pytest.raises(InputError, match="expected finite values where a date is observed"):
        pack(open_tile(dataset))
    dataset["sar_ascending"].attrs["_FillValue"] = np.nan
    assert_same(flat(open_tile(dataset)), data | floats)


def pack(tile):
    from tessera_fast.packing import pack
    from tessera_fast.spec import RELEASED

    return pack(tile.rows(0, tile.height), RELEASED["v2-nano"])
