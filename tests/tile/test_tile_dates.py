"""Dates: every type of time is read or named, streams are sorted, contradictions are refused."""

import datetime
import logging

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.errors import InputError
from tessera_fast.tile import open_tile, suspicions
from tessera_fast.tile.dates import are_dates, as_dates
from tile_sources import (
    NAMES,
    T,
    arrays,
    assert_same,
    by_variable,
    classes_apart,
    dated,
    flat,
    newest_first,
    save,
    save_dates,
    scene_classes,
    stacked,
)

# ---- types of time

DAYS = np.datetime64("2024-01-01") + (arrays()["doys"] - 1).astype("m8[D]")
UTC = datetime.timezone.utc


def objects(make) -> np.ndarray:
    out = np.empty(T, object)
    out[:] = [make(day.astype(datetime.datetime)) for day in DAYS]
    return out


def at(day: datetime.date, hour=12, minute=0, zone=None) -> datetime.datetime:
    return datetime.datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)


EAST = datetime.timezone(datetime.timedelta(hours=2))
TIMES = {
    "days": DAYS,
    "big-endian": DAYS.astype(">M8[s]"),
    "nanoseconds": DAYS.astype("M8[ns]").astype(np.int64),
    "text": np.datetime_as_string(DAYS),
    "text in UTC": np.array([f"{day}T23:59:59.123456789Z" for day in DAYS]),
    "text with a zone": np.array([f"{day}T23:30:00-00:15" for day in DAYS]),
    "bytes": np.datetime_as_string(DAYS).astype("S"),
    "compact text": np.array([str(day).replace("-", "") for day in DAYS]),
    "object text": np.datetime_as_string(DAYS).astype(object),
    "date": objects(lambda day: day),
    "datetime": objects(at),
    "datetime64 objects": objects(lambda day: np.datetime64(day)),
    # 00:30 in the east is the day before in UTC
    "datetime with a zone": objects(lambda d: at(d, 0, 30, EAST) + datetime.timedelta(days=1)),
}


@pytest.mark.parametrize("case", TIMES)
def test_types_of_time(case, tmp_path):
    data = arrays()
    assert are_dates(TIMES[case])
    np.testing.assert_array_equal(as_dates(TIMES[case]).astype("M8[D]"), DAYS)
    pytest.importorskip("xarray")
    assert_same(flat(open_tile(dated(data).assign_coords(time=("time", TIMES[case])))), data)
    assert open_tile(dated(data).assign_coords(time=("time", TIMES[case]))).year == 2024
    if TIMES[case].dtype.kind == "O":
        return
    folder = save(tmp_path / "t_2024", data)
    np.save(folder / "s2_datetime.npy", TIMES[case])
    (folder / "doys.npy").unlink()
    assert_same(flat(open_tile(folder)), data)


def test_pandas_and_cftime():
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("xarray")
    index = pandas.DatetimeIndex(DAYS)
    berlin = (index + pandas.Timedelta(hours=23, minutes=30)).tz_localize("UTC")
    berlin = berlin.tz_convert("Europe/Berlin")  # there it is the next day
    for times in (berlin, np.array(list(berlin), object), list(index)):
        dataset = dated(arrays()).assign_coords(time=("time", times))
        assert_same(flat(open_tile(dataset)), arrays())
    cftime = pytest.importorskip("cftime")
    for kind in (cftime.DatetimeGregorian, cftime.DatetimeProlepticGregorian):
        times = objects(lambda d, kind=kind: kind(d.year, d.month, d.day, 23, 59))
        dataset = dated(arrays()).assign_coords(time=("time", times))
        assert_same(flat(open_tile(dataset)), arrays())
    times = objects(lambda d: cftime.Datetime360Day(d.year, d.month, min(d.day, 30)))
    with pytest.raises(InputError, match="got cftime of the calendar '360_day'"):
        open_tile(dated(arrays()).assign_coords(time=("time", times)))


def test_times_that_xarray_did_not_decode():
    pytest.importorskip("xarray")
    since = (DAYS - np.datetime64("2023-12-31")).astype(np.int64)
    for values in (since, since.astype(np.float64)):
        coordinate = ("time", values, {"units": "days since 2023-12-31", "calendar": "standard"})
        assert_same(flat(open_tile(dated(arrays()).assign_coords(time=coordinate))), arrays())
    with pytest.raises(InputError, match="time: expected dates, got units 'days since yester"):
        coordinate = ("time", since, {"units": "days since yesterday"})
        open_tile(dated(arrays()).assign_coords(time=coordinate))


NO_TIMES = {
    "positions": (
        np.arange(T),
        r"doys: missing in the Dataset; needed: .*, or dates \(datetime64"
        r".*\), got the coordinate time of int64, the first 0",
    ),
    "numbers as dates": (20240100 + np.arange(T), "time of int64, the first 20240100"),
    "seconds": (DAYS.astype("M8[s]").astype(np.int64), "time of int64, the first 1704067200"),
    "floats": (np.arange(T) + 0.5, "time of float64, the first 0.5"),
    "labels": (np.array([f"S2A_{k}" for k in range(T)]), "got the text 'S2A_0'"),
    "words": (np.array(["today"] * T), "got the text 'today'"),
    "no day": (np.array(["2024-02-30"] * T), "got the text '2024-02-30' .day is out of range"),
    "months": (DAYS.astype("M8[M]").astype(str), "got the text '2024-01'"),
    "numbers as objects": (np.array([1, 2, 3, 4, 5], object), "got 1 of type int"),
    "None": (np.array([None] * T, object), r"got NaT \(no date\) at index 0"),
    "one NaT": (np.where(np.arange(T) == 2, np.datetime64("NaT"), DAYS), "NaT .* at index 2"),
    "year 9999": (np.array(["9999-12-31"] * T), "got year 9999 at index 0, outside 1900 to 2099"),
    "beyond int64": (np.array(["0001-01-01T00:00:00+23:59"] * T), "beyond any calendar"),
}


@pytest.mark.parametrize("case", NO_TIMES)
def test_what_is_no_time_is_named(case):
    pytest.importorskip("xarray")
    values, message = NO_TIMES[case]
    with pytest.raises(InputError, match=message):
        open_tile(dated(arrays()).assign_coords(time=("time", values)))


def test_labels_beside_days_are_no_dates():
    pytest.importorskip("xarray")
    for values in (NO_TIMES["labels"][0], np.arange(T)):
        dataset = stacked(arrays()).assign_coords(time=("time", values))
        assert_same(flat(open_tile(dataset)), arrays())


def test_dates_at_the_ends_of_days_and_years():
    dates = ["2024-01-01T00:00", "2024-02-29T23:59:59.999", "2024-12-31T23:59:59.999999999"]
    found = as_dates(np.array(dates, "M8[ns]"))
    from tessera_fast.tile.dates import days_of_year

    assert days_of_year(found).tolist() == [1, 60, 366]
    assert days_of_year(as_dates(np.array(dates))).tolist() == [1, 60, 366]
    assert as_dates(np.array([], object)).shape == (0,)


# ---- the order of dates


def shuffled(data, seed=1):
    """Every stream in an order of its own, and the order of Sentinel-2."""
    random, out = np.random.RandomState(seed), dict(data)
    for names in (("bands", "masks", "doys"), *((n, f"{n}_doy") for n in NAMES)):
        order = random.permutation(len(data[names[0]]))
        out |= {name: data[name][order] for name in names}
    return out


def test_every_stream_is_sorted_by_itself():
    data = arrays()
    for other in (newest_first(data), shuffled(data), shuffled(data, 2)):
        tile = open_tile(other)
        assert_same(flat(tile), data)
        assert tile.fingerprint() == open_tile(data).fingerprint()
        assert_same(flat(tile, 2, 4), {k: v[:, 2:4] if v.ndim > 1 else v for k, v in data.items()})


def test_sorting_is_stable_and_copies_nothing_in_order():
    data = arrays()
    data["doys"] = np.array([7, 7, 5, 7, 5], np.int32)
    order = [2, 4, 0, 1, 3]
    expected = data | {name: data[name][order] for name in ("bands", "masks", "doys")}
    assert_same(flat(open_tile(data)), expected)
    assert np.shares_memory(open_tile(expected).rows(0, 3).s2_bands, expected["bands"])


def test_images_of_one_day_are_sorted_by_time(tmp_path):
    data = arrays()
    data["doys"][:] = 40
    folder = save(tmp_path / "t_2024", data)
    times = np.datetime64("2024-02-09T10:00") + np.array([3, 0, 4, 1, 2]).astype("m8[m]")
    np.save(folder / "s2_datetime.npy", times)
    np.testing.assert_array_equal(flat(open_tile(folder))["bands"], data["bands"][[1, 3, 4, 0, 2]])


def test_embeddings_do_not_depend_on_the_order(mini):
    data = arrays()
    with tf.load_model(mini) as model:
        expected = tf.embed(data, model)
        np.testing.assert_array_equal(tf.embed(shuffled(data), model), expected)
        np.testing.assert_array_equal(tf.embed(**newest_first(data), model=model), expected)


def test_official_functions_keep_the_order(mini):
    back = newest_first(arrays())
    names = {"s2_bands": "bands", "s2_masks": "masks", "s2_doys": "doys"}
    names |= {"s1_asc_bands": NAMES[0], "s1_asc_doys": f"{NAMES[0]}_doy"}
    with tf.load_model(mini) as model:
        given, sorted_ = (
            tf.encode_tile(model, **{k: d[n] for k, n in names.items()}) for d in (back, arrays())
        )
    assert not np.array_equal(given, sorted_, equal_nan=True)
    assert "in the order given" in tf.encode_tile.__doc__


# ---- dates and days that contradict each other


def test_days_that_contradict_the_dates():
    pytest.importorskip("xarray")
    dataset = dated(arrays()).assign(doys=("time", arrays()["doys"]))
    assert_same(flat(open_tile(dataset)), arrays())
    dataset["doys"] = ("time", arrays()["doys"][::-1])
    for period in (None, 2024):
        with pytest.raises(
            InputError, match=r"doys: expected the days of year of the dates, got 3"
        ):
            open_tile(dataset, period=period)
    dataset = stacked(arrays()).drop_vars("doys").assign(doys=("date", arrays()["doys"]))
    with pytest.raises(InputError, match="doys: expected the dimension time of bands, got date"):
        open_tile(dataset)


def test_masks_of_another_time_axis_are_paired_by_date():
    pytest.importorskip("xarray")
    for order in (np.arange(T), np.array([4, 3, 2, 1, 0]), np.array([1, 0, 3, 2, 4])):
        tile = open_tile(classes_apart(arrays(), order))
        assert_same(flat(tile), arrays())
        assert open_tile(classes_apart(arrays(), order), period=2024).dates == tile.dates
    later = classes_apart(arrays(), np.arange(T)[::-1])
    hours = later.t_scl.values + np.timedelta64(5, "h")  # other times of the same days
    assert_same(flat(open_tile(later.assign_coords(t_scl=hours))), arrays())
    more = classes_apart(arrays(), np.array([4, 3, 2, 1, 0]))
    fewer = more.isel(time=[0, 2])
    assert flat(open_tile(fewer))["masks"].tolist() == arrays()["masks"][[0, 2]].tolist()


def test_masks_that_cannot_be_paired():
    pytest.importorskip("xarray")
    apart = classes_apart(arrays(), np.arange(T))
    missing = apart.isel(t_scl=[0, 1, 2, 3])
    with pytest.raises(InputError, match=r"SCL: expected one mask for each date of bands, got 4"):
        open_tile(missing)
    others = apart.assign_coords(t_scl=apart.t_scl.values + np.timedelta64(1, "D"))
    with pytest.raises(InputError, match=r"SCL: expected one mask for each date of bands, got 5"):
        open_tile(others)
    with pytest.raises(InputError, match=r"SCL: .* another one with no coordinate t_scl; put both"):
        open_tile(apart.drop_vars("t_scl"))
    undated = apart.drop_vars("time").assign(doys=("time", arrays()["doys"]))
    with pytest.raises(InputError, match=r"SCL: .* the bands have no dates to pair it by"):
        open_tile(undated)
    twins = apart.assign_coords(t_scl=apart.t_scl.values[[0, 0, 1, 2, 3]])
    with pytest.raises(InputError, match="SCL: expected one mask for each date"):
        open_tile(twins)


# ---- years


def two_years():
    """``arrays`` of 2023 and 2024 as one Dataset."""
    xr = pytest.importorskip("xarray")
    streams = {"time": ["bands", "masks"]} | {f"time_{n}": [n] for n in NAMES}
    parts = [dated(arrays(), 2023).isel(time=[0, 1, 2, 3]), dated(arrays(), 2024)]
    return xr.merge(
        [
            xr.concat([part[names] for part in parts], dim=time, join="exact")
            for time, names in streams.items()
        ]
    )


def test_a_declared_year_keeps_its_dates():
    dataset = two_years()
    tile = open_tile(dataset, year=2024)
    assert_same(flat(tile), arrays())
    assert (tile.year, tile.years) == (2024, (2024,))
    assert open_tile(dataset, year=2023).dates == (4, 3, 4)
    message = r"expected dates of 2022, the year asked for, got dates of 2023 and 2024; .*--period"
    with pytest.raises(InputError, match=message):
        open_tile(dataset, year=2022)


def test_a_declared_year_that_the_dates_contradict():
    pytest.importorskip("xarray")
    message = r"expected dates of 2024, the year asked for, got dates of 2023; .*--year 2023.*--per"
    with pytest.raises(InputError, match=message):
        open_tile(
            dated(arrays() | {"doys": arrays()["doys"] - 1 + (arrays()["doys"] < 2)}, 2023),
            year=2024,
        )
    some = two_years().drop_vars("time_sar_ascending")
    some["sar_ascending_doy"] = ("time_sar_ascending", np.tile(arrays()["sar_ascending_doy"], 2))
    with pytest.raises(InputError, match=r"2023 and 2024, and days of year only for sar_ascending"):
        open_tile(some, year=2024)


def test_the_year_in_a_name(tmp_path):
    data = arrays() | {"doys": np.array([1, 40, 41, 200, 365], np.int32)}
    folder = save(tmp_path / "farm_2024", data)
    save_dates(folder, data, 2023)
    message = r"farm_2024: expected dates of 2024, the year in its name, got dates of 2023; rename"
    with pytest.raises(InputError, match=message):
        open_tile(folder)
    assert open_tile(folder, year=2023).year == 2023
    assert open_tile(folder, period=2023).year == 2023
    with pytest.raises(InputError, match="dates of 2024, the year asked for, got dates of 2023"):
        open_tile(folder, year=2024)
    days_alone = save(tmp_path / "field_2024", data)
    assert open_tile(days_alone).year == 2024
    assert open_tile(days_alone, year=2021).year == 2021  # days of year cannot contradict


def test_dates_of_several_years_are_suspected(caplog, mini):
    dataset = two_years()
    tile = open_tile(dataset)
    assert tile.year is None and tile.years == (2023, 2024)
    found = [s for s in suspicions(tile) if s.startswith("dates: ")]
    assert len(found) == 1 and "2023 and 2024" in found[0] and "--period 2024" in found[0]
    with caplog.at_level(logging.WARNING, "tessera_fast"), tf.load_model(mini) as model:
        tf.embed(dataset, model)
    assert "of 2023 and 2024, expected those of one year" in caplog.text
    for one in (open_tile(dataset, year=2024), open_tile(dataset, period="2023-07-01/2024-06-29")):
        assert not [s for s in suspicions(one) if s.startswith("dates: ")]


def test_an_opened_tile_has_its_year():
    pytest.importorskip("xarray")
    tile = open_tile(by_variable(arrays()))
    assert open_tile(tile, year=2024).year == 2024
    with pytest.raises(
        InputError, match="year: expected 2024, of which the opened Tile is, got 20"
    ):
        open_tile(tile, year=2023)
    assert open_tile(open_tile(arrays()), year=2023).year == 2023


def test_a_bool_is_no_scene_class():
    given = {k: v for k, v in arrays().items() if k != "masks"}
    with pytest.raises(
        InputError, match=r"scl: .*got bool; a mask of true and false: give it as m"
    ):
        open_tile(given | {"scl": arrays()["masks"] == 1})
    assert_same(flat(open_tile(given | {"scl": scene_classes(arrays()["masks"])})), arrays())


@pytest.mark.parametrize("year", ["2024", 2024.0])
def test_a_year_is_a_whole_number(year):
    with pytest.raises(InputError, match="year: expected a number such as 2024, got"):
        open_tile(arrays(), year=year)
    assert open_tile(arrays(), year=np.int64(2024)).year == 2024


def test_a_file_of_dates_that_cannot_be_read(tmp_path):
    folder = save(tmp_path / "t_2024", arrays())
    np.save(folder / "s2_datetime.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"^\S+/s2_datetime\.npy: expected a complete \.npy file"):
        open_tile(folder)
