"""Several processes fill one output at once: nothing is done twice, mixed or half written."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fake_tiles import FLOAT, PROVENANCE, X0, Y0, check, fake, listing, spool, tile, write
from places import HELPERS
from tessera_fast.errors import StoreError
from tessera_fast.store import locks, transactions
from tessera_fast.store.locks import LAYOUT, Locks
from tessera_fast.store.output import hold_output, job_extent, open_output
from tessera_fast.store.state import open_state

pytest.importorskip("fcntl", reason="this system has no locks between processes")
pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")
OUTPUTS = ["x.zarr", "folder"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_tile_has_one_writer(tmp_path, name):
    key, other = tile("a"), tile("b", x0=X0 + 610)
    path = tmp_path / name
    with closing(open_output(path, [key, other], PROVENANCE)) as one:
        writer = one.begin(key)
        with closing(open_output(path, [key, other], PROVENANCE)) as two:
            assert two.begin(key) is None
            second = two.begin(other)
            spool(second, fake(other))
            second.commit()
            assert one.is_done(other)
            spool(writer, fake(key))
            writer.commit()
            assert two.is_done(key)
            writer = two.begin(key)  # free again: whoever begins asks whether it is done
            assert writer is not None
            writer.abort()
        assert one.is_done(key) and one.is_done(other)
    if name == "x.zarr":
        check(path, key, fake(key))
        check(path, other, fake(other))


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_aborted_tile_is_free(tmp_path, name):
    key = tile()
    with closing(open_output(tmp_path / name, [key], PROVENANCE)) as one:
        writer = one.begin(key)
        with closing(open_output(tmp_path / name, [key], PROVENANCE)) as two:
            assert two.begin(key) is None
            writer.abort()
            assert two.begin(key) is not None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_last_one_out_tidies_up(tmp_path, name):
    """Whoever leaves first removes nothing of the other's."""
    key = tile()
    one = open_output(tmp_path / name, [key], PROVENANCE)
    two = open_output(tmp_path / name, [key], PROVENANCE)
    writer = one.begin(key)
    spool(writer, fake(key))
    two.close()
    writer.commit()
    one.close()
    with closing(open_output(tmp_path / name, [key], PROVENANCE)) as out:
        assert out.is_done(key)


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_first_tile_decides_what_the_output_holds(tmp_path, name):
    """Both saw an empty output; the second to commit learns what the first has made of it."""
    first, second = tile("a"), tile("b", x0=X0 + 610)
    other = replace(PROVENANCE, weights_sha256="cd" * 32)
    path = tmp_path / name
    with (
        closing(open_output(path, [first, second], PROVENANCE)) as one,
        closing(open_output(path, [first, second], other)) as two,
    ):
        late = two.begin(second)
        spool(late, fake(second))
        writer = one.begin(first)
        spool(writer, fake(first))
        writer.commit()
        with pytest.raises(StoreError, match="will not mix embeddings"):
            late.commit()
        assert not one.is_done(second)


def test_a_job_extent_makes_the_same_store(tmp_path):
    """Whoever begins, the store is laid out for all tiles of the job."""
    tiles = {k: fake(k) for k in (tile("a"), tile("b", x0=X0 + 5000), tile("c", y0=Y0 + 3000))}
    write(tmp_path / "whole.zarr", tiles)
    extent = job_extent("x.zarr", tiles)
    for key in reversed(list(tiles)):
        with closing(open_output(tmp_path / "parts.zarr", (), PROVENANCE, extent=extent)) as out:
            writer = out.begin(key)
            spool(writer, tiles[key])
            writer.commit()
    assert listing(tmp_path / "parts.zarr") == listing(tmp_path / "whole.zarr")
    assert job_extent(tmp_path / "folder", tiles) is None


def test_growth_under_another_process(tmp_path):
    """One process moves the origin of the zone while another has it open."""
    first, north, east = tile("a"), tile("north", y0=Y0 + 5000), tile("east", x0=X0 + 610)
    path = tmp_path / "x.zarr"
    with closing(open_output(path, [first, east], PROVENANCE)) as one:
        writer = one.begin(first)
        spool(writer, fake(first))
        writer.commit()
        late = one.begin(east)
        spool(late, fake(east))
        write(path, {north: fake(north)})
        late.commit()
        assert one.is_done(north) and one.is_done(first)
    for key in (first, north, east):
        check(path, key, fake(key))


FILL = """
    import sys
    from contextlib import closing
    sys.path.insert(0, sys.argv[2])
    import fake_tiles as t
    from tessera_fast.store.output import open_output
    keys = [t.tile(f"t{i}", x0=t.X0 + 300 * (i % 4), y0=t.Y0 + 300 * (i // 4)) for i in range(12)]
    mine = keys[int(sys.argv[3])::2]
    with closing(open_output(sys.argv[1], keys, t.PROVENANCE)) as out:
        for key in mine:
            writer = out.begin(key)
            t.spool(writer, t.fake(key, seed=int(key.name[1:])))
            writer.commit()
"""


def test_two_processes_share_shards(tmp_path):
    """Twelve overlapping tiles in four shards, from both sides: as if one had written them."""
    command = [sys.executable, "-c", textwrap.dedent(FILL), str(tmp_path / "two.zarr")]
    arguments = [str(HELPERS)]
    both = [subprocess.Popen([*command, *arguments, str(i)]) for i in range(2)]
    assert [p.wait(timeout=60) for p in both] == [0, 0]
    keys = [tile(f"t{i}", x0=X0 + 300 * (i % 4), y0=Y0 + 300 * (i // 4)) for i in range(12)]
    write(tmp_path / "one.zarr", {k: fake(k, seed=int(k.name[1:])) for k in keys})
    assert listing(tmp_path / "two.zarr") == listing(tmp_path / "one.zarr")
    states = [listing(tmp_path / f"{n}.zarr.state") for n in ("one", "two")]
    assert states[0] == states[1]


def test_locks(tmp_path):
    one, two = Locks(tmp_path / "lock"), Locks(tmp_path / "lock")
    assert one.take("a", wait=False) and not two.take("a", wait=False)
    assert two.take("b", wait=False)
    assert not two.take("a", shared=True, wait=False)
    one.take("a", shared=True)
    assert two.take("a", shared=True, wait=False)
    assert not one.take("a", wait=False)
    two.release("a")
    assert one.take("a", wait=False)
    one.close()
    assert two.take("a", wait=False) and two.is_current()
    (tmp_path / "lock").unlink()
    assert not two.is_current()
    two.close()


def test_float32_has_no_codes_to_mix(tmp_path):
    key = tile()
    with closing(open_output(tmp_path / "folder", [key], FLOAT)) as out:
        writer = out.begin(key)
        codes, _, counts = fake(key)
        spool(writer, (codes.astype(np.float32), None, counts))
        writer.commit()
    with pytest.raises(StoreError, match="will not mix"):
        open_output(tmp_path / "folder", [key], PROVENANCE)


def in_threads(count, function):
    """``function`` in threads, which begin together; what they raised. Each opens files of its own,
    so that locks keep them apart as they do processes."""
    raised, gate = [], threading.Barrier(count)

    def work(number):
        gate.wait()
        try:
            function(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=[n]) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("name", OUTPUTS)
def test_of_those_that_leave_at_once_one_is_the_last(tmp_path, name):
    for _ in range(40):
        outputs = [open_output(tmp_path / name, [tile()], PROVENANCE) for _ in range(3)]
        assert not in_threads(3, lambda n, outputs=outputs: outputs[n].close())
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OUTPUTS)
def test_coming_while_the_last_one_leaves(tmp_path, name):
    """The state folder is made and removed all the time; nobody stumbles over it."""

    def come_and_go(number):
        for _ in range(60):
            with closing(open_output(tmp_path / "new" / name, [tile()], PROVENANCE)) as out:
                assert not out.is_done(tile())

    assert not in_threads(3, come_and_go)
    assert not list((tmp_path / "new").iterdir()) or name == "folder"


def test_threads_of_one_process_share_the_layout_in_turn(tmp_path):
    """Locks of files do not keep them apart: one would let go of what the other holds."""
    ours, theirs = open_state(tmp_path / "x.zarr"), Locks(tmp_path / "x.zarr.state" / "lock")
    order = []

    def look():
        with ours.layout():
            order.append("looked")

    with closing(ours):
        with ours.layout(change=True):
            thread = threading.Thread(target=look)
            thread.start()
            thread.join(0.05)
            assert not theirs.take(LAYOUT, shared=True, wait=False)
            order.append("changed")
        thread.join()
        theirs.close()
    assert order == ["changed", "looked"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_a_dead_process_promised_comes_before_what_is_newer(tmp_path, monkeypatch, name):
    """It died between its promise and the moves; the tile is made again from other inputs."""
    old, new = tile(), tile(fingerprint="other inputs")
    first = tile("first", x0=X0 + 610)
    with closing(open_output(tmp_path / name, [old, first], PROVENANCE)) as one:
        made = one.begin(first)
        spool(made, fake(first))
        made.commit()
        dead = one.begin(old)
        spool(dead, fake(old))
        with monkeypatch.context() as patch:
            patch.setattr(transactions.Transactions, "apply", lambda *_: os.stat("/none"))
            with pytest.raises(StoreError):
                dead.commit()
        with closing(open_output(tmp_path / name, [new], PROVENANCE)) as two:
            assert not two.is_done(new)
            writer = two.begin(new)
            assert two.is_done(old)
            spool(writer, fake(new, seed=1))
            writer.commit()
    with closing(open_output(tmp_path / name, [new], PROVENANCE)) as out:
        assert out.is_done(new)
    if name == "folder":
        np.testing.assert_array_equal(np.load(tmp_path / "folder/a.npy"), fake(new, seed=1)[0])


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_move_that_another_process_makes_in_between(tmp_path, monkeypatch, caplog, name):
    """Whoever comes finishes what lies in ``commit``, also what its owner is about to move."""
    path, key = tmp_path / name, tile()
    write(path, {key: fake(key)})
    moves, looks = [], []
    real_move, real_lies = transactions.Transactions._move, transactions._lies

    def move(*arguments):
        moves.append(arguments)
        return real_move(*arguments)

    def lies(stamp, place):
        looks.append(place)
        if len(looks) == turn:  # the owner's look is late: somebody else has made this move
            real_move(*moves[-1])
        return real_lies(stamp, place)

    monkeypatch.setattr(transactions.Transactions, "_move", move)
    monkeypatch.setattr(transactions, "_lies", lies)
    for turn in range(1, 60):
        looks.clear()
        again = replace(key, fingerprint=f"inputs of turn {turn}")
        write(path, {again: fake(again, seed=turn)})
        if len(looks) < turn:
            break
    assert 4 < turn < 59 and not caplog.text


def test_an_empty_store_of_a_killed_process_stands_in_nobodys_way(tmp_path, monkeypatch):
    path, key = tmp_path / "x.zarr", tile()
    out = open_output(path, [key, tile("far", x0=X0 + 9000)], PROVENANCE)
    writer = out.begin(key)
    spool(writer, fake(key))
    with monkeypatch.context() as patch:
        patch.setattr(type(out), "_merge", lambda *_: os.stat("/none"))
        with pytest.raises(StoreError):
            writer.commit()
    assert path.exists()
    out._state.locks.close()  # as the system does at a process's end
    other = replace(PROVENANCE, weights_sha256="cd" * 32)
    write(path, {key: fake(key)}, other)
    write(tmp_path / "y.zarr", {key: fake(key)}, other)
    assert listing(path) == listing(tmp_path / "y.zarr")
    assert {p.name for p in (tmp_path / "x.zarr.state").iterdir()} == {
        "done",
        "identity.json",
        "lock",
        "shards",
    }


def test_a_store_that_lost_its_state_is_kept(tmp_path):
    """Its tiles are made again, with the same result."""
    path, key = tmp_path / "x.zarr", tile()
    write(path, {key: fake(key)})
    before = listing(path)
    (tmp_path / "x.zarr.state").rename(tmp_path / "lost")
    with closing(open_output(path, [key], PROVENANCE)) as out:
        assert not out.is_done(key)
    assert listing(path) == before
    write(path, {key: fake(key)})
    assert listing(path) == before


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, name):
    """One process may write, and is warned; several are refused."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_set_byte", no_locks)
    with (
        pytest.raises(StoreError, match="expected a file system with locks"),
        hold_output(tmp_path / name),
    ):
        raise AssertionError
    assert not list(tmp_path.iterdir())
    key = tile()
    write(tmp_path / name, {key: fake(key)})
    assert "has no locks" in caplog.text
    with closing(open_output(tmp_path / name, [key], PROVENANCE)) as out:
        assert out.is_done(key)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_held_output_is_tidied_up_after_all_others(tmp_path, name):
    with hold_output(tmp_path / name):
        dead = open_output(tmp_path / name, [tile()], PROVENANCE)
        spool(dead.begin(tile()), fake(tile()))
        dead._state.locks.close()  # as the system does at a process's end
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", OUTPUTS)
def test_two_tiles_of_a_job_at_one_place(tmp_path, name):
    twins = [tile(), tile(x0=X0 + 610)]
    with pytest.raises(StoreError, match="would both write"):
        job_extent(tmp_path / name, twins)
    assert job_extent(tmp_path / "folder", [tile(), tile("a_scales")], int8=False) is None


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_name_that_no_file_can_have(tmp_path, name):
    """Nothing but a StoreError, and the tile is free again."""
    long = tile("a" * 300)
    with closing(open_output(tmp_path / name, (), PROVENANCE)) as out:
        for _ in range(2):
            with pytest.raises(StoreError, match="a" * 300):
                out.begin(long)
    assert not list(tmp_path.iterdir())


HOLD = """
    import sys
    sys.path.insert(0, sys.argv[2])
    import fake_tiles as t
    from tessera_fast.store.output import open_output
    out = open_output(sys.argv[1], [t.tile()], t.PROVENANCE)
    with out._state.layout(change=True):
        print("held", flush=True)
        input()
"""


def test_it_is_said_who_is_waited_for(tmp_path, monkeypatch, caplog):
    """Also that it is stopped: it then keeps what it has locked until it goes on."""
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    path = tmp_path / "x.zarr"
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(path), str(HELPERS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        state = threading.Thread(target=lambda: write(path, {tile(): fake(tile())}))
        state.start()
        for _ in range(200):
            if "waiting for a lock" in caplog.text:
                break
            time.sleep(0.05)
        os.kill(holder.pid, signal.SIGCONT)
        holder.communicate(b"\n")
        state.join(30)
    assert f"process {holder.pid} (" in caplog.text and "which is stopped" in caplog.text
    check(path, tile(), fake(tile()))
