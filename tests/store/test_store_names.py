"""Names and places of an output: two tiles of one name, and file systems that do not behave."""

import os
import re
import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fake_tiles import PROVENANCE, X0, listing, spool, tile, write
from states import ALL, DATA, FIRST, OUTPUTS, SECOND, is_done, made, state_of
from tessera_fast.errors import StoreError
from tessera_fast.store import disk
from tessera_fast.store.output import open_output
from tessera_fast.verification import check as verified
from verify_outputs import edit_json

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")

# ---- two tiles of one name

OTHER = {"fingerprint": "other inputs"}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("x0", [X0, X0 + 610], ids=["one place", "another place"])
def test_another_tile_of_the_same_name_is_refused(name, x0, tmp_path):
    path = tmp_path / name
    mine = replace(FIRST, source="/data/a/first")
    theirs = replace(tile("t0", x0=x0), source="/data/b/first", **OTHER)
    write(path, {mine: DATA[FIRST]})
    before = listing(tmp_path)
    with closing(open_output(path, [theirs], PROVENANCE)) as out:
        assert not out.is_done(theirs)
        assert "/data/a/first," in out.refusal(theirs) and "/data/b/first," in out.refusal(theirs)
        with pytest.raises(StoreError, match="two tiles have the name 't0'"):
            out.begin(theirs)
    assert listing(tmp_path) == before
    assert is_done(path, mine)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "changes",
    [{"source": "/data/a/first"}, {"source": None}],
    ids=["same source", "arrays of the same place"],
)
def test_the_same_tile_may_change_its_inputs(name, changes, tmp_path):
    path = tmp_path / name
    mine = replace(FIRST, source="/data/a/first")
    again = replace(mine, **OTHER, **changes)
    write(path, {mine: DATA[FIRST]})
    write(path, {again: DATA[FIRST]})
    assert is_done(path, again)


def test_a_folder_keeps_the_year_that_it_has(tmp_path):
    path = tmp_path / "folder"
    made(path, FIRST)
    later = replace(FIRST, year=2021, **OTHER)
    with (
        closing(open_output(path, [later], PROVENANCE)) as out,
        pytest.raises(StoreError, match="two tiles have the name"),
    ):
        out.begin(later)


# ---- file systems that do not behave


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_dangling_link_for_a_state_or_a_lock(name, tmp_path):
    path = tmp_path / name
    state_of(path).parent.mkdir(exist_ok=True)
    os.symlink(tmp_path / "nowhere", state_of(path))
    with pytest.raises(StoreError, match="a symbolic link"):
        open_output(path, [FIRST], PROVENANCE)
    state_of(path).unlink()
    state_of(path).mkdir()
    os.symlink(tmp_path / "nowhere", state_of(path) / "lock")
    with pytest.raises(StoreError, match="cannot be used"):
        open_output(path, [FIRST], PROVENANCE)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_system_that_numbers_open_files_anew(tmp_path, monkeypatch):
    from tessera_fast.store import locks

    real = os.stat

    def renumbered(path, *arguments, **options):
        found = real(path, *arguments, **options)
        return os.stat_result((found[0], found[1] + 1, *found[2:]))

    class Numbers:
        def __getattr__(self, name):
            return renumbered if name == "stat" else getattr(os, name)

    monkeypatch.setattr(locks, "os", Numbers())
    with pytest.raises(StoreError, match="expected a file that stays the same while it is open"):
        open_output(tmp_path / "x.zarr", [FIRST], PROVENANCE)


def test_the_lock_file_follows_the_umask(tmp_path):
    before = os.umask(0o002)
    try:
        out = open_output(tmp_path / "x.zarr", [FIRST], PROVENANCE)
        assert (state_of(tmp_path / "x.zarr") / "lock").stat().st_mode & 0o777 == 0o664
        out.close()
    finally:
        os.umask(before)


def test_trees_are_removed_without_following_links(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    os.symlink(outside, tmp_path / "link")
    disk.remove_tree(tmp_path / "link")
    assert (outside / "precious").exists() and not (tmp_path / "link").is_symlink()


def test_a_tile_without_data_has_a_store(tmp_path):
    """It is finished, though no shard stands for it."""
    path, (codes, scales, counts) = tmp_path / "x.zarr", DATA[FIRST]
    nothing = np.zeros_like(codes), np.full_like(scales, np.inf), np.zeros_like(counts)
    write(path, {FIRST: nothing})
    assert path.exists() and is_done(path, FIRST) and verified(path).sound


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_marker_of_the_other_kind_means_not_done(name, tmp_path):
    path = tmp_path / name
    made(path, FIRST)
    torn = next((state_of(path) / "done").glob("t0*"))
    edit_json(torn, lambda c: c.update({"shards": {}}, **{} if path.suffix else {"files": {}}))
    if not path.suffix:
        edit_json(torn, lambda c: c.pop("files"))
    assert not is_done(path, FIRST)


def test_a_store_that_is_removed_while_it_is_open_is_made_anew(tmp_path):
    path = tmp_path / "x.zarr"
    with closing(open_output(path, ALL, PROVENANCE)) as out:
        for key in (FIRST, SECOND):
            writer = out.begin(key)
            spool(writer, DATA[key])
            if key is SECOND:
                shutil.rmtree(path)
            writer.commit()
        assert out.is_done(SECOND) and not out.is_done(FIRST)
    assert is_done(path, SECOND) and verified(path).sound


@pytest.mark.parametrize("name", OUTPUTS)
def test_doctor_checks_the_digests_of_an_output(name, tmp_path, run):
    path = tmp_path / name
    made(path, FIRST, SECOND)
    assert re.search(r"ok +finished tiles +2 in", run("doctor", "--out", path).out)
    file = next(path.rglob("scales/c/0/0/0") if path.suffix else path.glob("t0.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    result = run("doctor", "--out", path)
    assert result.code == 1 and "FAILED  finished tiles" in result.out
