"""Damaged files of an output and its state give an error of the package, never harm; see fuzz.py.

A mutant is one damaged file of a small output with a pending transaction. All that reads or writes
an output is tried on it: resuming, reading, checking. A file beside the output stays as it was.
"""

import contextlib
import json
import os
import shutil

import pytest

import fuzz
from fake_tiles import PROVENANCE, X0, spool, tile
from tessera_fast.errors import StoreError
from tessera_fast.store import transactions
from tessera_fast.store.output import open_output
from tessera_fast.store.reader import open_embeddings, tiles_of
from tessera_fast.verification import check
from verify_outputs import sound

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")

KEYS = [tile("a", 9, 7), tile("b", 9, 7, x0=X0 + 70)]
DATA = {key: sound(key) for key in KEYS}


class Died(BaseException):
    """Stands for a kill."""


def output(path):
    """An output with one tile, and one that is promised."""
    with contextlib.closing(open_output(path, KEYS, PROVENANCE)) as out:
        writer = out.begin(KEYS[0])
        spool(writer, DATA[KEYS[0]])
        writer.commit()
    out = open_output(path, KEYS, PROVENANCE)
    writer = out.begin(KEYS[1])
    spool(writer, DATA[KEYS[1]])

    def die(*_):
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transactions.Transactions, "apply", die)
        patch.setattr(type(out._state), "release", lambda *_: None)
        with contextlib.suppress(Died):
            writer.commit()
    out._state.locks.close()  # as the system does at a process's end
    return path


def write(path, key):
    with contextlib.closing(open_output(path, KEYS, PROVENANCE)) as out:
        if not out.is_done(key):
            writer = out.begin(key)
            spool(writer, DATA[key])
            writer.commit()


def read_all(path):
    """Every use of an output; the first StoreError is raised after all were tried."""
    first = None
    for use in (
        lambda: write(path, KEYS[0]),
        lambda: write(path, KEYS[1]),
        lambda: tiles_of(path),
        lambda: [layer.values(slice(0, 9), slice(0, 7)) for layer in open_embeddings(path).layers],
        lambda: str(check(path)),
    ):
        try:
            use()
        except StoreError as error:
            first = first or error
    if first is not None:
        raise first


# What is damaged, by a pattern below the folder that holds output and state.
FILES = {
    "store": [
        "x.zarr.state/done/*.json",
        "x.zarr.state/shards/*.json",
        "x.zarr.state/identity.json",
        "x.zarr.state/commit/*/*.json",
    ],
    "folder": [
        "x/.tessera_fast/done/*.json",
        "x/.tessera_fast/provenance.json",
        "x/.tessera_fast/identity.json",
        "x/.tessera_fast/commit/*/*.json",
    ],
    "metadata": ["x.zarr/zarr.json", "x.zarr/utm31/zarr.json", "x.zarr/utm31/*/zarr.json"],
    "values": ["x/*.npy", "x.zarr/utm31/*/c/**/0"],
}


@pytest.mark.filterwarnings("ignore")  # of zarr, about what is damaged
@pytest.mark.parametrize("what", FILES)
def test_damaged_outputs(what, tmp_path, caplog):
    caplog.set_level("CRITICAL")
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in ("x.zarr", "x"):
        output(whole / name)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    files = [
        file.relative_to(whole)
        for pattern in FILES[what]
        for file in sorted(whole.glob(pattern))
        if file.is_file()
    ]
    assert len(files) >= 3

    def make_mutant(rng):
        file = rng.choice(files)
        data = (whole / file).read_bytes()
        if file.suffix == ".json":
            return file, fuzz.mutate_json(rng, data)
        return file, fuzz.mutate_bytes(rng, data, head=128 if file.suffix == ".npy" else 0)

    def read(mutant):
        file, data = mutant
        trial = tmp_path / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(whole, trial)
        (trial / file).write_bytes(data)
        path = trial / ("x" if file.parts[0] == "x" else "x.zarr")
        read_all(path)

    print(what, fuzz.run(4, fuzz.count(40), make_mutant, read))
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["trial", "victim", "whole"]


@pytest.mark.parametrize("content", ["deep", "deep objects", "large", "a pipe"])
def test_json_of_a_state_is_read_with_limits(content, tmp_path):
    """Content of each file that is deep, large or never ends is an error, or does not count."""
    whole = tmp_path / "whole"
    whole.mkdir()
    output(whole / "x.zarr")
    texts = {"deep": "[" * 100_000, "deep objects": '{"a":' * 100_000}
    for file in [*(whole / "x.zarr.state").rglob("*.json"), whole / "x.zarr/zarr.json"]:
        trial = tmp_path / "trial"
        shutil.copytree(whole, trial)
        damaged = trial / file.relative_to(whole)
        damaged.unlink()
        if content == "a pipe":
            os.mkfifo(damaged)  # nobody ever writes to it
        else:
            damaged.write_text(texts.get(content) or json.dumps({"a": "x" * (70 << 20)}))
        with contextlib.suppress(StoreError):
            read_all(trial / "x.zarr")
        shutil.rmtree(trial)
