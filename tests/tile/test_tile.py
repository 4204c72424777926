"""Tile: every way in gives the same observations, and every bad input is refused by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from places import SHARED
from tessera_fast.errors import InputError, TesseraError
from tessera_fast.tile import open_tile
from tessera_fast.tile.folder import year_in
from tile_sources import NAMES, H, T, W, arrays, assert_same, by_variable, flat, save, stacked

DATA = SHARED / "data"


def sources(tmp_path: Path) -> dict[str, object]:
    data = arrays()
    return {
        "dict": data,
        "folder": save(tmp_path / "farm_2019", data),
        "path string": str(save(tmp_path / "again", data)),
        "stacked": stacked(data),
        "stacked in order": stacked(data, range(10), (0, 1), ("time", "y", "x", "band")),
        "by variable": by_variable(data),
    }


def test_every_source_gives_the_same_observations_and_fingerprint(tmp_path):
    data = arrays()
    tiles = {key: open_tile(source) for key, source in sources(tmp_path).items()}
    for tile in tiles.values():
        assert (tile.height, tile.width, tile.dates) == (H, W, (T, 3, 4))
        assert_same(flat(tile), data)
        part = {k: v[:, 2:4] if v.ndim > 1 else v for k, v in data.items()}
        assert_same(flat(tile, 2, 4), part)
        assert tile.bytes_per_row == W * (T * 21 + 7 * 4)
    assert len({tile.fingerprint() for tile in tiles.values()}) == 1
    assert tiles["folder"].year == 2019 and tiles["folder"].name == "farm_2019"
    assert tiles["by variable"].year == 2024
    assert tiles["dict"].year is None


def test_rows_of_files_are_read_alone_and_of_arrays_share_memory(tmp_path):
    data = arrays()
    tile = open_tile(save(tmp_path / "t", data))
    for name, array in flat(tile, 1, 3).items():
        if array.ndim > 1:  # a map would keep more than these rows resident
            assert not isinstance(array, np.memmap) and array.base is None, name
            np.testing.assert_array_equal(array, data[name][:, 1:3])
    for name, array in flat(open_tile(data), 1, 3).items():
        if array.ndim > 1:
            assert np.shares_memory(array, data[name]), name
    dataset = stacked(data, range(10), (0, 1), ("time", "y", "x", "band"))
    dataset["bands"] = dataset["bands"].copy(data=data["bands"])
    assert np.shares_memory(open_tile(dataset).rows(0, 2).s2_bands, data["bands"])


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    wide = np.repeat(array, 2, axis=2)
    return {
        "fortran": np.asfortranarray(array),
        "byte-swapped": array.astype(array.dtype.newbyteorder(">")),
        "strided columns": wide[:, :, ::2],
        "strided rows": np.repeat(array, 2, axis=1)[:, ::2],
    }


@pytest.mark.parametrize("layout", ["fortran", "byte-swapped", "strided columns", "strided rows"])
def test_other_memory_layouts_are_read_right(tmp_path, layout):
    data = arrays()
    odd = {k: layouts(v)[layout] if v.ndim > 1 else v for k, v in data.items()}
    for source in (odd, save(tmp_path / "t", odd)):
        tile = open_tile(source)
        assert_same(flat(tile), data)
        assert tile.fingerprint() == open_tile(data).fingerprint()
        inner = tile.rows(1, 4).s2_bands[0, 0]
        assert inner.flags.c_contiguous and inner.dtype.isnative


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint16"])
def test_masks_of_other_types_become_uint8(dtype):
    data = arrays()
    tile = open_tile(data | {"masks": data["masks"].astype(dtype)})
    assert_same(flat(tile), data)


def test_converted_masks_beyond_0_and_1_are_refused():
    data = arrays()
    masks = data["masks"].astype(np.int32)
    masks[2, 5, 3] = 4
    tile = open_tile(data | {"masks": masks})
    tile.rows(0, 5)
    with pytest.raises(InputError, match=r"masks: .* got 4 at date 2, row 5, column 3"):
        tile.rows(4, 7)


@pytest.mark.parametrize("absent", ["missing", "none", "empty"])
def test_absent_orbit(absent):
    data = arrays()
    for key in ("sar_descending", "sar_descending_doy"):
        if absent == "missing":
            del data[key]
        else:
            data[key] = None if absent == "none" else data[key][:0]
    assert open_tile(data).dates == (T, 3, 0)
    assert [orbit.index for orbit in open_tile(data).rows(0, 1).orbits] == [0]


def test_sentinel2_alone_only_when_allowed():
    data = {k: v for k, v in arrays().items() if not k.startswith("sar")}
    with pytest.raises(InputError, match=r"allow_missing_s1=True \(--allow-missing-s1\)"):
        open_tile(data)
    assert open_tile(data, allow_missing_s1=True).dates == (T, 0, 0)


def test_float_series_and_float_days_are_accepted():
    data = arrays()
    changed = {k: v.astype(np.float32) for k, v in data.items() if k != "masks"}
    tile = open_tile(data | changed)
    assert tile.rows(0, 1).s2_bands.dtype == np.float32
    assert tile.s2_doys.dtype == np.int32


BIG = np.broadcast_to(np.ones(1, np.uint8), (65_536, 1, 1))
ERRORS = {  # change to the good arrays -> what the message says; None leaves the array out
    "no bands": ({"bands": None}, "bands.*missing"),
    "no masks": ({"masks": None}, "masks.*missing.*all-ones array declares all clear"),
    "no days": ({"doys": None}, "doys.*missing"),
    "no orbit days": ({"sar_ascending_doy": None}, "sar_ascending_doy.*missing or empty"),
    "no orbit bands": ({"sar_descending": None}, "sar_descending.*missing or empty"),
    "one empty": ({"sar_ascending": np.ones((0, H, W, 2), np.int16)}, "sar_ascending.*empty"),
    "bands dims": (
        {"bands": np.ones((T, H, W), np.uint16)},
        r"bands.*\(T, H, W, 10\).*\(5, 7, 6\)",
    ),
    "nine bands": ({"bands": np.ones((T, H, W, 9), np.uint16)}, r"bands.*10\).*6, 9\).*B04 B02"),
    "three bands": ({"sar_ascending": np.ones((3, H, W, 3), np.int16)}, r"sar_asc.*2\).*6, 3\)"),
    "mask dates": (
        {"masks": np.ones((4, H, W), np.uint8)},
        r"masks.*\(5, 7, 6\) uint8 to match bands.*got \(4, 7, 6\)",
    ),
    "mask width": ({"masks": np.ones((T, H, 5), np.uint8)}, r"masks.*got \(5, 7, 5\)"),
    "day count": ({"doys": np.arange(1, 5)}, r"doys.*\(5,\) to match bands.*\(4,\)"),
    "day dims": ({"doys": np.ones((T, 1), int)}, r"doys.*\(5,\).*\(5, 1\)"),
    "sar size": (
        {"sar_ascending": np.ones((3, H, 5, 2), np.int16)},
        r"sar_ascending.*\(3, 7, 6, 2\) to match bands.*\(3, 7, 5, 2\)",
    ),
    "sar days": ({"sar_ascending_doy": np.arange(1, 3)}, r"sar_ascending_doy.*\(3,\).*\(2,\)"),
    "no dates": ({"bands": np.ones((0, H, W, 10), np.uint16)}, r"bands.*at least one date"),
    "no rows": ({"bands": np.ones((T, 0, W, 10), np.uint16)}, r"bands.*row.*\(5, 0, 6, 10\)"),
    "no columns": ({"bands": np.ones((T, H, 0, 10), np.uint16)}, r"bands.*column"),
    "bands dtype": ({"bands": np.ones((T, H, W, 10))}, "bands.*uint16, int16.*float64; cast"),
    "sar dtype": ({"sar_ascending": np.ones((3, H, W, 2), np.int64)}, "sar_ascending.*int64; cast"),
    "sar mixed": ({"sar_descending": np.ones((4, H, W, 2), np.float32)}, "sar_de.*int16.*float32"),
    "mask dtype": ({"masks": np.ones((T, H, W), np.float32)}, "masks.*float32; cast"),
    "day dtype": ({"doys": np.array(list("abcde"))}, "doys.*integers"),
    "day 0": ({"doys": np.array([1, 2, 0, 4, 5])}, r"doys.*1\.\.366, got 0 at index 2"),
    "day 367": ({"sar_ascending_doy": np.array([1, 367, 368])}, "sar_asc.*doy.* 367 at index 1"),
    "day 1.5": ({"doys": np.array([1, 2, 3, 1.5, 5])}, r"doys.*got 1\.5 at index 3"),
    "day NaN": ({"doys": np.array([np.nan, 2, 3, 4, 5])}, "doys.*got nan at index 0"),
    "many dates": (
        {
            "bands": np.broadcast_to(np.ones(1, np.uint16), (65_536, 1, 1, 10)),
            "masks": BIG,
            "doys": np.ones(65_536, int),
        },
        "bands.*at most 65535.*65536",
    ),
    "many orbit dates": (
        {name: np.broadcast_to(np.ones(1, np.int16), (40_000, H, W, 2)) for name in NAMES}
        | {f"{name}_doy": np.ones(40_000, int) for name in NAMES},
        "sar_ascending.*and sar_descending.*at most 65535 dates, got 80000",
    ),
}


def changed(case: str) -> dict[str, np.ndarray]:
    data = arrays() | ERRORS[case][0]
    return {name: array for name, array in data.items() if array is not None}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_dict(case):
    with pytest.raises(InputError, match=f"^{ERRORS[case][1]}"):
        open_tile(changed(case))


@pytest.mark.parametrize("case", [c for c in ERRORS if not c.startswith("many")])
def test_bad_folder_names_the_file(tmp_path, case):
    folder = save(tmp_path / "t", changed(case))
    name = ERRORS[case][1].split(".*")[0]
    with pytest.raises(InputError, match=ERRORS[case][1]) as error:
        open_tile(folder)
    assert str(error.value).startswith(f"{folder}/{name}")
    assert ".npy" in str(error.value)


def test_unknown_key_is_not_ignored():
    with pytest.raises(InputError, match=r"got sar_desc\. Did you mean 'sar_descending'\?$"):
        open_tile(arrays() | {"sar_desc": np.ones(3)})


@pytest.mark.parametrize("source", [3, None, np.ones(3)])
def test_other_objects_are_refused(source):
    with pytest.raises(InputError, match="expected a folder, a dict of arrays"):
        open_tile(source)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        open_tile(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="got a file"):
        open_tile(tmp_path / "file")


def damage(path: Path, how: str) -> None:
    good = path.read_bytes()
    if how == "object array":
        np.save(path, np.array([{}, 1], dtype=object), allow_pickle=True)
    elif how == "archive":
        with open(path, "wb") as file:
            np.savez(file, a=np.ones(3))
    else:
        cut = {
            "short by a byte": good[:-1],
            "half a header": good[:40],
            "empty": b"",
            "not an array": b"GIF89a" * 9,
        }
        path.write_bytes(cut[how])


@pytest.mark.parametrize("name", ["bands", "masks", "doys", "sar_ascending", "sar_descending_doy"])
@pytest.mark.parametrize(
    "how", ["short by a byte", "half a header", "empty", "not an array", "object array", "archive"]
)
def test_unreadable_npy(tmp_path, name, how):
    folder = save(tmp_path / "t", arrays())
    damage(folder / f"{name}.npy", how)
    with pytest.raises(InputError, match=rf"{name}\.npy: expected"):
        open_tile(folder)


def test_file_that_changes_after_opening(tmp_path):
    folder = save(tmp_path / "t", arrays())
    tile = open_tile(folder)
    np.save(folder / "bands.npy", np.ones((T, H - 1, W, 10), np.uint16))
    with pytest.raises(InputError, match="as when the tile was opened"):
        tile.rows(0, 2)


def test_rows_outside():
    tile = open_tile(arrays())
    for start, stop in ((-1, 2), (0, H + 1), (3, 3), (4, 2)):
        with pytest.raises(InputError, match=r"rows in 0\.\.7"):
            tile.rows(start, stop)


def test_fingerprint_follows_content_not_place(tmp_path):
    data = arrays()
    folder = save(tmp_path / "a_2018", data)
    copy = Path(shutil.copytree(folder, tmp_path / "b_2021"))
    first = open_tile(folder).fingerprint()
    assert open_tile(copy).fingerprint() == first == open_tile(folder).fingerprint()
    for name, array in data.items():
        other = array.copy()
        other.flat[-1] -= 1  # the last line is always sampled
        assert open_tile(data | {name: other}).fingerprint() != first, name
    narrow = {k: v[:, :, :5] if v.ndim > 1 else v for k, v in data.items()}
    assert open_tile(narrow).fingerprint() != first
    one_orbit = {k: v for k, v in data.items() if not k.startswith("sar_ascending")}
    assert open_tile(one_orbit).fingerprint() != first


@pytest.mark.parametrize(
    ("name", "year"),
    [
        ("flanders_2018", 2018),
        ("2019", 2019),
        ("x20190", None),
        ("a2018b", 2018),
        ("1899_x", None),
        ("tile_2018_2019", None),
        ("31UDS", None),
        ("x_1999-y", 1999),
        ("0_2000_500_2500", None),
    ],
)
def test_year_in_name(name, year):
    assert year_in(name) == year


def test_a_tile_passes_through_and_can_be_relabelled():
    tile = open_tile(arrays())
    assert open_tile(tile) is tile
    other = open_tile(tile, name="b", year=2020, crs=32631, transform=(10, 0, 5, 0, -10, 9))
    assert (other.name, other.year, other.crs) == ("b", 2020, "EPSG:32631")
    assert other.transform == (10.0, 0.0, 5.0, 0.0, -10.0, 9.0)
    for bad in ((1, 2, 3), (10, 0, np.nan, 0, -10, 0)):
        with pytest.raises(InputError, match="transform: expected six finite numbers"):
            open_tile(tile, transform=bad)


def write_roi(path: Path, shape=(H, W), **georeference) -> None:
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=shape[0],
        width=shape[1],
        count=1,
        dtype="uint8",
        **georeference,
    ) as roi:
        roi.write(np.ones(shape, np.uint8), 1)


def test_roi(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    folder = save(tmp_path / "t", arrays())
    assert open_tile(folder).crs is None
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_600_000)
    write_roi(folder / "roi.tiff", crs="EPSG:32631", transform=transform)
    tile = open_tile(folder)
    assert tile.crs == "EPSG:32631"
    assert tile.transform == (10, 0, 500_000, 0, -10, 5_600_000)
    assert open_tile(folder, crs="EPSG:32632").crs == "EPSG:32632"
    write_roi(folder / "roi.tiff", (H, W + 1), crs="EPSG:32631", transform=transform)
    with pytest.raises(InputError, match=r"roi\.tiff: expected \(7, 6\) .* got \(7, 7\)"):
        open_tile(folder)
    (folder / "roi.tiff").write_bytes(b"no tiff")
    with pytest.raises(InputError, match=r"roi\.tiff: expected a GeoTIFF"):
        open_tile(folder)


def test_roi_without_rasterio(tmp_path, monkeypatch):
    folder = save(tmp_path / "t", arrays())
    (folder / "roi.tiff").write_bytes(b"not read")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    tile = open_tile(folder)
    assert_same(flat(tile), arrays())
    for attribute in ("crs", "transform"):
        with pytest.raises(TesseraError, match=r"pip install 'tessera_fast\[geo\]'"):
            getattr(tile, attribute)
    assert open_tile(folder, crs="EPSG:32631").crs == "EPSG:32631"


def test_opening_a_tile_imports_numpy_only():
    code = (
        "import sys, tessera_fast.tile as t; "
        "print([m for m in ('xarray', 'rasterio', 'pyproj', 'zarr', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["flanders_2018", "flanders_2019", "abies_2020"])
def test_real_tiles_open(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"real tiles are not at {DATA}")
    tile = open_tile(DATA / name)
    assert tile.year == int(name[-4:])
    raw = np.load(DATA / name / "bands.npy")
    np.testing.assert_array_equal(tile.rows(0, tile.height).s2_bands, raw)
