"""Tiles behind URLs: byte ranges of what is asked for, and errors that name the URL."""

import contextlib
import importlib.util
import re
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tessera_fast.errors import InputError
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.tile import open_tile, remote
from tessera_fast.tile.npy import spans
from tessera_fast.untrusted.readers import parse_npy_header
from tile_sources import NAMES, H, T, W, arrays, assert_same, flat, save, to_memory

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def url(request):
    """A place in memory of this test alone."""
    place = f"memory://{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())}/t_2024"
    yield place
    system, path = fsspec.core.url_to_fs(place)
    with contextlib.suppress(FileNotFoundError):
        system.rm(path, recursive=True)


def write(url, name, content: bytes):
    system, path = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{path}/{name}", content)


def read(url, name) -> bytes:
    system, path = fsspec.core.url_to_fs(url)
    return system.cat_file(f"{path}/{name}")


def test_a_folder_behind_a_url(tmp_path, url):
    data = arrays()
    tile = open_tile(to_memory(url, save(tmp_path / "t", data)) + "/")
    assert (tile.name, tile.year, tile.dates) == ("t_2024", 2024, (T, 3, 4))
    assert (tile.height, tile.width) == (H, W)
    assert_same(flat(tile), data)
    part = {k: v[:, 2:4] if v.ndim > 1 else v for k, v in data.items()}
    assert_same(flat(tile, 2, 4), part)
    assert tile.crs is None


def test_its_roi(tmp_path, url):
    pytest.importorskip("rasterio")
    tile = synthetic_tile(5, 7)
    found = open_tile(to_memory(url, write_tile(tile, tmp_path / "t")))
    assert (found.crs, found.transform) == (tile.crs, tile.transform)
    assert found.fingerprint() == tile.fingerprint()
    write(url, "roi.tiff", b"no tiff")
    with pytest.raises(InputError, match=rf"^{url}/roi\.tiff: expected a GeoTIFF"):
        open_tile(url)


def test_only_the_rows_asked_for_are_read(tmp_path, url, monkeypatch):
    rng = np.random.default_rng(0)
    shape = (3, 400, 30)  # rows of 600 bytes, and 240 kB from one date to the next
    data = {
        "bands": rng.integers(1, 9000, (*shape, 10)).astype(np.uint16),
        "masks": np.ones(shape, np.uint8),
        "doys": np.array([1, 2, 3]),
    }
    tile = open_tile(to_memory(url, save(tmp_path / "t", data)), allow_missing_s1=True)
    asked = []
    system = type(fsspec.core.url_to_fs(url)[0])
    whole = system.cat_ranges

    def spy(self, paths, starts, stops, **options):
        asked.append(
            [(p.rpartition("/")[2], b - a) for p, a, b in zip(paths, starts, stops, strict=True)]
        )
        return whole(self, paths, starts, stops, **options)

    monkeypatch.setattr(system, "cat_ranges", spy)
    assert_same(
        flat(tile, 7, 9),
        {
            "bands": data["bands"][:, 7:9],
            "masks": data["masks"][:, 7:9],
            "doys": data["doys"].astype(np.int32),
        },
    )
    bands = [batch for batch in asked if batch[0][0] == "bands.npy"]
    assert bands == [[("bands.npy", 128), *[("bands.npy", 2 * 600)] * 3]]
    asked.clear()
    whole_tile = flat(tile)
    np.testing.assert_array_equal(whole_tile["bands"], data["bands"])
    assert sum(len(batch) for batch in asked) == 4  # a header and one run of each array


def test_many_ranges_come_in_batches(tmp_path, url, monkeypatch):
    data = arrays()
    tile = open_tile(to_memory(url, save(tmp_path / "t", data)))
    monkeypatch.setattr(remote, "_GAP", 0)
    monkeypatch.setattr(remote, "_SPAN", 200)
    monkeypatch.setattr(remote, "_AT_ONCE", 500)
    assert_same(flat(tile), data)
    assert_same(flat(tile, 2, 3), {k: v[:, 2:3] if v.ndim > 1 else v for k, v in data.items()})
    assert tile.fingerprint() == open_tile(data).fingerprint()


def test_a_file_system_that_asks_for_all_at_once(tmp_path, url, monkeypatch):
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

    data = arrays()
    to_memory(url, save(tmp_path / "t", data))
    found = fsspec.core.url_to_fs

    def wrapped(address):
        system, path = found(address)
        return AsyncFileSystemWrapper(system), path

    monkeypatch.setattr(fsspec.core, "url_to_fs", wrapped)
    assert_same(flat(open_tile(url)), data)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_versions_of_the_header(tmp_path, url, version):
    data = arrays()
    folder = save(tmp_path / "t", data)
    with open(folder / "bands.npy", "wb") as file:
        np.lib.format.write_array(file, data["bands"], version)
    assert_same(flat(open_tile(folder)), data)
    assert_same(flat(open_tile(to_memory(url, folder))), data)


def test_a_long_header(tmp_path, url):
    """Longer than what is read of a file at first."""
    data = arrays()
    folder = save(tmp_path / "t", data)
    text = str({"descr": "<u2", "fortran_order": False, "shape": data["bands"].shape})
    text = text.ljust(2999) + "\n"
    content = b"\x93NUMPY\2\0" + len(text).to_bytes(4, "little") + text.encode()
    (folder / "bands.npy").write_bytes(content + data["bands"].tobytes())
    assert_same(flat(open_tile(folder)), data)
    assert_same(flat(open_tile(to_memory(url, folder))), data)


@pytest.mark.parametrize("name", ["bands", "masks", "doys", "sar_ascending", "sar_descending_doy"])
@pytest.mark.parametrize("how", ["cut", "half a header", "not an array", "object array"])
def test_a_bad_file_is_named(tmp_path, url, name, how):
    folder = save(tmp_path / "t", arrays())
    good = (folder / f"{name}.npy").read_bytes()
    if how == "object array":
        np.save(folder / f"{name}.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    else:
        bad = {"cut": good[:-1], "half a header": good[:40], "not an array": b"GIF89a" * 9}[how]
        (folder / f"{name}.npy").write_bytes(bad)
    with pytest.raises(InputError, match=rf"^{url}/{name}\.npy: expected"):
        open_tile(to_memory(url, folder))


def test_column_major_order_is_refused(tmp_path, url):
    data = arrays() | {"bands": np.asfortranarray(arrays()["bands"])}
    with pytest.raises(InputError, match=rf"^{url}/bands\.npy: expected row-major order"):
        open_tile(to_memory(url, save(tmp_path / "t", data)))


def test_a_file_that_changes_after_opening(tmp_path, url):
    tile = open_tile(to_memory(url, save(tmp_path / "t", arrays())))
    good = read(url, "bands.npy")
    np.save(tmp_path / "other.npy", np.ones((T, H - 1, W, 10), np.uint16))
    write(url, "bands.npy", (tmp_path / "other.npy").read_bytes())
    with pytest.raises(InputError, match=rf"^{url}/bands\.npy: .*as when the tile was opened"):
        tile.rows(0, 2)
    write(url, "bands.npy", good[:-1])
    with pytest.raises(InputError, match=rf"^{url}/bands\.npy: .*cut while it was read"):
        tile.rows(0, H)
    system, path = fsspec.core.url_to_fs(url)
    system.rm(f"{path}/bands.npy")
    with pytest.raises(InputError, match=rf"^{url}/bands\.npy: was there and is gone"):
        tile.rows(0, 2)


def test_nothing_behind_a_url(url):
    with pytest.raises(InputError, match=rf"^{url}: expected a folder with bands\.npy, .* neither"):
        open_tile(url)
    with pytest.raises(InputError, match=rf"^{url}\.zarr: expected a cube"):
        open_tile(f"{url}.zarr")
    with pytest.raises(InputError, match="got netCDF; copy the file here"):
        open_tile(f"{url}.nc")


def test_missing_arrays_are_named(tmp_path, url):
    folder = save(tmp_path / "t", {k: v for k, v in arrays().items() if k != "masks"})
    with pytest.raises(InputError, match=rf"^{url}/masks\.npy: missing in the folder {url}"):
        open_tile(to_memory(url, folder))


def test_an_unknown_protocol():
    with pytest.raises(InputError, match=r"fsspec cannot open it .*s3fs"):
        open_tile("nonsense://bucket/tile")


@pytest.mark.parametrize("name", ["t", "t.zarr"])
def test_without_fsspec(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=r"pip install 'tessera_fast\[remote\]'"):
        open_tile(f"s3://bucket/{name}")


def test_what_may_not_be_read_is_an_error_but_of_what_most_tiles_lack(tmp_path, url, monkeypatch):
    """A store that may not be listed denies files that it does not have."""
    data = {k: v for k, v in arrays().items() if not k.startswith("sar_desc")}
    to_memory(url, save(tmp_path / "t", data))
    system = type(fsspec.core.url_to_fs(url)[0])
    whole = system.cat_ranges
    denied = ["scl", "s2_datetime", "s1_datetime"]

    def deny(self, paths, *args, **options):
        found = whole(self, paths, *args, **options)
        return [
            PermissionError("403") if any(f"/{d}.npy" in p for d in denied) else f
            for p, f in zip(paths, found, strict=True)
        ]

    monkeypatch.setattr(system, "cat_ranges", deny)
    assert_same(flat(open_tile(url)), data)
    denied.append(NAMES[1])
    with pytest.raises(InputError, match=r"sar_descending\.npy: cannot be read \(PermissionError"):
        open_tile(url)


class Ranges(SimpleHTTPRequestHandler):
    """Answers one byte range, as stores do and the standard library's handler does not."""

    ranges = True

    def log_message(self, *args):
        pass

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or not self.ranges:
            return super().do_GET()
        try:
            with open(self.translate_path(self.path), "rb") as file:
                content = file.read()
        except OSError:
            return self.send_error(404)
        start, stop = int(asked[1]), int(asked[2] or len(content) - 1) + 1
        if start >= len(content):
            return self.send_error(416)
        part = content[start:stop]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        last = start + len(part) - 1
        self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)


class Whole(Ranges):
    ranges = False


@pytest.fixture
def serve(tmp_path):
    """A function of a handler that serves ``tmp_path`` and returns its address."""
    if importlib.util.find_spec("aiohttp") is None:
        pytest.skip("fsspec reads http with aiohttp, which is not installed")
    with contextlib.ExitStack() as stack:

        def start(handler):
            server = ThreadingHTTPServer(
                ("127.0.0.1", 0), partial(handler, directory=str(tmp_path))
            )
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start


def test_over_http(tmp_path, serve):
    data = {k: v for k, v in arrays().items() if not k.startswith("sar_desc")}
    save(tmp_path / "t_2024", data)
    tile = open_tile(f"{serve(Ranges)}/t_2024")
    assert_same(flat(tile), data)
    assert tile.fingerprint() == open_tile(data).fingerprint()


def test_a_server_without_ranges_is_refused(tmp_path, serve):
    save(tmp_path / "t", arrays() | {"bands": np.ones((T, H, W, 10), np.uint16)})
    with pytest.raises(InputError, match=r"bands\.npy: .* server must answer .* byte ranges"):
        open_tile(f"{serve(Whole)}/t")


def covered(starts, length, gap, most):
    found = list(spans(np.array(starts), length, gap, most))
    runs = [k for k0, k1, _, _ in found for k in range(k0, k1)]
    assert runs == list(range(len(starts)))
    for k0, k1, first, last in found:
        assert all(first <= starts[k] and starts[k] + length <= last for k in range(k0, k1))
    return [(first, last) for _, _, first, last in found]


def test_spans():
    assert covered([], 5, 0, 100) == []
    assert covered([10, 15, 20], 5, 0, 100) == [(10, 25)]
    assert covered([10, 16, 30], 5, 1, 100) == [(10, 21), (30, 35)]
    assert covered([0, 5, 10, 15], 5, 0, 10) == [(0, 10), (10, 20)]
    assert covered([0, 20], 30, 0, 10) == [(0, 30), (20, 50)]
    assert covered([40, 10, 15], 5, 9, 100) == [(40, 45), (10, 20)]


def test_headers_that_are_not():
    np_header = b"\x93NUMPY\1\0"
    for start in (
        b"",
        b"PK\3\4aaaaaaaaaaaaaa",
        np_header,
        np_header + b"\xff\xff{}",
        b"x" * 99,
        b"\x93NUMPY\3\0" + b"\0" * 50,
    ):
        with pytest.raises(ValueError):
            parse_npy_header(start)
