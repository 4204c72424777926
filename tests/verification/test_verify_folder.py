"""`tessera-fast verify FOLDER`: a sound folder of .npy files is sound, each damage is named."""

import numpy as np
import pytest

from fake_tiles import listing
from tessera_fast.verification import check
from verify_outputs import HERE, float_folder, folder, sound, tile, values

VALID = np.argwhere(np.isfinite(sound()[1]))
ROW, COLUMN = (int(v) for v in VALID[11])


@pytest.fixture
def npy(tmp_path):
    return folder(tmp_path / "npy", {HERE: sound(), tile("b"): sound(seed=1)})


def test_sound_folders(tmp_path, npy):
    found = check(npy)
    assert found.sound and not found.notes, str(found)
    assert found.counts["tiles"] == found.counts["markers"] == 2
    floats = float_folder(tmp_path / "floats", {HERE: values()})
    assert check(floats).sound
    assert check(floats).counts["pixels with data"] == len(VALID)
    plain = tmp_path / "plain"
    plain.mkdir()
    np.save(plain / "x.npy", values())
    found = check(plain)
    assert found.sound and "not written by tessera_fast" in found.notes[0]
    np.save(floats / "foreign.npy", values())
    assert check(floats).sound and "foreign.npy" in check(floats).notes[0]


def change(path, edit):
    content = np.load(path)
    edit(content)
    np.save(path, content)


def negative(scales):
    scales[ROW, COLUMN] = -1


FOLDER_DAMAGE = {
    "truncated": (
        lambda p: (p / "a.npy").write_bytes((p / "a.npy").read_bytes()[:5000]),
        "a.npy",
        "cannot be read (5,000 bytes",
    ),
    "no values": (
        lambda p: np.save(p / "a.npy", np.zeros((9, 7, 0), np.int8)),
        "a.npy",
        "an array without values",
    ),
    "no scales": (lambda p: (p / "a_scales.npy").unlink(), "a.npy", "without a_scales.npy"),
    "no codes": (lambda p: (p / "a.npy").unlink(), "a_scales.npy", "neither"),
    "other size": (
        lambda p: np.save(p / "a_scales.npy", np.ones((3, 3), np.float32)),
        "a_scales.npy",
        "expected float32 (45, 61)",
    ),
    "float64": (lambda p: np.save(p / "a.npy", np.ones((45, 61, 24))), "a.npy", "got float64"),
    "scale": (lambda p: change(p / "a_scales.npy", negative), "a.npy, row", "neither positive"),
    "record": (
        lambda p: (p / ".tessera_fast/provenance.json").write_text("{"),
        "provenance.json",
        "cannot be read",
    ),
    "spool": (lambda p: (p / ".tessera_fast/spool/c").mkdir(parents=True), "spool", "unfinished"),
}


@pytest.mark.parametrize("name", ["a.npy", "a_scales.npy"])
def test_removing_a_bad_file_and_running_again_mends_a_folder(npy, name):
    before = listing(npy)
    (npy / name).write_bytes(b"x")
    (problem,) = (p for p in check(npy).problems if p.where == str(npy / name))
    assert problem.fix == "Remove it and run the same `tessera-fast embed` again"
    (npy / name).unlink()
    folder(npy, {HERE: sound()})
    assert check(npy).sound and listing(npy) == before


@pytest.mark.parametrize("case", FOLDER_DAMAGE)
def test_each_damage_of_a_folder_is_named(npy, case):
    damage, where, what = FOLDER_DAMAGE[case]
    damage(npy)
    found = check(npy)
    named = [p for p in found.problems if where in p.where and what in p.what]
    assert len(named) == 1, str(found)


@pytest.mark.parametrize(("value", "what"), [(np.nan, "only a part"), (np.inf, "is infinite")])
def test_float32_rules(tmp_path, value, what):
    plain = values(empty=0)
    plain[ROW, COLUMN, 3] = value
    found = check(float_folder(tmp_path / "f", {HERE: plain}))
    assert [what in p.what and f"row {ROW} column {COLUMN}" in p.where for p in found.problems] == [
        True
    ]


def test_a_marker_without_its_file(npy):
    for name in ("a.npy", "a_scales.npy"):
        (npy / name).unlink()
    problems = check(npy).problems
    assert [p.what for p in problems] == [
        "says that the tile is finished, and a.npy is missing",
        "says that the tile is finished, and a_scales.npy is missing",
    ]
