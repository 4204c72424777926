"""Tiles as dicts, folders and both forms of Dataset, shared by the tests of the ways in."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from tessera_fast.spec import S1_BANDS, S2_BANDS
from tessera_fast.tile import Tile

T, H, W = 5, 7, 6
NAMES = ("sar_ascending", "sar_descending")


def arrays() -> dict[str, np.ndarray]:
    r = np.random.RandomState(3)
    out = {
        "bands": r.randint(1, 9000, (T, H, W, 10)).astype(np.uint16),
        "masks": r.randint(0, 2, (T, H, W)).astype(np.uint8),
        "doys": np.array([1, 40, 41, 200, 366], np.int32),
    }
    for i, name in enumerate(NAMES):
        out[name] = r.randint(0, 9000, (3 + i, H, W, 2)).astype(np.int16)
        out[f"{name}_doy"] = np.arange(3 + i, dtype=np.int32) * 50 + 7
    return out


def save(folder: Path, data: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for name, array in data.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def flat(tile: Tile, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
    band = tile.rows(start, tile.height if stop is None else stop)
    assert band.s2_masks is not None
    out = {"bands": band.s2_bands, "masks": band.s2_masks, "doys": band.s2_doys}
    for orbit in band.orbits:
        out[NAMES[orbit.index]] = orbit.bands
        out[f"{NAMES[orbit.index]}_doy"] = orbit.doys
    return out


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def stacked(data, s2_order=None, s1_order=(1, 0), dims=("band", "x", "time", "y")):
    xr = pytest.importorskip("xarray")
    s2_order = list(np.random.RandomState(0).permutation(10)) if s2_order is None else s2_order
    names = [S2_BANDS[i] for i in s2_order]
    bands = xr.DataArray(
        data["bands"][..., s2_order], dims=("time", "y", "x", "band"), coords={"band": names}
    ).transpose(*dims)
    variables = {
        "bands": bands,
        "masks": (("y", "x", "time"), data["masks"].transpose(1, 2, 0)),
        "doys": ("time", data["doys"]),
    }
    for name in NAMES:
        time = f"time_{name}"
        variables[name] = xr.DataArray(
            data[name][..., list(s1_order)],
            dims=(time, "y", "x", "polarization"),
            coords={"polarization": [S1_BANDS[i] for i in s1_order]},
        )
        variables[f"{name}_doy"] = (time, data[f"{name}_doy"])
    return xr.Dataset(variables)


def by_variable(data):
    xr = pytest.importorskip("xarray")
    variables = {
        name: (("x", "y", "time"), data["bands"][..., i].transpose(2, 1, 0))
        for i, name in sorted(enumerate(S2_BANDS), key=lambda item: item[1])
    }
    variables["mask"] = (("time", "y", "x"), data["masks"])
    coords = {"time": np.datetime64("2024-01-01") + (data["doys"] - 1).astype("m8[D]")}
    for name in NAMES:
        days = (data[f"{name}_doy"] - 1).astype("m8[D]")
        coords[f"t_{name}"] = np.datetime64("2024-01-01") + days
        for k, band in enumerate(S1_BANDS):
            variables[f"{name}_{band}"] = ((f"t_{name}", "y", "x"), data[name][..., k])
    return xr.Dataset(variables, coords)


def dated(data, year=2024):
    """``stacked`` with real dates in place of days of year."""
    dataset = stacked(data)
    for stream, time in (("doys", "time"), *((f"{n}_doy", f"time_{n}") for n in NAMES)):
        dates = np.datetime64(f"{year}-01-01", "ns") + (data[stream] - 1).astype("m8[D]")
        dataset = dataset.drop_vars(stream).assign_coords({time: dates})
    return dataset


def save_dates(folder: Path, data: dict[str, np.ndarray], year=2024) -> None:
    """The optional files of real dates beside the arrays of ``data``, to the second."""
    for file, days in (("s2", "doys"), *((n, f"{n}_doy") for n in NAMES)):
        if days in data:
            noon = (data[days] - 1).astype("m8[D]") + np.timedelta64(12, "h")
            np.save(folder / f"{file}_datetime.npy", np.datetime64(f"{year}-01-01", "s") + noon)


def newest_first(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same observations in the order in which a STAC search gives them."""
    return {name: array[::-1] for name, array in data.items()}


def unobserved(data: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """``data`` with some Sentinel-1 of the ascending orbit not observed, and where (T, H, W, 2)."""
    hide = np.zeros(data["sar_ascending"].shape, bool)
    hide[::2, 1:4, 2:] = True
    return data | {"sar_ascending": np.where(hide, np.int16(0), data["sar_ascending"])}, hide


def masked(data: dict[str, np.ndarray], junk: int = 77) -> dict[str, np.ndarray]:
    """``data`` as masked arrays, with ``junk`` under the masks: what is not clear, or zero."""
    clear = data["masks"] == 1
    out = dict(data)
    out["masks"] = np.ma.masked_array(np.ones_like(data["masks"]), mask=~clear)
    cloud = np.repeat(~clear[..., None], 10, axis=-1)
    out["bands"] = np.ma.masked_array(data["bands"], mask=cloud)
    for name in NAMES:
        none = data[name] == 0
        out[name] = np.ma.masked_array(
            np.where(none, data[name].dtype.type(junk), data[name]), none
        )
    for name in ("doys", *(f"{n}_doy" for n in NAMES)):
        out[name] = np.ma.masked_array(data[name], mask=False)
    return out


def with_fills(
    data: dict[str, np.ndarray], make, attribute: str = "_FillValue", fill: int = -32768
):
    """A Dataset of ``make`` that says ``fill`` where Sentinel-1 was not observed, and 255 in masks
    where it is not clear."""
    filled = dict(data)
    for name in NAMES:
        filled[name] = np.where(data[name] == 0, np.int16(fill), data[name])
    filled["masks"] = np.where(data["masks"] == 0, np.uint8(255), data["masks"])
    dataset = make(filled)
    for name in dataset.data_vars:
        if str(name).startswith("sar") and not str(name).endswith("_doy"):
            dataset[name].attrs[attribute] = np.int16(fill)
        elif str(name) in ("mask", "masks"):
            dataset[name].attrs[attribute] = np.uint8(255)
    return dataset


def classes_apart(data: dict[str, np.ndarray], order):
    """`by_variable` with scene classes on a time axis of their own, in the ``order`` given."""
    xr = pytest.importorskip("xarray")
    dataset = by_variable(data)
    times = dataset.time.values[order]
    classes = xr.DataArray(
        scene_classes(data["masks"])[order], dims=("t_scl", "y", "x"), coords={"t_scl": times}
    )
    return dataset.drop_vars("mask").assign(SCL=classes)


def scene_classes(masks: np.ndarray) -> np.ndarray:
    """SCL (T, H, W) uint8 that means ``masks``, of all classes in turn."""
    clear, other = np.array([4, 5, 6, 7, 10, 11]), np.array([0, 1, 2, 3, 8, 9])
    turn = np.arange(masks.size).reshape(masks.shape) % 6
    return np.where(masks == 1, clear[turn], other[turn]).astype(np.uint8)


def in_db(official: np.ndarray, dtype=np.float32) -> np.ndarray:
    """Decibel of the middle of what is cut to ``official``; NaN for no observation."""
    db = ((official.astype(np.float64) + 0.5) / 200 - 50) / 2
    return np.where(official == 0, np.nan, db).astype(dtype)


def in_power(official: np.ndarray, dtype=np.float32) -> np.ndarray:
    """The same as linear power; 0 for no observation."""
    return np.nan_to_num(10 ** (in_db(official, np.float64) / 10)).astype(dtype)


def to_memory(url: str, folder: Path) -> str:
    """Copy a folder's files behind ``url`` and return it."""
    fsspec = pytest.importorskip("fsspec")
    system, path = fsspec.core.url_to_fs(url)
    system.pipe({f"{path}/{file.name}": file.read_bytes() for file in folder.iterdir()})
    return url


def write_zarr(dataset, path: str | Path, **options) -> str:
    with warnings.catch_warnings():
        # of zarr, on types and metadata that its format 3 does not specify yet
        warnings.simplefilter("ignore")
        dataset.to_zarr(str(path), mode="w", **options)
    return str(path)
