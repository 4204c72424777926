"""Units that are declared: scene classes, Sentinel-1 in dB or power, ESA's offset of Sentinel-2."""

import numpy as np
import pytest

from places import SHARED
from tessera_fast.errors import InputError
from tessera_fast.tile import open_tile
from tile_sources import (
    NAMES,
    H,
    T,
    W,
    arrays,
    assert_same,
    by_variable,
    dated,
    flat,
    in_db,
    in_power,
    save,
    save_dates,
    scene_classes,
    stacked,
)

DATA = SHARED / "data"


def with_classes(**changes):
    data = arrays()
    return (
        {"scl": scene_classes(data["masks"])}
        | {k: v for k, v in data.items() if k != "masks"}
        | changes
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64"])
def test_scene_classes_become_masks(dtype):
    classes = with_classes()
    tile = open_tile(classes | {"scl": classes["scl"].astype(dtype)})
    assert_same(flat(tile), arrays())
    assert tile.fingerprint() == open_tile(arrays()).fingerprint()


@pytest.mark.parametrize("name", ["flanders_2018", "flanders_2019"])
def test_scene_classes_of_real_tiles_give_their_masks(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"real tiles are not at {DATA}")
    tile = open_tile(DATA / name)
    files = {p.stem: np.load(p) for p in (DATA / name).glob("*.npy")}
    kept = {k: files[k] for k in ("bands", "doys", "sar_ascending", "sar_ascending_doy")}
    other = open_tile(kept | {"scl": files["s2_scl"]})
    found = other.rows(0, other.height).s2_masks
    np.testing.assert_array_equal(found, files["masks"])
    assert len(np.unique(files["s2_scl"])) > 6
    assert other.fingerprint() == tile.fingerprint()


@pytest.mark.parametrize("bad", [12, 255])
def test_classes_beyond_11_are_refused(bad, tmp_path):
    classes = with_classes()
    classes["scl"][3, 5, 2] = bad
    tile = open_tile(save(tmp_path / "t", classes))
    tile.rows(0, 5)
    with pytest.raises(InputError, match=rf"t/scl\.npy: expected .* 0\.\.11, got {bad} at date 3"):
        tile.rows(4, 6)
    with pytest.raises(InputError, match="got -1 at date 0"):
        open_tile(with_classes(scl=np.full((T, H, W), -1, np.int8))).rows(0, 1)


def test_classes_and_masks_together_are_refused(tmp_path):
    both = arrays() | with_classes()
    with pytest.raises(InputError, match=r"t/scl\.npy: .*got both in the folder .*; drop one"):
        open_tile(save(tmp_path / "t", both))
    dataset = stacked(arrays())
    with pytest.raises(InputError, match=r"SCL: .*got both in the Dataset; drop one"):
        open_tile(dataset.assign(SCL=dataset["masks"]))
    with pytest.raises(InputError, match="one of SCL and scl, got both"):
        open_tile(dataset.assign(SCL=dataset["masks"], scl=dataset["masks"]))


def test_classes_are_whole_and_fit_the_bands():
    with pytest.raises(InputError, match=r"scl: expected whole classes .* float32; cast"):
        open_tile(with_classes(scl=np.ones((T, H, W), np.float32)))
    with pytest.raises(InputError, match=r"scl: expected \(5, 7, 6\) uint8 to match bands"):
        open_tile(with_classes(scl=np.ones((T, H, W - 1), np.uint8)))


def official(power: np.ndarray) -> np.ndarray:
    """The scale of Sentinel-1 as documented, one value at a time."""
    out = np.zeros(power.shape, np.int16)
    for index, x in np.ndenumerate(power):
        if np.isfinite(x) and x > 0:
            out[index] = int(min(max((20 * np.log10(np.float64(x)) + 50) * 200, 0), 32767))
    return out


EDGES = [0, -1, np.nan, np.inf, -np.inf, 1, 1e-3, 0.0032, 1e9, 0.02, 3e-39, 0.5]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_power_to_the_official_scale(dtype):
    data = arrays()
    power = np.random.RandomState(1).lognormal(-3, 2, data["sar_ascending"].shape).astype(dtype)
    power.reshape(-1)[: len(EDGES)] = EDGES
    rest = {"sar_descending": in_power(data["sar_descending"])}
    found = flat(open_tile(data | rest | {"sar_ascending": power}, s1_units="power"))
    assert found["sar_ascending"].dtype == np.int16
    np.testing.assert_array_equal(found["sar_ascending"], official(power))
    assert found["sar_ascending"].min() == 0 and found["sar_ascending"].max() == 32767
    np.testing.assert_array_equal(found["sar_descending"], data["sar_descending"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decibel_to_the_official_scale(dtype):
    data = arrays()
    exact = data | {n: in_db(data[n], dtype) for n in NAMES}
    assert_same(flat(open_tile(exact, s1_units="db")), data)
    db = np.array([-np.inf, np.inf, np.nan, -25, -25.1, -10, 0, 200], dtype)
    expected = [0, 0, 0, 0, 0, 6000, 10_000, 32767]
    sar = np.zeros((4, H, W, 2), dtype)
    sar.reshape(-1)[:8] = db
    found = flat(open_tile(exact | {"sar_descending": sar}, s1_units="db"))["sar_descending"]
    assert found.reshape(-1)[:8].tolist() == expected and (found.reshape(-1)[8:] == 10_000).all()


def test_conversions_keep_memory_small_and_say_what_they_take():
    data = arrays()
    plain = open_tile(data).bytes_per_row
    power = open_tile(data | {n: in_power(data[n]) for n in NAMES}, s1_units="power")
    assert power.bytes_per_row == plain + W * 7 * 2 * 4  # the floats that are read


def test_float32_without_units_stays_as_it_is():
    data = arrays()
    raw = data | {n: data[n].astype(np.float32) for n in NAMES}
    for units in (None, "official"):
        assert_same(flat(open_tile(raw, s1_units=units)), raw)


def declared(text, dataset=None, name="sar_ascending"):
    data = arrays()
    dataset = stacked(data | {n: in_db(data[n]) for n in NAMES}) if dataset is None else dataset
    dataset[name].attrs["units"] = text
    return dataset


def test_one_orbit_may_be_declared():
    data = arrays()
    mixed = stacked(data | {"sar_ascending": in_db(data["sar_ascending"])})
    assert_same(flat(open_tile(declared("dB", mixed))), data)


def test_units_that_contradict_are_refused():
    with pytest.raises(InputError, match=r"sar_ascending: .* agree .*'power' and 'dB'"):
        open_tile(declared("dB"), s1_units="power")
    with pytest.raises(InputError, match=r"sar_ascending: .*official, dB or linear.*'furlong'"):
        open_tile(declared("furlong"))
    with pytest.raises(InputError, match="expected official, db, power or None, got 'dB'"):
        open_tile(arrays(), s1_units="dB")
    data = arrays()
    parts = by_variable(data | {n: in_db(data[n]) for n in NAMES})
    with pytest.raises(InputError, match=r"sar_ascending: expected one attribute units"):
        open_tile(declared("dB", parts, "sar_ascending_VV"))


def test_units_that_are_not_understood_give_way_to_the_argument():
    data = arrays()
    assert_same(flat(open_tile(declared("furlong"), s1_units="db")), data)


@pytest.mark.parametrize("units", ["db", "power"])
def test_integers_are_on_the_official_scale(units):
    with pytest.raises(InputError, match=rf"sar_ascending: .* in {units}, got int16; integers"):
        open_tile(arrays(), s1_units=units)
    with pytest.raises(InputError, match="got int16; integers"):
        open_tile(declared("1", stacked(arrays())))


def test_the_offset_is_subtracted_after_the_day_where_a_value_allows_it(tmp_path):
    data = arrays()
    data["doys"] = np.array([1, 24, 25, 26, 200], np.int32)
    data["bands"].reshape(T, -1)[:, :5] = [0, 999, 1000, 1001, 60_000]
    expected = data["bands"].copy()
    late = expected[3:]
    late[late >= 1000] -= 1000
    folder = save(tmp_path / "t_2022", data)
    save_dates(folder, data, 2022)
    for source in (dated(data, 2022), folder):
        tile = open_tile(source, s2_offset="present")
        assert_same(flat(tile), data | {"bands": expected})
        assert tile.fingerprint() == open_tile(data | {"bands": expected}).fingerprint()
    for year, changes in ((2021, False), (2023, True)):
        found = flat(open_tile(dated(data, year), s2_offset="present"))["bands"]
        assert (found[0] != data["bands"][0]).any() == changes


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_a_number_is_subtracted_from_every_date(dtype):
    data = arrays()
    data["bands"] = data["bands"].astype(dtype)
    expected = np.where(data["bands"] >= 700, data["bands"] - 700, data["bands"]).astype(dtype)
    assert_same(flat(open_tile(data, s2_offset=700)), data | {"bands": expected})
    assert_same(flat(open_tile(data, s2_offset=0)), data)


def test_offsets_that_cannot_be_subtracted():
    with pytest.raises(InputError, match=r"bands: expected real dates .* s2_offset=1000 if all"):
        open_tile(arrays(), s2_offset="present")
    for bad in ("yes", None, True, 1.5):
        with pytest.raises(InputError, match="s2_offset: expected 'removed', 'present' or"):
            open_tile(arrays(), s2_offset=bad)
    for bad in (-1, 32768):
        with pytest.raises(InputError, match=rf"s2_offset: expected 0\.\.32767, got {bad}"):
            open_tile(arrays(), s2_offset=bad)


def test_an_opened_tile_has_its_units():
    tile = open_tile(arrays())
    for options in ({"s1_units": "db"}, {"s2_offset": "present"}, {"s2_offset": 5}):
        with pytest.raises(InputError, match="where the tile is opened from its source"):
            open_tile(tile, **options)
