"""A power cut anywhere in the commits of two tiles leaves each of them whole or not there.

The file operations of the commits are recorded, then replayed up to every one of them, with what
was not synced lost. TESSERA_STEPS=all tries every step; else a few of each case.
"""

import os
import shutil
from contextlib import closing

import numpy as np
import pytest

from fake_tiles import PROVENANCE, X0, Y0, listing, spool, tile, window
from power_cut import Recorder, lay, losses
from tessera_fast.store import disk
from tessera_fast.store.output import open_output
from tessera_fast.verification import check
from verify_outputs import sound

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")
ALL = os.environ.get("TESSERA_STEPS") == "all"
TRIES = 6
FIRST = tile("first")
# name of the output -> what is there before, what is committed while the power fails
CASES = {
    "one shard": ("x.zarr", [FIRST], [tile("b", x0=X0 + 610), tile("c", x0=X0 + 1220)]),
    "growth": ("x.zarr", [FIRST], [tile("b", x0=X0 - 700, y0=Y0 + 700), tile("c", year=2019)]),
    "new store": ("x.zarr", [], [FIRST, tile("b", x0=X0 + 610)]),
    "folder": ("folder", [FIRST], [tile("b", x0=X0 + 610), tile("c", x0=X0 + 1220)]),
    "new folder": ("folder", [], [FIRST, tile("b", x0=X0 + 610)]),
    "again": ("folder", [FIRST], [tile("first", fingerprint="other inputs"), tile("b")]),
}
ROOM = {"one shard"}  # cases whose store has room for all tiles before


def data_of(key):
    return sound(key, seed=len(key.fingerprint) + ord(key.name[0]))


def fill(path, tiles, around=None):
    """Embed ``tiles``; ``around`` gives a context for each commit."""
    with closing(open_output(path, tiles, PROVENANCE)) as out:
        for key in tiles:
            if out.is_done(key):
                continue
            writer = out.begin(key)
            spool(writer, data_of(key))
            if around is None:
                writer.commit()
            else:
                with around():
                    writer.commit()


def recorded(case, folder, monkeypatch):
    name, before, during = CASES[case]
    folder.mkdir()
    room = [*before, *during] if case in ROOM else before
    if before:
        with closing(open_output(folder / name, room, PROVENANCE)) as out:
            for key in before:
                writer = out.begin(key)
                spool(writer, data_of(key))
                writer.commit()
    recorder = Recorder(folder)
    fill(folder / name, during, lambda: recorder.recording(monkeypatch))
    return recorder


def holds(path, key):
    codes, scales, _ = data_of(key)
    if path.suffix:
        found = window(path, key)
        np.testing.assert_array_equal(found["embeddings"], codes)
        np.testing.assert_array_equal(found["scales"], scales)
    else:
        np.testing.assert_array_equal(np.load(path / f"{key.name}.npy"), codes)
        np.testing.assert_array_equal(np.load(path / f"{key.name}_scales.npy"), scales)


@pytest.mark.parametrize("case", CASES)
def test_whole_or_not_there(case, tmp_path, monkeypatch):
    name, before, during = CASES[case]
    recorder = recorded(case, tmp_path / "job", monkeypatch)
    expected = listing(tmp_path / "job" / name)
    steps = range(len(recorder.log) + 1)
    assert len(steps) > 25
    picked = steps if ALL else steps[len(case) % 5 :: len(steps) // TRIES]
    finished = set()
    for step in picked:
        for what, is_lost in losses(step).items():
            folder = tmp_path / f"{step}.{what}"
            lay(recorder.after(step, is_lost), folder)
            path = folder / name
            with closing(open_output(path, during, PROVENANCE)) as out:
                done = [key for key in (*before, *during) if out.is_done(key)]
            names = {key.name for key in done}
            kept = [k for k in before if k.name not in {key.name for key in during}]
            assert {key.name for key in kept} <= names, f"step {step}, {what} lost: {names}"
            for key in done:
                holds(path, key)
            finished.add(len(done))
            fill(path, [*kept, *during])
            assert listing(path) == expected, f"step {step}, {what} lost"
            assert check(path).sound
            shutil.rmtree(folder)
    assert len(finished) > 1  # the power failed before some commit and after some


def test_the_model_sees_what_is_not_synced(tmp_path, monkeypatch):
    """Without the syncs of folders a finished tile is lost: the test above can fail."""
    name, before, during = CASES["folder"]
    (tmp_path / "job").mkdir()
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)
    fill(tmp_path / "job" / name, before)
    recorder = Recorder(tmp_path / "job")
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_sync_folder", lambda *_: None)
        fill(tmp_path / "job" / name, during, lambda: recorder.recording(patch))
    lay(recorder.after(len(recorder.log), lambda: True), tmp_path / "after")
    with closing(open_output(tmp_path / "after" / name, during, PROVENANCE)) as out:
        assert not any(map(out.is_done, during))
