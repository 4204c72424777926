"""A state belongs to its output: copied, renamed and received ones, and what is planted in one."""

import os
import shutil
from contextlib import closing

import pytest

from fake_tiles import PROVENANCE, listing, remove_shards
from states import (
    ALL,
    APART,
    DATA,
    FIRST,
    OUTPUTS,
    SECOND,
    THIRD,
    copied,
    die_in_commit,
    holds,
    is_done,
    made,
    state_of,
)
from tessera_fast.errors import StoreError
from tessera_fast.store.output import open_output
from tessera_fast.verification import check as verified
from verify_outputs import edit_json

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")


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


@pytest.mark.parametrize(
    "place",
    [
        "output/../../victim",
        "/etc/passwd",
        "output//etc/passwd",
        "state/../../../victim",
        "output/utm31/../../../victim",
        "victim",
        "output/../victim/utm31",
        "state/lock",
        "output/utm31/scales/c/0/0/../../../../../victim",
    ],
)
def test_a_planted_transaction_writes_nowhere_else(place, tmp_path, monkeypatch):
    path, victim = tmp_path / "x.zarr", tmp_path / "victim"
    victim.write_text("precious")
    made(path, FIRST)
    die_in_commit(path, SECOND, monkeypatch, 0)
    (planted,) = (state_of(path) / "commit").glob("*/list.json")
    edit_json(planted, lambda c: c["moves"][0].__setitem__(1, place))
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
    edit_json(path / "zarr.json", lambda c: c["attributes"].pop("tessera_fast:identity"))
    shutil.rmtree(state_of(path))
    with pytest.raises(StoreError, match="an earlier version wrote this store"):
        is_done(path, FIRST)


def test_a_format_of_another_version_is_refused(tmp_path):
    path = tmp_path / "folder"
    made(path, FIRST)
    edit_json(state_of(path) / "identity.json", lambda c: c.update(format=99))
    with pytest.raises(StoreError, match="format 99, expected 2"):
        is_done(path, FIRST)
