"""Outputs of four tiles in one shard, for tests of what a state promises: killed, copied, whole."""

import shutil
from contextlib import closing

import numpy as np
import pytest

from fake_tiles import PROVENANCE, X0, check, spool, tile
from tessera_fast.store import transactions
from tessera_fast.store.output import open_output
from verify_outputs import sound

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
