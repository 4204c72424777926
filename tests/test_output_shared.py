"""Several processes fill one output at once: nothing is done twice, mixed or half written."""

import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_tiles import FLOAT, PROVENANCE, X0, Y0, check, fake, listing, spool, tile, write
from tessera_fast.errors import StoreError
from tessera_fast.store.locks import Locks
from tessera_fast.store.output import job_extent, open_output

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
    arguments = [str(Path(__file__).parent)]
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
