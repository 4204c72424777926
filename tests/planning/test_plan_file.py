"""A plan's Parquet file and its text."""

import json
import sys

import pytest

from fuzz_files import PLAN_ROW as ROW
from tessera_fast.errors import InputError, StoreError, TesseraError
from tessera_fast.planning import plan as planning
from tessera_fast.planning.rows import Calibration, Failure, PlanRow
from tessera_fast.planning.table import Plan, count, duration, size

BARE = PlanRow(
    "b", "s3://tiles/b", None, None, None, 5, 4, 7, 3, 0, 20, 80, 55, 1.5e6, 9_000, 5_000, "cd34"
)
OPTIONS = {"model": "v2-medium", "dims": None, "workers": 4, "open": {"year": None}}


def a_plan(rows=(ROW, BARE), failed=(), calibration=None):
    return Plan(list(rows), list(failed), OPTIONS, (1 << 27, 1 << 28), calibration, 84_000_000)


def test_the_file_holds_all_of_it(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    speed = Calibration(0.1, 1e-6, 2e-12, "measured here: cpu")
    found = a_plan(failed=[Failure("/tiles/c", "not there")], calibration=speed)
    path = tmp_path / "plan.parquet"
    found.save(path)
    assert Plan.load(path) == found
    assert [p.name for p in tmp_path.iterdir()] == ["plan.parquet"]
    table = parquet.read_table(path)  # for other readers: plain columns
    assert table["source"].to_pylist() == ["/tiles/a_2024", "s3://tiles/b"]
    assert table["transform"].to_pylist()[0] == list(ROW.transform)
    assert json.loads(table.schema.metadata[b"tessera_fast.plan"])["options"] == OPTIONS
    a_plan(rows=[BARE]).save(path, overwrite=True)
    assert Plan.load(path).rows == [BARE]  # replaced


def test_an_empty_plan(tmp_path):
    pytest.importorskip("pyarrow")
    a_plan(rows=[]).save(tmp_path / "plan.parquet")
    assert Plan.load(tmp_path / "plan.parquet") == a_plan(rows=[])


def test_a_file_that_is_no_plan(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    for name, write in (
        ("text", lambda p: p.write_text("tile\n")),
        ("table", lambda p: pyarrow.parquet.write_table(arrow.table({"a": [1]}), p)),
        ("absent", lambda p: None),
    ):
        path = tmp_path / name
        write(path)
        with pytest.raises(InputError, match="plan again"):
            Plan.load(path)


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "plan.parquet" / "in the way").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written"):
        a_plan().save(tmp_path / "plan.parquet", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.parquet"]
    with pytest.raises(StoreError, match="cannot be written"):
        a_plan().save(tmp_path / "no folder" / "plan.parquet")


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (a_plan().save, Plan.load):
        with pytest.raises(TesseraError, match=r"tessera_fast\[plan\]"):
            call(tmp_path / "plan.parquet")


def test_the_command_asks_for_pyarrow_first(tmp_path, monkeypatch, run):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(planning, "plan", None)  # nothing is planned
    result = run("plan", tmp_path, "-o", tmp_path / "plan.parquet")
    assert result.code == 1 and "tessera_fast[plan]" in result.err


def test_the_summary_fits_and_counts():
    many = [ROW] * 9 + [BARE] * 3
    message = "/a/very/long/path: " + "expected something else and got this " * 5
    text = a_plan(many, [Failure("/x", message)] * 12).summary()
    assert max(map(len, text.splitlines())) <= 100
    assert "... and 2 smaller ones" in text and "... and 2 more" in text
    assert "12, 12 cannot be used" in text
    assert "1,800,060" in text and "54 M Sentinel-2, 99 M Sentinel-1" in text
    assert str(a_plan()) == a_plan().summary()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.123, "0.12 s"),
        (5.04, "5 s"),
        (12.6, "13 s"),
        (59.7, "1 min"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3599.9, "1 h"),
        (3600, "1 h"),
        (18_600, "5 h 10 min"),
        (86_390, "1 d"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1234, "1.23 k"),
        (999_950, "1 M"),
        (1.5e6, "1.5 M"),
        (123.4e9, "123 G"),
        (5.2e13, "52 T"),
    ],
)
def test_counts(number, text):
    assert count(number) == text


def test_sizes():
    assert (size(12), size(84_163_403)) == ("12 B", "84.2 MB")
