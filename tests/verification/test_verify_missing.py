"""What only one of two outputs holds is a difference: by `tf.verify`, the command and its JSON."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.errors import InputError
from tessera_fast.verification import Check
from verify_outputs import (
    DIMS,
    HERE,
    arrays,
    copy,
    float_folder,
    folder,
    geotessera_like,
    sound,
    store,
    tile,
    values,
)

pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
pytest.importorskip("pyproj", reason="a store needs pyproj")
LATER = tile("a", 45, 61, year=2021)
ZONE = tile("z", 30, 40, zone=32632)
BESIDE = tile("b", 30, 40, x0=HERE.transform[2] + 610)  # touches HERE, in the same layer
FAR = tile("c", 30, 40, x0=HERE.transform[2] + 9000)


def tiles(*keys):
    return {key: sound(key, seed) for seed, key in enumerate(keys)}


@pytest.mark.parametrize("extra", [LATER, ZONE, BESIDE, FAR], ids=["year", "zone", "near", "far"])
@pytest.mark.parametrize(
    "forms", ["stores", "int8", "float32", "store and folder", "folder and store"]
)
def test_what_one_lacks_is_a_difference(tmp_path, run, extra, forms):
    if extra is LATER and forms != "stores":
        extra = replace(LATER, name="later")  # a folder has one tile of a name
    write = {
        "stores": (store, store),
        "int8": (folder, folder),
        "float32": (floats, floats),
        "store and folder": (store, folder),
        "folder and store": (folder, store),
    }
    ends = [".zarr" if w is store else "" for w in write[forms]]
    more = write[forms][0](tmp_path / f"more{ends[0]}", tiles(HERE, extra))
    less = write[forms][1](tmp_path / f"less{ends[1]}", tiles(HERE))
    number = int(np.isfinite(sound(extra, 1)[1]).sum())
    for a, b, side in ((more, less, "A"), (less, more, "B")):
        found = tf.verify(a, b)
        assert found.verdict == "different" and not found.same
        assert (found.overall.only_a, found.overall.only_b)[side == "B"] == number
        assert {p["only_in"] for p in found.lonely} == {side}
        result = run("verify", a, b, "--json", tmp_path / f"{side}.json")
        assert result.code == 1 and result.out.splitlines()[2] == "different"
        assert f"only in {side}: " in result.out
        content = json.loads((tmp_path / f"{side}.json").read_text())
        assert content["same"] is False
        assert [x["pixels"] for x in content["alone"] if x["only_in"] == side] == [number]
        common = run("verify", a, b, "--ignore-missing")
        assert common.code == 0 and common.out.splitlines()[2] == "equal"
        assert f"only in {side}: " in common.out


def floats(path, made):
    return float_folder(path, {key: values(key, seed) for seed, key in enumerate(made)})


def test_a_tile_without_data_is_a_file_that_one_lacks(tmp_path):
    empty = np.full((30, 40, DIMS), np.nan, np.float32)
    one = float_folder(tmp_path / "one", {HERE: values()})
    two = float_folder(tmp_path / "two", {HERE: values(), BESIDE: empty})
    found = tf.verify(one, two)
    assert found.verdict == "different" and found.overall.only_b == 0
    assert [(x.layer, x.whole) for x in found.alone] == [("b", True)]
    assert tf.verify(one, two, ignore_missing=True).verdict == "equal"


def test_a_year_without_data_is_no_difference(tmp_path):
    """All zones of a store have one list of years, so a year may be empty in some."""
    one = store(tmp_path / "one.zarr", tiles(HERE))
    gone = sound(LATER, empty=2)
    two = store(tmp_path / "two.zarr", {HERE: sound(), LATER: gone})
    found = tf.verify(one, two)
    assert found.verdict == "equal" and found.matching.only_b == ("utm31/2021",)
    assert "only in B: utm31/2021 (no pixel with data)" in str(found)


def test_extents_may_differ_where_they_are_empty(tmp_path):
    """The same pixels, in a store that had a place for a tile that came never."""
    one = store(tmp_path / "one.zarr", tiles(HERE))
    west = tile("w", 45, 100, x0=HERE.transform[2] - 4000)
    two = store(tmp_path / "two.zarr", {HERE: sound(), west: sound(west, empty=2)})
    assert tf.verify(one, two).verdict == "equal" == tf.verify(two, one).verdict


@pytest.mark.parametrize("name", ["embeddings_d8", "s2_obs_count", "s1_asc_obs_count"])
def test_an_array_that_one_lacks(tmp_path, run, name):
    one = store(tmp_path / "one.zarr", tiles(HERE))
    two = copy(one, tmp_path / "two.zarr")
    forget(two, name)
    for a, b, side in ((one, two, "A"), (two, one, "B")):
        found = tf.verify(a, b)
        assert found.verdict == "different" and not found.same
        assert (found.arrays_only_a, found.arrays_only_b)[side == "B"] == (f"utm31/{name}",)
        result = run("verify", a, b)
        assert result.code == 1 and f"only in {side}: utm31/{name}" in result.out
        assert tf.verify(a, b, ignore_missing=True).verdict == "equal"


def forget(path, name):
    import zarr

    shutil.rmtree(path / "utm31" / name)
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(str(path))


def test_another_program_s_store_has_its_own_arrays(tmp_path):
    one = store(tmp_path / "one.zarr", tiles(HERE))
    theirs = geotessera_like(tmp_path / "theirs.zarr", one, shard=64, margin=70)
    assert tf.verify(one, theirs).verdict == "equal"
    arrays(theirs)["scales"][0, 3, 4] = 1.0  # a pixel of theirs beyond ours
    found = tf.verify(one, theirs)
    assert found.verdict == "different" and found.overall.only_b == 1
    assert [(p["row"], p["column"], p["only_in"]) for p in found.lonely] == [(3, 4, "B")]
    assert found.lonely[0]["x"] == HERE.transform[2] - 700 + 45


def test_a_tile_whose_place_is_not_known_was_not_compared(tmp_path):
    one = store(tmp_path / "one.zarr", tiles(HERE))
    nowhere = replace(BESIDE, year=None, crs=None, transform=None)
    two = folder(tmp_path / "two", tiles(HERE, nowhere))
    found = tf.verify(one, two)
    assert found.verdict == "different" and len(found.matching.unplaced) == 1
    assert tf.verify(one, two, ignore_missing=True).verdict == "equal"


def test_a_prefix_that_differs_alone(tmp_path):
    one = store(tmp_path / "one.zarr", tiles(HERE))
    two = copy(one, tmp_path / "two.zarr")
    row, column = (int(v) for v in np.argwhere(np.isfinite(sound()[1]))[3])
    arrays(two)["embeddings_d16"][0, 5, row, column] ^= 1
    found = tf.verify(one, two)
    assert found.verdict == "different" and found.overall.other_prefixes == 1
    assert "pixels of other prefixes" in str(found)
    assert tf.verify(two, two).verdict == "equal"


# ---- one output, and the width of a report


def test_one_output_is_checked_by_itself(tmp_path):
    one = store(tmp_path / "one.zarr", tiles(HERE))
    found = tf.verify(one)
    assert isinstance(found, Check) and found.sound
    arrays(one)["scales"][0, 3, 4] = -1
    assert not tf.verify(one).sound
    with pytest.raises(InputError, match="gate: compares two outputs, got one"):
        tf.verify(one, gate="fp32")


@pytest.mark.parametrize("most", [60, 80, 100])
def test_a_terminal_s_width_is_kept(tmp_path, run, monkeypatch, most):
    one = store(tmp_path / "one.zarr", tiles(HERE, LATER))
    two = copy(one, tmp_path / "two.zarr")
    row, column = (int(v) for v in np.argwhere(np.isfinite(sound()[1]))[3])
    arrays(two)["scales"][0, row, column] *= 2
    plain = run("verify", one, two).out
    assert max(map(len, plain.splitlines())) > 120
    monkeypatch.setattr("tessera_fast.commands.verify._columns", lambda: most)
    narrow = run("verify", one, two).out
    words = [w for w in plain.split() if len(w) > most - 8]
    lines = [line for line in narrow.splitlines() if not any(w in line for w in words)]
    assert max(map(len, lines)) <= most
    for word in ("beyond gate", "largest step", "norm B/A"):  # no column is lost
        assert word in narrow
    assert set(plain.split()) <= set(narrow.split())


def test_the_width_is_the_terminal_s_up_to_100(monkeypatch):
    from tessera_fast.commands import verify as command

    assert command._columns() is None  # of a pipe
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for columns, width in ((80, 80), (97, 97), (250, 100)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert command._columns() == width
