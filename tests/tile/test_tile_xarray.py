"""Datasets: lazy, with a georeference, and refused by name where bands or dimensions are wrong."""

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.errors import InputError
from tessera_fast.tile import open_tile, unplaced
from tile_sources import H, T, W, arrays, assert_same, by_variable, flat, save, stacked


def test_lazy_dataset():
    pytest.importorskip("dask")
    data = arrays()
    tile = open_tile(stacked(data).chunk({"y": 2}))
    assert_same(flat(tile), data)
    assert tile.fingerprint() == open_tile(data).fingerprint()


def test_lines_are_picked_in_groups(monkeypatch):
    """What a store is told at once is bounded."""
    from tessera_fast.tile import dataset

    monkeypatch.setattr(dataset, "_POINTS", 7 * W)
    for source in (stacked(arrays()), by_variable(arrays())):
        assert open_tile(source).fingerprint() == open_tile(arrays()).fingerprint()


def test_dataset_georeference():
    xr = pytest.importorskip("xarray")
    pyproj = pytest.importorskip("pyproj")
    dataset = stacked(arrays())
    assert open_tile(dataset).crs is None and open_tile(dataset).transform is None
    wkt = pyproj.CRS("EPSG:32631").to_wkt()
    attrs = {"crs_wkt": wkt, "GeoTransform": "500000 10 0 5600000 0 -10"}
    with_ref = dataset.assign_coords(spatial_ref=xr.DataArray(0, attrs=attrs))
    assert open_tile(with_ref).crs == "EPSG:32631"
    assert open_tile(with_ref).transform == (10, 0, 500_000, 0, -10, 5_600_000)
    # Coordinates of a crop are right where the attribute still is the whole image's.
    crop = with_ref.assign_coords(x=500_025 + 10.0 * np.arange(W), y=95 - 10.0 * np.arange(H))
    assert open_tile(crop).transform == (10, 0, 500_020, 0, -10, 100)
    irregular = dataset.assign_coords(x=np.arange(W) ** 2.0, y=np.arange(H, dtype=float))
    assert open_tile(irregular).transform is None
    with pytest.raises(InputError, match="a CRS that pyproj reads"):
        open_tile(dataset.assign_attrs({"proj:code": "EPSG:nonsense"}))


def test_rioxarray_reference():
    pytest.importorskip("rioxarray")
    dataset = stacked(arrays()).rio.write_crs("EPSG:32631")
    assert open_tile(dataset).crs == "EPSG:32631"


def test_embeddings_keep_the_place_of_the_dataset():
    rioxarray = pytest.importorskip("rioxarray")
    assert rioxarray
    x, y = 500_025 + 10.0 * np.arange(W), 95 - 10.0 * np.arange(H)
    dataset = stacked(arrays()).assign_coords(x=x, y=y).rio.write_crs("EPSG:32631")
    values = np.random.RandomState(0).standard_normal((H, W, 16)).astype(np.float32)
    from tessera_fast.tile.dataset_place import as_data_array

    out = as_data_array(values, dataset)
    assert out.dims == ("y", "x", "band") and out.rio.crs.to_epsg() == 32631
    np.testing.assert_array_equal(out.values, values)
    np.testing.assert_array_equal(out.x, x)
    assert set(out.coords) == {"x", "y", "spatial_ref"}
    assert set(as_data_array(values, by_variable(arrays())).coords) == set()


CRS_PLACES = {
    "attribute of the Dataset": lambda d: d.assign_attrs({"proj:code": "EPSG:32631"}),
    "number": lambda d: d.assign_attrs({"proj:epsg": np.int64(32631)}),
    "attribute crs": lambda d: d.assign_attrs(crs="+init=epsg:32631"),
    "attribute of a variable": lambda d: d.assign(
        bands=d.bands.assign_attrs({"proj:code": "EPSG:32631"})
    ),
    "scalar coordinate": lambda d: d.assign_coords({"proj:code": "EPSG:32631"}),
    "scalar coordinate of a number": lambda d: d.assign_coords(epsg=32631.0),
    "spatial_ref without a CRS": lambda d: d.assign_coords(spatial_ref=0).assign_attrs(
        {"proj:code": "EPSG:32631"}
    ),
}


@pytest.mark.parametrize("case", CRS_PLACES)
def test_a_crs_is_found_and_is_in_the_result(case, mini):
    pytest.importorskip("rioxarray")
    x, y = 500_025 + 10.0 * np.arange(W), 5_600_095 - 10.0 * np.arange(H)
    dataset = CRS_PLACES[case](stacked(arrays()).assign_coords(x=x, y=y))
    assert open_tile(dataset).crs == "EPSG:32631"
    with tf.load_model(mini) as model:
        result = tf.embed(dataset, model)
    assert result.rio.crs.to_epsg() == 32631
    assert tuple(result.rio.transform())[:6] == (10, 0, 500_020, 0, -10, 5_600_100)


def test_two_crs_are_refused():
    pytest.importorskip("rioxarray")
    dataset = stacked(arrays()).rio.write_crs("EPSG:32631")
    assert open_tile(dataset.assign_attrs({"proj:code": "EPSG:32631"})).crs == "EPSG:32631"
    assert open_tile(dataset.assign_attrs({"crs": "see spatial_ref"})).crs == "EPSG:32631"
    with pytest.raises(
        InputError, match=r"expected one CRS, got EPSG:32631 in spatial_ref, EPSG:3"
    ):
        open_tile(dataset.assign_attrs({"proj:code": "EPSG:32632"}))


def test_what_a_store_lacks_is_said_in_terms_of_the_form(tmp_path):
    pytest.importorskip("pyproj")
    data = arrays()
    place = {"crs": "EPSG:32631", "transform": (10, 0, 500_000, 0, -10, 5_600_000)}
    assert unplaced(open_tile(data, year=2024, **place)) is None
    bare = {
        "pass crs=, transform= and year=": data,
        "come from roi.tiff": save(tmp_path / "t", data),
        "spatial_ref or an attribute proj:code": stacked(data),
    }
    for message, source in bare.items():
        reason = unplaced(open_tile(source))
        assert reason is not None and message in reason
        assert ("roi.tiff" in reason) == ("roi.tiff" in message)
    up = {**place, "transform": (10, 0, 500_000, 0, 10, 5_600_000)}
    for message, source in (("sortby('y'", stacked(data)), ("array[:, ::-1]", data)):
        reason = unplaced(open_tile(source, year=2024, **up))
        assert reason is not None and "run from south to north" in reason and message in reason


def rename_band(dataset, dim, old, new):
    names = [new if str(v) == old else str(v) for v in dataset[dim].values]
    return dataset.assign_coords({dim: names})


DATASET_ERRORS = {
    "unknown band": (
        lambda s, v: rename_band(s, "band", "B8A", "B01"),
        "bands: expected B04, B02.*B12.*got .*B01.*missing B8A; unknown B01",
    ),
    "missing band": (lambda s, v: s.isel(band=slice(1, None)), r"bands: expected B04.*\(missing"),
    "repeated band": (lambda s, v: rename_band(s, "band", "B03", "B02"), "B03; repeated B02"),
    "bands unnamed": (lambda s, v: s.drop_vars("band"), "bands: expected a dimension 'band'"),
    "unknown polarization": (
        lambda s, v: rename_band(s, "polarization", "VH", "HH"),
        "sar_ascending: expected VV, VH.*got.*HH",
    ),
    "missing variable": (lambda s, v: v.drop_vars("B8A"), "bands: expected.*missing B8A"),
    "unknown variable": (lambda s, v: v.assign(B09=v.B02), "bands: .*unknown B09"),
    "missing VH": (lambda s, v: v.drop_vars("sar_ascending_VH"), "sar_ascending:.*missing VH"),
    "unknown HV": (lambda s, v: v.assign(sar_ascending_HV=v.sar_ascending_VH), "unknown HV"),
    "other dims": (lambda s, v: s.rename(y="lat"), "bands: expected one time dimension and y, x"),
    "other band dims": (lambda s, v: v.assign(B12=v.B12.rename(time="when")), "B12: expected"),
    "two masks": (lambda s, v: v.assign(masks=v["mask"]), "one of masks and mask"),
    "no masks": (lambda s, v: s.drop_vars("masks"), "masks: missing in the Dataset"),
    "no days": (lambda s, v: s.drop_vars("doys"), "doys: missing in the Dataset"),
    "no bands": (lambda s, v: s.drop_vars("bands"), "bands: missing in the Dataset"),
    "NaT": (lambda s, v: v.assign_coords(time=np.full(T, np.datetime64("NaT", "ns"))), "got NaT"),
    "DataArray": (lambda s, v: s["bands"], "expected an xarray.Dataset, got xarray.DataArray"),
}


@pytest.mark.parametrize("case", DATASET_ERRORS)
def test_bad_dataset(case):
    change, message = DATASET_ERRORS[case]
    source = change(stacked(arrays()), by_variable(arrays()))
    with pytest.raises(InputError, match=message):
        open_tile(source)


def test_dates_of_two_years_have_no_year():
    dataset = by_variable(arrays())
    later = dataset.time.values.copy()
    later[-1] = np.datetime64("2025-01-05")
    assert open_tile(dataset.assign_coords(time=later)).year is None
