"""A state belongs to its output: copied, renamed and received ones, and what is planted in one."""

import json
import os
import re
import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fake_tiles import PROVENANCE, X0, check, listing, remove_shards, spool, tile, write
from tessera_fast.errors import StoreError
from tessera_fast.store import disk, transactions
from tessera_fast.store.output import open_output
from tessera_fast.verification import check as verified
from verify_outputs import sound

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")
OUTPUTS = ["x.zarr", "folder"]
# Four tiles side by side in one shard.
ALL = [tile(f"t{n}", x0=X0 + 610 * n) for n in range(4)]
FIRST, SECOND, THIRD, APART = ALL
DATA = {key: sound(key, seed=n) for n, key in enumerate(ALL)}


def made(path, *keys):
    """An output that has these tiles, and room for all."""
    with closing(open_output(path, ALL, PROVENANCE)) as out:
        for key in keys:
            writer = out.begin(key)
            spool(writer, DATA[key])
            writer.commit()


class Died(BaseException):
    """Stands for a kill."""


def die_in_commit(path, key, monkeypatch, moves):
    """A job that is killed after so many ``moves`` of the commit of ``key``."""
    left, real = [moves], transactions.Transactions._move

    def move(self, *arguments):
        if not left[0]:
            raise Died
        left[0] -= 1
        return real(self, *arguments)

    out = open_output(path, ALL, PROVENANCE)
    writer = out.begin(key)
    spool(writer, DATA[key])
    with monkeypatch.context() as patch:
        patch.setattr(transactions.Transactions, "_move", move)
        patch.setattr(type(out._state), "release", lambda *_: None)
        with pytest.raises(Died):
            writer.commit()
    out._state.locks.close()  # as the system does at a process's end


def state_of(path):
    return path.with_name(f"{path.name}.state") if path.suffix else path / ".tessera_fast"


def copied(path, target):
    """``cp -r`` of an output with its state."""
    target.parent.mkdir(exist_ok=True)
    for source in {path, state_of(path)} if path.suffix else {path}:
        name = source.name.replace(path.name, target.name)
        shutil.copytree(source, target.with_name(name), copy_function=shutil.copyfile)
    return target


def is_done(path, key):
    with closing(open_output(path, [key], PROVENANCE)) as out:
        return out.is_done(key)


def holds(path, key):
    if path.suffix:
        check(path, key, DATA[key])
    else:
        np.testing.assert_array_equal(np.load(path / f"{key.name}.npy"), DATA[key][0])


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("moves", [0, 1, 3])
@pytest.mark.parametrize("where", ["beside/{}", "copy_of_{}"])
def test_a_copy_with_a_pending_transaction_is_finished_by_itself(
    name, moves, where, tmp_path, monkeypatch
):
    """The original has gone on meanwhile: nothing of it changes."""
    path = tmp_path / name
    made(path, FIRST)
    die_in_commit(path, SECOND, monkeypatch, moves if path.suffix else min(moves, 2))
    copy = copied(path, tmp_path / where.format(name))
    made(path, APART)  # in the shard of the transaction
    before = listing(path)
    assert is_done(copy, SECOND)
    assert listing(path) == before
    assert is_done(path, FIRST) and is_done(path, SECOND) and is_done(path, APART)
    holds(copy, SECOND)
    assert is_done(copy, FIRST) and not is_done(copy, APART)
    assert verified(path).sound and verified(copy).sound


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_renamed_output_finishes_its_transaction(name, tmp_path, monkeypatch):
    path, target = tmp_path / name, tmp_path / "elsewhere" / f"renamed_{name}"
    made(path, FIRST)
    die_in_commit(path, SECOND, monkeypatch, 2)
    target.parent.mkdir()
    if path.suffix:
        state_of(path).rename(state_of(target))
    path.rename(target)
    assert is_done(target, FIRST) and is_done(target, SECOND)
    holds(target, SECOND)
    assert not path.exists() and not state_of(path).exists()


def refused(path, key):
    with closing(open_output(path, ALL, PROVENANCE)) as out:
        assert not out.is_done(key)
        before = listing(path)
        reason = out.refusal(key)
        with pytest.raises(StoreError, match="is not the file that the last commit left"):
            out.begin(key)
        assert listing(path) == before
    return reason


@pytest.mark.parametrize("older", ["state", "store"])
def test_a_copy_that_mixes_two_moments(older, tmp_path):
    """Nothing is overwritten; once the shards are removed, every tile that lay there is made again,
    also one whose marker tells of pixels that the copy never had."""
    path, mixed = tmp_path / "x.zarr", tmp_path / "mixed" / "x.zarr"
    mixed.parent.mkdir()
    made(path, FIRST)
    pairs = [(state_of(path), state_of(mixed)), (path, mixed)]
    first, second = pairs if older == "state" else pairs[::-1]
    shutil.copytree(*first)
    made(path, SECOND)
    shutil.copytree(*second)
    assert str(mixed) in refused(mixed, FIRST)
    assert not verified(mixed).sound
    remove_shards(mixed)
    made(mixed, FIRST)
    assert not is_done(mixed, SECOND), "its pixels are not there"
    made(mixed, SECOND)
    assert listing(mixed) == listing(path)
    assert is_done(mixed, FIRST) and is_done(mixed, SECOND) and verified(mixed).sound


def test_a_stale_transaction_does_not_overwrite(tmp_path, monkeypatch, caplog):
    """It was made for a shard that has been changed since."""
    path, copy = tmp_path / "x.zarr", tmp_path / "copy" / "x.zarr"
    made(path, FIRST)
    die_in_commit(path, SECOND, monkeypatch, 0)
    copy.parent.mkdir()
    shutil.copytree(state_of(path), state_of(copy))
    made(path, THIRD)
    shutil.copytree(path, copy)
    before = {k: v for k, v in listing(copy).items() if "c" in k.parts}
    assert not is_done(copy, SECOND)
    assert "given up" in caplog.text
    assert {k: v for k, v in listing(copy).items() if "c" in k.parts} == before
    refused(copy, SECOND)
    remove_shards(copy)
    made(copy, *ALL)
    made(path, *ALL)
    assert listing(copy) == listing(path)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_transaction_of_another_output_is_refused(name, tmp_path, monkeypatch):
    path, other = tmp_path / name, tmp_path / "other" / name
    for output in (path, other):
        made(output, FIRST)
    die_in_commit(other, SECOND, monkeypatch, 0)
    (state_of(other) / "commit").rename(state_of(path) / "commit")
    before = listing(path)
    with pytest.raises(StoreError, match="expected a transaction of this output"):
        is_done(path, FIRST)
    assert listing(path) == before


def test_the_state_of_another_store_is_refused(tmp_path):
    path, other = tmp_path / "x.zarr", tmp_path / "other.zarr"
    for output in (path, other):
        made(output, FIRST)
    shutil.rmtree(state_of(path))
    state_of(other).rename(state_of(path))
    with pytest.raises(StoreError, match="that of another output"):
        is_done(path, FIRST)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "place",
    ["output/../../victim", "/etc/passwd", "output//etc/passwd", "state/../../../victim",
     "output/utm31/../../../victim", "victim", "output/../victim/utm31", "state/lock",
     "output/utm31/scales/c/0/0/../../../../../victim"],
)  # fmt: skip
def test_a_planted_transaction_writes_nowhere_else(place, tmp_path, monkeypatch):
    path, victim = tmp_path / "x.zarr", tmp_path / "victim"
    victim.write_text("precious")
    made(path, FIRST)
    die_in_commit(path, SECOND, monkeypatch, 0)
    (planted,) = (state_of(path) / "commit").glob("*/list.json")
    edit(planted, lambda c: c["moves"][0].__setitem__(1, place))
    with pytest.raises(StoreError, match="where this program writes nothing"):
        is_done(path, FIRST)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("link", ["done", "commit", "spool", "staging", "shards", "."])
def test_links_in_a_state_are_not_followed(name, link, tmp_path):
    path, outside = tmp_path / name, tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.json").write_text("{}")
    made(path, FIRST)
    folder = state_of(path) / link
    if folder.exists():
        shutil.move(folder, tmp_path / "kept")
    os.symlink(outside, folder)
    with pytest.raises(StoreError, match="a symbolic link, which is not followed"):
        made(path, SECOND)
    assert [p.name for p in outside.iterdir()] == ["precious.json"]


def test_links_in_a_store_are_not_followed(tmp_path):
    path, outside = tmp_path / "x.zarr", tmp_path / "outside"
    made(path, FIRST)
    shutil.move(path / "utm31/scales/c", outside)
    os.symlink(outside, path / "utm31/scales/c")
    before = listing(outside)
    with pytest.raises(StoreError, match="no symbolic link"):
        made(path, SECOND)
    assert listing(outside) == before
    with closing(open_output(path, [SECOND], PROVENANCE)) as out:
        assert not out.is_done(SECOND)  # and nothing is pending that would stop every later run


@pytest.mark.parametrize("planted", ["/", "..", "../victim", '{"output": "../victim"}'])
def test_a_planted_birth_removes_nothing(planted, tmp_path):
    path, victim = tmp_path / "x.zarr", tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    made(path, FIRST)
    shutil.rmtree(state_of(path) / "done")
    (state_of(path) / "born").write_text(planted)
    before = listing(path)
    assert not is_done(path, FIRST)
    assert listing(path) == before and (victim / "precious").exists()


def test_names_that_file_managers_leave_are_left_alone(tmp_path):
    path = tmp_path / "x.zarr"
    made(path, FIRST)
    for folder in ("commit", "done", "."):
        (state_of(path) / folder).mkdir(exist_ok=True)
        (state_of(path) / folder / ".DS_Store").write_bytes(b"\0")
    made(path, SECOND)
    assert is_done(path, FIRST) and is_done(path, SECOND)
    assert verified(path).sound


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"fingerprint": 3}', "\xff", "link"])
def test_a_torn_marker_means_not_done(name, content, tmp_path, caplog):
    path = tmp_path / name
    made(path, FIRST, SECOND)
    torn = next((state_of(path) / "done").glob("t0*"))
    torn.unlink()
    if content == "link":
        os.symlink(tmp_path / "nowhere", torn)
    else:
        torn.write_text(content, encoding="latin-1")
    assert not is_done(path, FIRST) and is_done(path, SECOND)
    assert "does not count" in caplog.text
    made(path, FIRST)
    assert is_done(path, FIRST) and verified(path).sound
    holds(path, FIRST)


@pytest.mark.parametrize("lost", ["embeddings", "embeddings_d8", "scales", "s2_obs_count"])
def test_a_lost_shard_is_made_again(lost, tmp_path, caplog):
    """Of all tiles that lie in it, whoever is asked for first."""
    path = tmp_path / "x.zarr"
    made(path, *ALL)
    before = listing(path)
    for file in (path / "utm31" / lost / "c").rglob("*"):
        if file.is_file():
            file.unlink()
    assert not any(is_done(path, key) for key in DATA)
    made(path, SECOND)
    assert is_done(path, SECOND) and not is_done(path, FIRST)
    made(path, FIRST, THIRD, APART)
    assert listing(path) == before and all(is_done(path, key) for key in DATA)


def test_a_changed_file_is_not_overwritten(tmp_path):
    """Somebody may have worked on it. Once it is removed, the tile is made again."""
    path = tmp_path / "folder"
    made(path, FIRST)
    with (path / "t0.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x7f\x7f")
    (problem,) = verified(path).problems
    assert problem.where.startswith(str(path / "t0.npy"))
    refused(path, FIRST)
    (path / "t0.npy").unlink()
    made(path, FIRST)
    assert is_done(path, FIRST) and verified(path).sound


def test_a_file_with_another_time_is_looked_into(tmp_path):
    """As after cp: its digest decides."""
    for name in OUTPUTS:
        path = tmp_path / name
        made(path, FIRST)
        for file in path.rglob("*"):
            os.utime(file, (0, 0))
        assert is_done(path, FIRST)


def test_states_of_earlier_versions_are_refused(tmp_path):
    path = tmp_path / "x.zarr"
    made(path, FIRST)
    (state_of(path) / "identity.json").unlink()
    with pytest.raises(StoreError, match="an earlier version wrote it"):
        is_done(path, FIRST)
    shutil.rmtree(state_of(path))
    assert not is_done(path, FIRST)  # as the message says: made again, with the same result
    before = listing(path)
    made(path, FIRST)
    assert listing(path) == before
    edit(path / "zarr.json", lambda c: c["attributes"].pop("tessera_fast:identity"))
    shutil.rmtree(state_of(path))
    with pytest.raises(StoreError, match="an earlier version wrote this store"):
        is_done(path, FIRST)


def test_a_format_of_another_version_is_refused(tmp_path):
    path = tmp_path / "folder"
    made(path, FIRST)
    edit(state_of(path) / "identity.json", lambda c: c.update(format=99))
    with pytest.raises(StoreError, match="format 99, expected 2"):
        is_done(path, FIRST)


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
    edit(torn, lambda c: c.update({"shards": {}}, **{} if path.suffix else {"files": {}}))
    if not path.suffix:
        edit(torn, lambda c: c.pop("files"))
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
