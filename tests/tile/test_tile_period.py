"""A period: which dates of a source a tile has, and what is said where dates are missing."""

import datetime
import logging

import numpy as np
import pytest

import tessera_fast as tf
from places import SHARED
from tessera_fast.errors import InputError
from tessera_fast.tile import open_tile
from tessera_fast.tile.period import parse_period
from tile_sources import (
    NAMES,
    T,
    arrays,
    assert_same,
    by_variable,
    dated,
    flat,
    save,
    save_dates,
    stacked,
)

DATA = SHARED / "data"
DAY = datetime.date


def test_periods():
    whole = DAY(2024, 1, 1), DAY(2024, 12, 31)
    for same in (
        2024,
        "2024",
        whole,
        ("2024-01-01", "2024-12-31"),
        "2024-01-01/2024-12-31",
        [datetime.datetime(2024, 1, 1, 5), " 2024-12-31 "],
    ):
        assert parse_period(same) == whole
    assert parse_period(("2024-07-01", "2024-07-01")) == (DAY(2024, 7, 1), DAY(2024, 7, 1))
    assert parse_period(("2023-03-01", "2024-02-29"))[1] == DAY(2024, 2, 29)
    for bad in (
        "24",
        "2024-07-01",
        2024.5,
        None,
        True,
        ("2024-07-01",),
        ("2024-07-01", "2024-13"),
        "2024-01-01/2024-06-30/2024-12-31",
        object(),
        0,
    ):
        with pytest.raises(InputError, match="period: expected a year or the first and last day"):
            parse_period(bad)
    for first, last in (("2024-07-01", "2024-06-30"), ("2023-01-01", "2024-01-02")):
        with pytest.raises(InputError, match=r"period: expected 1 to 366 days, got .*one year"):
            parse_period((first, last))


def two_years():
    """``arrays`` twice, of 2023 and 2024, as a Dataset with real dates, and the dates of 2024."""
    first, second = arrays(), arrays()
    first["doys"] = np.array([10, 40, 190, 200, 365], np.int32)
    second["bands"] = second["bands"][::-1].copy()
    times = {"doys": "time"} | {f"{n}_doy": f"time_{n}" for n in NAMES}
    parts = [dated(first, 2023), dated(second, 2024)]
    import xarray as xr

    streams = {"time": ["bands", "masks"]} | {f"time_{n}": [n] for n in NAMES}
    joined = [
        xr.concat([part[names] for part in parts], dim=time, join="exact")
        for time, names in streams.items()
    ]
    return xr.merge(joined), first, second, times


def test_dates_of_a_period_are_kept():
    pytest.importorskip("xarray")
    dataset, first, second, _ = two_years()
    assert open_tile(dataset).dates == (2 * T, 6, 8) and open_tile(dataset).year is None
    for year, expected in ((2023, first), (2024, second)):
        tile = open_tile(dataset, period=year)
        assert_same(flat(tile), expected)
        assert_same(
            flat(tile, 3, 5), {k: v[:, 3:5] if v.ndim > 1 else v for k, v in expected.items()}
        )
        assert tile.fingerprint() == open_tile(expected).fingerprint()
        assert (tile.year, tile.period) == (year, (DAY(year, 1, 1), DAY(year, 12, 31)))
        assert tile.bytes_per_row == open_tile(expected).bytes_per_row
    assert open_tile(dataset).period is None


def test_a_period_of_two_calendar_years(caplog):
    pytest.importorskip("xarray")
    dataset, first, second, _ = two_years()
    with caplog.at_level(logging.WARNING, "tessera_fast"):
        tile = open_tile(dataset, period=("2023-07-19", "2024-02-10"))
        open_tile(dataset, period=("2023-07-19", "2024-02-10"))
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1 and "2023-07-19 to 2024-02-10 is not a calendar year" in messages[0]
    assert tile.year == 2023 and tile.s2_doys.tolist() == [200, 365, 1, 40, 41]
    found = flat(tile)
    expected = np.concatenate([first["bands"][3:], second["bands"][:3]])
    np.testing.assert_array_equal(found["bands"], expected)
    np.testing.assert_array_equal(found["sar_ascending"], second["sar_ascending"][:1])
    # no day of the descending orbit but 7 of 2024: 7, 57, 107, 157
    assert found["sar_descending_doy"].tolist() == [7]


def test_scattered_dates_and_a_lost_orbit(mini):
    """Dates are sorted; an orbit without a date in the period is absent."""
    data = arrays()
    data["doys"] = np.array([300, 40, 310, 41, 305], np.int32)
    data["sar_descending_doy"] = np.array([5, 6, 7, 8], np.int32)
    data["sar_ascending_doy"] = np.array([9, 320, 350], np.int32)
    kept = {
        "bands": [0, 4, 2],
        "masks": [0, 4, 2],
        "doys": [0, 4, 2],
        "sar_ascending": [1, 2],
        "sar_ascending_doy": [1, 2],
    }
    expected = {name: data[name][picks] for name, picks in kept.items()}
    tile = open_tile(dated(data), period=("2024-10-01", "2024-12-31"))
    assert_same(flat(tile), expected)
    with tf.load_model(mini) as model:
        np.testing.assert_array_equal(tf.embed(tile, model), tf.embed(open_tile(expected), model))
    with pytest.raises(InputError, match="at least one Sentinel-1 orbit"):
        open_tile(dated(data), period=("2024-10-20", "2024-11-06"))
    alone = open_tile(dated(data), period=("2024-10-20", "2024-11-06"), allow_missing_s1=True)
    assert alone.dates == (3, 0, 0)


def test_no_date_of_sentinel2_is_left():
    with pytest.raises(InputError, match=r"bands: .* none of 5 from 2024-01-01 to 2024-12-31"):
        open_tile(dated(arrays()), period=2025)


def test_without_dates_only_the_own_year_will_do(tmp_path):
    data = arrays()
    folder = save(tmp_path / "t_2024", data)
    tile = open_tile(folder, period=2024)
    assert_same(flat(tile), data)
    assert tile.period == (DAY(2024, 1, 1), DAY(2024, 12, 31))
    assert open_tile(data, period=2024, year=2024).year == 2024
    for source, period in ((folder, 2023), (folder, ("2024-01-01", "2024-06-30")), (data, 2024)):
        with pytest.raises(InputError, match=r"period: expected real dates .*bands.*; give dates"):
            open_tile(source, period=period)
    save_dates(folder, {k: v for k, v in data.items() if not k.startswith("sar_d")})
    with pytest.raises(InputError, match=r"only for .*sar_descending\.npy; give dates"):
        open_tile(folder, period=("2024-01-01", "2024-06-30"))


@pytest.mark.parametrize("how", ["official names", "short names"])
def test_files_of_dates(tmp_path, how):
    data = arrays()
    folder = save(tmp_path / "t", data)
    save_dates(folder, data)
    if how == "short names":
        for name in NAMES:
            file = folder / f"{name}_datetime.npy"
            file.rename(folder / file.name.replace("sar", "s1"))
    tile = open_tile(folder, period=("2024-01-01", "2024-06-30"))
    assert tile.dates == (3, 3, 4)
    np.testing.assert_array_equal(flat(tile)["bands"], data["bands"][:3])


def test_one_file_of_dates_for_the_only_orbit(tmp_path):
    data = {k: v for k, v in arrays().items() if not k.startswith("sar_asc")}
    folder = save(tmp_path / "t", data)
    save_dates(folder, data)
    (folder / "sar_descending_datetime.npy").rename(folder / "s1_datetime.npy")
    assert open_tile(folder, period=("2024-01-01", "2024-03-01")).dates == (3, 0, 2)


DATES_ERRORS = {
    "too few": (
        np.arange(4).astype("M8[D]"),
        r"expected its dates to be \(5,\) datetime64, .*, got \(4,\)",
    ),
    "numbers": (np.arange(5), r"datetime64, .*, got \(5,\) int64, the first 0"),
    "NaT": (np.full(5, np.datetime64("NaT", "s")), r"got NaT \(no date\) at index 0"),
    "other days": (
        np.datetime64("2024-01-02") + np.arange(5).astype("m8[D]"),
        r"doys\.npy: expected the days of year of the dates, got 1 for 2024-01-02",
    ),
}


@pytest.mark.parametrize("case", DATES_ERRORS)
def test_bad_files_of_dates(tmp_path, case):
    data = arrays()
    folder = save(tmp_path / "t_2024", data)
    save_dates(folder, data)
    dates, message = DATES_ERRORS[case]
    np.save(folder / "s2_datetime.npy", dates)
    for period in (None, 2024):
        with pytest.raises(InputError, match=message):
            open_tile(folder, period=period)


def test_checks_come_before_the_choice(tmp_path):
    for dataset in (stacked(arrays()), by_variable(arrays())):
        masks = "masks" if "masks" in dataset else "mask"
        with pytest.raises(InputError, match="mask"):
            open_tile(dataset.drop_vars(masks), period=2024)
    data = arrays()
    data["masks"] = data["masks"][:3]
    folder = save(tmp_path / "t_2024", data)
    save_dates(folder, data)
    with pytest.raises(InputError, match=r"masks\.npy: expected \(5, 7, 6\)"):
        open_tile(folder, period=2024)


def test_the_year_is_that_of_the_first_day():
    with pytest.raises(InputError, match="year: expected 2024, in which the period begins, got"):
        open_tile(dated(arrays()), period=2024, year=2023)
    assert open_tile(dated(arrays()), period=2024, year=2024).year == 2024


def test_an_opened_tile_has_its_period():
    tile = open_tile(dated(arrays()), period=("2024-01-01", "2024-06-30"))
    assert open_tile(tile, period=("2024-01-01", "2024-06-30")) is tile
    with pytest.raises(InputError, match="open the tile from its source with this period"):
        open_tile(tile, period=("2024-01-01", "2024-06-29"))
    plain = open_tile(arrays(), year=2024)
    assert open_tile(plain, period=2024).period == (DAY(2024, 1, 1), DAY(2024, 12, 31))
    with pytest.raises(InputError, match=r"of the opened Tile \(2024\)"):
        open_tile(plain, period=2023)


@pytest.mark.parametrize("name", ["flanders_2018", "flanders_2019", "abies_2020"])
def test_real_tiles_have_dates(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"real tiles are not at {DATA}")
    year = int(name[-4:])
    whole, chosen = open_tile(DATA / name), open_tile(DATA / name, period=year)
    assert chosen.dates == whole.dates and chosen.fingerprint() == whole.fingerprint()
    half = open_tile(DATA / name, period=(f"{year}-04-01", f"{year}-09-30"))
    first = datetime.date(year, 4, 1).timetuple().tm_yday
    kept = (whole.s2_doys >= first) & (whole.s2_doys < first + 183)
    assert 0 < kept.sum() < len(kept) and half.dates[0] == kept.sum()
    np.testing.assert_array_equal(half.rows(0, 2).s2_bands, whole.rows(0, 2).s2_bands[kept])
