"""Both outputs: a tile appears whole or not at all, is not made twice and never mixed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fake_tiles import FLOAT, PROVENANCE, X0, check, fake, listing, spool, tile, write
from places import HELPERS
from tessera_fast.errors import StoreError
from tessera_fast.store import disk
from tessera_fast.store.output import open_output

zarr = pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.zarr"


@pytest.mark.parametrize("name", ["x.zarr", "folder"])
def test_resume(tmp_path, name):
    path, key = tmp_path / name, tile()
    write(path, {key: fake(key)})
    other = replace(key, fingerprint="other inputs")
    with closing(open_output(path, [key], PROVENANCE)) as out:
        assert out.is_done(key)
        assert not out.is_done(other)
        assert not out.is_done(tile("b"))
        assert not out.is_done(replace(key, year=2019)) or name == "folder"
    changed = fake(key, seed=5, empty=0)
    write(path, {other: changed})
    with closing(open_output(path, [key], PROVENANCE)) as out:
        assert out.is_done(other)
        assert not out.is_done(key)
    if name == "x.zarr":
        check(path, key, changed)
    else:
        np.testing.assert_array_equal(np.load(path / "a.npy"), changed[0])


@pytest.mark.parametrize("name", ["x.zarr", "folder"])
def test_markers_of_a_removed_output_do_not_count(tmp_path, name):
    path, key, second = tmp_path / name, tile(), tile("b")
    write(path, {key: fake(key)})
    if name == "x.zarr":
        shutil.rmtree(path)
    else:
        (path / "a.npy").unlink()
    with closing(open_output(path, [key, second], PROVENANCE)) as out:
        assert not out.is_done(key)
        writer = out.begin(second)
        spool(writer, fake(second))
        writer.commit()
        assert not out.is_done(key)


@pytest.mark.parametrize("name", ["x.zarr", "folder"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "v2-small"),
        ("weights_sha256", "cd" * 32),
        ("precision", "bf16"),
        ("dims", 16),
        ("prefixes", (8,)),
        ("seed", 7),
        ("package_version", "9.0"),
    ],
)
def test_refuses_to_mix(tmp_path, name, field, value):
    path, key = tmp_path / name, tile()
    write(path, {key: fake(key)})
    before = listing(tmp_path)
    with pytest.raises(StoreError) as caught:
        open_output(path, [key], replace(PROVENANCE, **{field: value}))
    value = list(value) if isinstance(value, tuple) else value
    assert f"{field}: it holds" in str(caught.value)
    assert f"this run has {value!r}" in str(caught.value)
    assert listing(tmp_path).keys() == before.keys()
    open_output(path, [key], replace(PROVENANCE, isa="scalar", backend="reference")).close()


def test_folder_refuses_to_mix_dtypes(tmp_path):
    key = tile()
    write(tmp_path / "folder", {key: fake(key)})
    with pytest.raises(StoreError, match="dtype: it holds 'int8', this run has 'float32'"):
        open_output(tmp_path / "folder", [key], FLOAT)


def test_refuses_what_is_not_ours(tmp_path, path):
    zarr.create_group(str(path), zarr_format=3)
    with pytest.raises(StoreError, match="not written by tessera_fast"):
        open_output(path, [tile()], PROVENANCE)
    (tmp_path / "y.zarr").mkdir()
    with pytest.raises(StoreError, match="no Zarr v3 store"):
        open_output(tmp_path / "y.zarr", [tile()], PROVENANCE)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="got a file"):
        open_output(tmp_path / "file", [tile()], PROVENANCE)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "a.npy", np.zeros(3))
    with pytest.raises(StoreError, match=r"a\.npy: exists and was not written"):
        open_output(folder, [tile()], PROVENANCE)
    assert [p.name for p in folder.iterdir()] == ["a.npy"]


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a_scales")])
def test_names_that_collide(tmp_path, names):
    tiles = [tile(names[0]), tile(names[1], x0=X0 + 610)]
    with pytest.raises(StoreError, match="would both write"):
        open_output(tmp_path / "folder", tiles, PROVENANCE)
    assert not (tmp_path / "folder").exists()


def test_rows_are_checked(path):
    key = tile()
    codes, scales, counts = fake(key)
    with closing(open_output(path, [key], PROVENANCE)) as out:
        writer = out.begin(key)
        for bad in (
            (0, codes[:5], None, counts[:5]),
            (0, codes[:5].astype(np.float32), scales[:5], counts[:5]),
            (0, codes[:5, :-1], scales[:5], counts[:5]),
            (0, codes[:5], scales[:4], counts[:5]),
            (42, codes[:5], scales[:5], counts[:5]),
        ):
            with pytest.raises(StoreError, match="tile a"):
                writer.write_rows(*bad)
        writer.write_rows(0, codes[:44], scales[:44], counts[:44])
        with pytest.raises(StoreError, match="row 44 of 45 was never written"):
            writer.commit()
        assert not out.is_done(key)
    assert not path.exists()


@pytest.mark.parametrize("name", ["x.zarr", "folder"])
def test_abort_leaves_nothing(tmp_path, name):
    key = tile()
    with closing(open_output(tmp_path / name, [key], PROVENANCE)) as out:
        writer = out.begin(key)
        spool(writer, fake(key))
        writer.abort()
        writer.abort()
        with pytest.raises(StoreError, match="already committed or aborted"):
            writer.commit()
        abandoned = out.begin(key)
        spool(abandoned, fake(key))
    assert not list(tmp_path.iterdir())


def _run(command):
    return subprocess.run(command, check=False, capture_output=True, text=True)


def fail(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["x.zarr", "folder"])
@pytest.mark.parametrize("where", ["write", "sync_file"])
def test_full_disk(tmp_path, monkeypatch, name, where):
    path, first, second = tmp_path / name, tile("first"), tile("second", x0=X0 - 610)
    write(path, {first: fake(first)})
    before = listing(tmp_path)
    with monkeypatch.context() as patch:
        owner = disk.RowFile if where == "write" else disk
        patch.setattr(owner, where, fail)
        with pytest.raises(StoreError, match="No space left on device"):
            write(path, {second: fake(second)})
    assert listing(tmp_path).keys() == before.keys()
    write(path, {second: fake(second)})
    if name == "x.zarr":
        check(path, first, fake(first))
        check(path, second, fake(second))


def test_full_disk_for_real(tmp_path):
    """A small file system: first the spool does not fit, then the shards do not."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if shutil.which("mount") is None or _run(command).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        small = tile("small", 20, 20)
        write(mount / "x.zarr", {small: fake(small)})
        before = listing(mount)
        for size in (250, 140):
            big = tile("big", size, size, x0=X0 + 200)
            with pytest.raises(StoreError, match="No space left on device"):
                write(mount / "x.zarr", {big: fake(big)})
            kept = {p for p in listing(mount) if "c" in p.parts or "done" in p.parts}
            assert kept == {p for p in before if "c" in p.parts or "done" in p.parts}
            check(mount / "x.zarr", small, fake(small))
    finally:
        # Lazily: the tracebacks of the errors above still hold maps of removed spool files.
        subprocess.run(["umount", "-l", str(mount)], check=True)


KILLED = """
    import os, signal, sys
    from contextlib import closing
    sys.path.insert(0, sys.argv[2])
    import fake_tiles as t
    from tessera_fast.store import disk

    def die(*_args, **_kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    moment, second = sys.argv[3], t.tile("second", x0=t.X0 - 610)
    if moment.startswith("move"):
        real, left = os.replace, [int(moment[4:])]
        def replace(source, target):
            if "/commit/" in str(source):
                left[0] -= 1
                if left[0] < 0:
                    die()
            real(source, target)
        os.replace = replace
    elif moment == "sync":
        disk.sync_file = die
    from tessera_fast.store.output import open_output
    out = open_output(sys.argv[1], [second], t.PROVENANCE)
    writer = out.begin(second)
    t.spool(writer, t.fake(second, seed=1))
    if moment == "spooled":
        die()
    writer.commit()
"""


@pytest.mark.parametrize("name", ["x.zarr", "folder"])
@pytest.mark.parametrize("moment", ["spooled", "sync", "move0", "move2"])
def test_killed(tmp_path, name, moment):
    """Before the transaction: nothing changed. Within it: the next run finishes it."""
    if not hasattr(signal, "SIGKILL"):
        pytest.skip("this system cannot kill a process outright")
    path, first, second = tmp_path / name, tile("first"), tile("second", x0=X0 - 610)
    write(path, {first: fake(first)})
    before = listing(path)
    command = [sys.executable, "-c", textwrap.dedent(KILLED)]
    done = _run([*command, str(path), str(HELPERS), moment])
    assert done.returncode == -signal.SIGKILL, done.stderr
    if moment in ("spooled", "sync"):
        after = listing(path)
        assert {k: after[k] for k in before if ".tessera_fast" not in k.parts} == {
            k: v for k, v in before.items() if ".tessera_fast" not in k.parts
        }
    with closing(open_output(path, [second], PROVENANCE)) as out:
        assert out.is_done(first)
        if name == "folder":
            assert out.is_done(second) == moment.startswith("move")
    write(path, {second: fake(second, seed=1)})
    if name == "x.zarr":
        check(path, first, fake(first))
        check(path, second, fake(second, seed=1))
        assert zarr.open_group(str(path), use_consolidated=True)["utm31"].attrs["spatial:shape"]
        leftovers = {p.name for p in (tmp_path / "x.zarr.state").iterdir()}
    else:
        np.testing.assert_array_equal(np.load(path / "second.npy"), fake(second, seed=1)[0])
        leftovers = {p.name for p in (path / ".tessera_fast").iterdir()} - {"provenance.json"}
    records = {"shards"} if name == "x.zarr" else set()
    assert leftovers == {"lock", "done", "identity.json", *records}


def test_folder_int8(tmp_path):
    key = tile()
    codes, scales, counts = fake(key)
    write(tmp_path / "folder", {key: (codes, scales, counts)})
    assert sorted(p.name for p in (tmp_path / "folder").glob("*")) == [
        ".tessera_fast",
        "a.npy",
        "a_scales.npy",
    ]
    for file, expected in (("a.npy", codes), ("a_scales.npy", scales)):
        found = np.load(tmp_path / "folder" / file)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    record = json.loads((tmp_path / "folder/.tessera_fast/done/a.json").read_text())
    assert record["fingerprint"] == key.fingerprint
    assert record["provenance"]["trained"] is False


def test_folder_float32(tmp_path):
    key = tile(crs=None, transform=None, year=None)
    codes, scales, counts = fake(key)
    values = np.where(np.isfinite(scales)[..., None], codes, np.nan).astype(np.float32)
    write(tmp_path / "out" / "folder", {key: (values, None, counts)}, FLOAT)
    assert sorted(p.name for p in (tmp_path / "out/folder").glob("*.npy")) == ["a.npy"]
    found = np.load(tmp_path / "out/folder/a.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)
