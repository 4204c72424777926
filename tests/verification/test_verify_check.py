"""`tessera-fast verify A`: a sound output is sound, and each kind of damage is named."""

import json
import re
import shutil
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fake_tiles import listing
from tessera_fast.errors import StoreError
from tessera_fast.store.output import open_output
from tessera_fast.verification import check
from verify_outputs import (
    HERE,
    INT8,
    arrays,
    copy,
    edit_json,
    geotessera_like,
    marker,
    sound,
    store,
    tile,
)

zarr = pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
pytest.importorskip("pyproj", reason="a store needs pyproj")
VALID = np.argwhere(np.isfinite(sound()[1]))
GONE = np.argwhere(~np.isfinite(sound()[1]))
ROW, COLUMN = (int(v) for v in VALID[11])
SHARD = "c/0/0/0"


@pytest.fixture(scope="module")
def _store(tmp_path_factory):
    return store(tmp_path_factory.mktemp("sound") / "x.zarr")


@pytest.fixture
def path(_store, tmp_path):
    return copy(_store, tmp_path / "x.zarr")


def test_a_sound_store(path):
    found = check(path)
    assert found.sound and not found.problems and not found.notes, str(found)
    assert found.counts == {
        "zones": 1,
        "shards": 7,
        "pixels with data": len(VALID),
        "markers": 1,
        "digests": 7,
    }
    assert str(found).splitlines()[0] == f"{path}: sound"


def set_pixel(name, value, at=(ROW, COLUMN)):
    def damage(path):
        arrays(path)[name][0, ..., at[0], at[1]] = value

    return damage


def set_code(value, at=(ROW, COLUMN)):
    def damage(path):
        for name in ("embeddings", "embeddings_d8", "embeddings_d16"):
            arrays(path)[name][0, 5, at[0], at[1]] = value

    return damage


def shrink_codes(path):
    """No code is 127 any more, in the prefixes as in the whole."""
    group = arrays(path)
    for name in ("embeddings", "embeddings_d8", "embeddings_d16"):
        group[name][0, :, ROW, COLUMN] = group[name][0, :, ROW, COLUMN] // 2


def truncate(name, size):
    def damage(path):
        file = path / "utm31" / name / ("c/0/0/0/0" if "embed" in name else SHARD)
        file.write_bytes(file.read_bytes()[:size])

    return damage


def flip_byte(path):
    file = path / "utm31/embeddings/c/0/0/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 255
    file.write_bytes(content)


def remove(*names):
    def damage(path):
        for name in names:
            (path / "utm31" / name / ("c/0/0/0/0" if "embed" in name else SHARD)).unlink()

    return damage


def shift_x(path):
    arrays(path)["x"][:] -= 5


def forget_consolidated(path):
    edit_json(path / "zarr.json", lambda c: c.pop("consolidated_metadata"))


def stale_consolidated(path):
    def change(content):
        content["consolidated_metadata"]["metadata"]["utm31/scales"]["shape"] = [1, 9, 9]

    edit_json(path / "zarr.json", change)


def numbers_for_attributes(path):
    edit_json(path / "utm31/scales/zarr.json", lambda c: c.update(attributes=3))


def edit_marker(**changes):
    return lambda path: edit_json(marker(path), lambda c: c.update(changes))


def other_model(path):
    edit_json(marker(path), lambda c: c["provenance"].update(model="v2-large"))


def leave(name):
    def damage(path):
        folder = Path(f"{path}.state") / name / "b.2020"
        folder.mkdir(parents=True)
        (folder / "embeddings.npy").touch()

    return damage


def remove_everything(path):
    remove(*(k for k, a in arrays(path).arrays() if a.ndim > 2))(path)


EMBEDDINGS, PIXEL = "embeddings/c/0/0/0/0", f"utm31, year 2020, row {ROW} column {COLUMN}"
HOLE = tuple(int(v) for v in GONE[0])
DAMAGE = {
    "truncated": (truncate("embeddings", 900), EMBEDDINGS, "cannot be decoded (900 bytes"),
    "empty": (truncate("scales", 0), "scales/c/0/0/0", "cannot be decoded"),
    "no embeddings": (remove("embeddings"), EMBEDDINGS, "is missing, while scales have data"),
    "no prefix": (remove("embeddings_d8"), "embeddings_d8/c/0/0/0/0", "is missing"),
    "no scales": (remove("scales"), "scales/c/0/0/0", "is missing, while embeddings have data"),
    "nothing": (remove_everything, "utm31", "is not as the last commit left it"),
    "negative scale": (set_pixel("scales", -1), PIXEL, "neither positive nor +inf"),
    "zero scale": (set_pixel("scales", 0), PIXEL, "neither positive nor +inf"),
    "-inf": (set_pixel("scales", -np.inf), PIXEL, "neither positive nor +inf"),
    "codes without data": (
        set_code(3, HOLE),
        f"row {HOLE[0]} column {HOLE[1]}",
        "codes are not 0 where scale is +inf",
    ),
    "-128": (set_code(-128), PIXEL, "a code is -128"),
    "wrong scale": (shrink_codes, PIXEL, "no code is 127 or -127"),
    "prefix": (set_pixel("embeddings_d16", 9), PIXEL, "is not the first 16 of embeddings"),
    "x": (shift_x, "utm31/x", "(half a pixel apart"),
    "no consolidated": (forget_consolidated, "x.zarr", "has no consolidated metadata"),
    "stale consolidated": (stale_consolidated, "utm31", "out of date for scales"),
    "marker elsewhere": (
        edit_marker(transform=[10, 0, 601360, 0, -10, 5629680.0]),
        "a.2020.json",
        "is not within the store's extent",
    ),
    "marker of another year": (edit_marker(year=1999), "a.2020.json", "extent and years"),
    "marker of another zone": (
        edit_marker(crs="EPSG:32605"),
        "a.2020.json",
        "which the store lacks",
    ),
    "marker off the lattice": (
        edit_marker(transform=[10, 0, 501364, 0, -10, 5629680.0]),
        "a.2020.json",
        "off the store's pixels",
    ),
    "marker of another CRS": (edit_marker(crs="EPSG:4326"), "a.2020.json", "that no store holds"),
    "marker of another model": (other_model, "a.2020.json", "model 'v2-large', 'v2-nano'"),
    "marker unreadable": (lambda p: marker(p).write_text("{"), "a.2020.json", "cannot be read"),
    "spool": (leave("spool"), "x.zarr.state/spool", "rows of unfinished tiles"),
    "transaction": (leave("commit"), "x.zarr.state/commit", "not wholly in place"),
    "zone metadata": (lambda p: (p / "utm31/zarr.json").write_text("{"), "x.zarr", ""),
    "attributes": (numbers_for_attributes, "zarr.json", "attributes: expected an object"),
    "root metadata": (
        lambda p: (p / "zarr.json").write_text("nonsense"),
        "zarr.json",
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_each_damage_is_named(path, case):
    damage, where, what = DAMAGE[case]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        damage(path)
        found = check(path)
    assert not found.sound
    named = [p for p in found.problems if where in p.where and what in p.what]
    assert len(named) == 1, str(found)
    assert all(p.fix for p in found.problems)
    alone = case != "zone metadata"  # which also loses what is in it
    assert not alone or len(found.problems) == 1, str(found)


def test_a_flipped_byte_that_decodes_breaks_a_rule(path):
    """Shards have a checksum of their index alone."""
    flip_byte(path)
    found = check(path)
    assert any("is not the first 16 of embeddings" in p.what for p in found.problems)


@pytest.mark.parametrize(
    ("at", "what"),
    [((ROW, COLUMN), "has no observation"), (HOLE, "a pixel without data has observations")],
)
def test_counts_belong_to_the_pixels(path, at, what):
    present = at == (ROW, COLUMN)
    for name in ("s2_obs_count", "s1_asc_obs_count", "s1_desc_obs_count"):
        set_pixel(name, 0 if present else 3, at)(path)
    found = check(path)
    assert [what in p.what for p in found.problems] == [True]
    assert f"row {at[0]} column {at[1]}" in found.problems[0].where


def test_water_and_floors_are_no_fault(path):
    shutil.rmtree(f"{path}.state")  # whose digests tell that the store was changed
    set_pixel("scales", np.nan, HOLE)(path)
    shrink_codes(path)
    set_pixel("scales", np.float32(1e-12) / np.float32(127))(path)
    found = check(path)
    assert found.sound, str(found)


def test_a_large_store_with_a_lost_shard(tmp_path):
    key = tile("big", 300, 600)
    path = store(tmp_path / "big.zarr", {key: sound(key)})
    assert check(path).sound
    (path / "utm31/embeddings/c/0/0/1/2").unlink()
    found = check(path)
    assert [p.where for p in found.problems] == [str(path / "utm31/embeddings/c/0/0/1/2")]
    for file in path.glob("utm31/*/c/**/1/2"):
        file.unlink()
    found = check(path)
    (problem,) = found.problems
    assert problem.where.endswith("/1/2") and "nor are 6 more of its shard" in problem.what


@pytest.mark.parametrize("name", ["embeddings", "embeddings_d8", "scales"])
def test_what_it_says_to_do_mends_the_store(tmp_path, name):
    left, right = tile("left", 45, 300), tile("right", 45, 300, x0=HERE.transform[2] + 2900)
    tiles = {left: sound(left), right: sound(right, seed=1)}
    path = store(tmp_path / "x.zarr", tiles)
    before = listing(path)
    file = path / "utm31" / name / ("c/0/0/0/1" if "embed" in name else "c/0/0/1")
    file.write_bytes(file.read_bytes()[:500])
    (problem,) = check(path).problems
    patterns = re.findall(r"/utm31/(\S+?);? ", problem.fix)
    names = re.findall(r"\S+\.json", problem.fix)
    assert (len(patterns), names) == (2, ["left.2020.json", "right.2020.json"])
    for pattern in patterns:
        for file in (path / "utm31").glob(pattern):
            file.unlink()
    store(path, tiles)
    assert check(path).sound
    assert listing(path) == before


def test_a_store_in_use_is_said_to_be(path):
    key = tile("b", x0=HERE.transform[2] + 610)
    with closing(open_output(path, [key], INT8)) as output:
        writer = output.begin(key)
        found = check(path)
        assert found.sound and "a process has it open" in found.notes[0]
        writer.abort()
    assert check(path).notes == []


def test_nothing_is_changed(path):
    def state():
        files = [p for root in (path, Path(f"{path}.state")) for p in root.rglob("*")]
        return sorted((p, p.stat().st_mtime_ns) for p in files)

    leave("spool")(path)
    before = state()
    check(path)
    assert state() == before


def test_another_program_s_store_is_sound(tmp_path, path):
    theirs = geotessera_like(tmp_path / "theirs.zarr", path, shard=512, margin=490)
    found = check(theirs)
    assert found.sound, str(found)
    assert found.counts["pixels with data"] == len(VALID) and found.counts["shards"] == 8
    (theirs / "utm31/embeddings/c/0/0/1/1").write_bytes(b"x" * 5000)
    found = check(theirs)
    assert len(found.problems) == 1 and "embeddings/c/0/0/1/1" in found.problems[0].where


def test_a_store_without_its_state_is_sound(path):
    shutil.rmtree(f"{path}.state")
    found = check(path)
    assert found.sound and "no record of finished tiles" in found.notes[0]


# ---- the command line


def test_the_command_line(path, run, tmp_path):
    result = run("verify", path)
    assert (result.code, result.out.splitlines()[0]) == (0, f"{path}: sound")
    remove("embeddings")(path)
    result = run("verify", path, "--json", tmp_path / "check.json")
    assert result.code == 1 and "1 problem" in result.out and "tessera-fast embed" in result.out
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["sound"] is False and len(content["problems"]) == 1
    result = run("verify", tmp_path)
    assert result.code == 1 and "expected a Zarr store of embeddings" in result.err
    with pytest.raises(StoreError, match="expected a Zarr store"):
        check(tmp_path / "nothing")


def test_a_real_run_is_sound(farm, mini, run, tmp_path):
    for name, more in (("s.zarr", ()), ("f", ()), ("q", ("--int8",))):
        assert run("embed", farm, "-o", tmp_path / name, "--model", mini, *more).code == 0
        assert run("verify", tmp_path / name).code == 0


def test_markers_of_an_earlier_version(path):
    """Without an identity and digests; what can be seen of them is checked."""
    edit_json(marker(path), lambda c: [c.pop(k) for k in ("format", "identity", "shards")])
    (Path(f"{path}.state") / "identity.json").unlink()
    found = check(path)
    assert found.sound and "no digest was checked" in found.notes[0]
    remove_everything(path)
    (problem,) = check(path).problems
    assert "the store has no shard at its place" in problem.what
