"""Files and names that anybody may have written: each is read, or refused with one sentence."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fuzz
import tessera_fast as tf
from fuzz_files import PLAN_ROW as ROW
from fuzz_files import UTM
from tessera_fast.errors import InputError, TesseraError
from tessera_fast.planning.rows import PlanRow
from tessera_fast.planning.table import Plan
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.tile import expand, open_tile
from tessera_fast.tile.georeference import read_roi
from tessera_fast.tile.geotiff import plain, read_plain, write_plain
from tile_sources import H, W, arrays, by_variable, save, write_zarr

# ---- .npy files


def npy(header: bytes, version: bytes = b"\1\0", data: bytes = b"") -> bytes:
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


DICT = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}\n"
HEADERS = {
    "descr of a list": DICT.format("[1]", "(3,)"),
    "descr of a number": DICT.format("7", "(3,)"),
    "records": DICT.format("[('a', '<f4')]", "(3,)"),
    "a shape of text": DICT.format("'<i4'", "('a',)"),
    "negative": DICT.format("'<i4'", "(-3,)"),
    "huge": DICT.format("'<i4'", f"({10**30},)"),
    "huge beside 0": DICT.format("'<i4'", f"(0, {2**62}, {2**62})"),
    "many axes": DICT.format("'<i4'", str((1,) * 70)),
    "deep": "(" * 3000,
    "unary": "-" * 9000 + "1",
    "not a dict": "(1, 2)",
    "half a string": "{'descr': '",
    "NUL": "{'descr': '<i4', \0",
    "bytes that are no text": DICT.format("'\xff\xfe'", "(3,)"),
    "unit of time": DICT.format("'<M8[xx]'", "(3,)"),
    "unhashable": "{[]: 1}",
}


@pytest.mark.parametrize("array", ["doys", "bands"])
@pytest.mark.parametrize("what", HEADERS)
def test_headers_of_npy(what, array, tmp_path):
    folder = save(tmp_path / "t_2024", arrays())
    data = npy(HEADERS[what].encode("latin-1"), data=bytes(64))
    (folder / f"{array}.npy").write_bytes(data)
    with pytest.raises(InputError, match=rf"{array}\.npy: expected a complete \.npy file"):
        open_tile(folder)


def test_a_long_header_is_not_read(tmp_path):
    folder = save(tmp_path / "t_2024", arrays())
    with (folder / "bands.npy").open("wb") as file:
        file.write(b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1))
        file.truncate(1 << 33)  # a hole
    with pytest.raises(InputError, match="a header of 4294967307 bytes"):
        open_tile(folder)


def test_days_are_small(tmp_path):
    folder = save(tmp_path / "t_2024", arrays())
    np.lib.format.open_memmap(folder / "doys.npy", "w+", np.int64, (1 << 30,)).flush()
    started = time.process_time()
    with pytest.raises(InputError, match=r"doys\.npy.*expected at most"):
        open_tile(folder)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", ["bands.npy", "doys.npy", "roi.tiff"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    folder = save(tmp_path / "t_2024", arrays())
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match="not a regular file"):
        open_tile(folder)


# ---- roi.tiff


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1098, 1200), (3, 1 << 21)])
@pytest.mark.parametrize("epsg", [32601, 32760])
def test_our_roi_is_what_rasterio_reads(shape, epsg, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    of = plain(shape, f"epsg:{epsg}", (20.0, 0.0, 499_980.5, 0.0, -10.0, 6e6 + 1 / 3))
    data = write_plain(of)
    assert read_plain(data) == of and len(data) < 10_000
    (tmp_path / "roi.tiff").write_bytes(data)
    with rasterio.open(tmp_path / "roi.tiff") as roi:
        assert (roi.shape, roi.crs.to_epsg(), tuple(roi.transform)[:6]) == of
        assert roi.count == 1 and roi.dtypes == ("uint8",)
        assert roi.read(1).min() == roi.read(1).max() == 1


def test_what_is_not_plain_is_left_to_rasterio():
    for crs, transform in (
        ("EPSG:3035", UTM[1]),
        ("EPSG:32661", UTM[1]),
        ("EPSG:32631 ", UTM[1]),
        ("EPSG:32631", (10, 1, 0, 0, -10, 0)),
        ("EPSG:32631", (10, 0, 0, 0, 10, 0)),
        ("EPSG:32631", (10, 0, float("nan"), 0, -10, 0)),
    ):
        assert plain((3, 4), crs, transform) is None


def test_a_tile_goes_into_a_store_without_rasterio(tmp_path, mini, monkeypatch, caplog):
    pytest.importorskip("zarr")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    tile = synthetic_tile(8, 9)
    folder = write_tile(tile, tmp_path / "farm_2024")
    opened = open_tile(folder)
    assert (opened.crs, opened.transform) == (tile.crs, tile.transform)
    report = tf.embed_tiles([folder], tmp_path / "x.zarr", mini)
    assert report.count("done") == 1
    write_tile(open_tile(arrays(), crs="EPSG:3035", transform=UTM[1]), tmp_path / "other")
    assert "roi.tiff is not written" in caplog.text  # and is not lost without a word
    assert not (tmp_path / "other" / "roi.tiff").exists()


def test_roi_that_names_other_files_is_not_opened(tmp_path):
    pytest.importorskip("rasterio")
    (tmp_path / "roi.tiff").write_bytes(write_plain(plain((H, W), *UTM)))
    link = (
        f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{tmp_path / 'roi.tiff'}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "vrt.tiff").write_text(link)
    with pytest.raises(InputError, match="expected a GeoTIFF"):
        read_roi(tmp_path / "vrt.tiff", (H, W))


def test_tags_that_say_nothing(tmp_path):
    data = write_plain(plain((H, W), *UTM))
    (first,) = struct.unpack_from("<I", data, 4)
    for k in range(struct.unpack_from("<H", data, first)[0]):
        for count in (0, 1, 2**32 - 1):
            damaged = bytearray(data)
            struct.pack_into("<I", damaged, first + 2 + 12 * k + 4, count)
            assert read_plain(bytes(damaged)) in (None, read_plain(data))
    many = struct.pack("<2sHIH", b"II", 42, 8, 65_535) + b"".join(
        struct.pack("<HHII", tag, 3, 8000, 0) for tag in range(1300)
    )
    started = time.process_time()
    assert read_plain(many + bytes(1 << 24)) is None
    assert time.process_time() - started < 1


# ---- cubes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(shape="x"), "shape: expected a list"),
        (lambda m: m.update(shape=[10**30] * 3), "expected at most 8 sizes"),
        (lambda m: m["chunk_grid"]["configuration"].update(chunk_shape=[1 << 20] * 3), "chunks"),
        (lambda m: m.update(codecs=7), "expected a cube that xarray opens"),
        (lambda m: m.update(data_type={"name": []}), "expected a cube that xarray opens"),
        (lambda m: m.update(dimension_names=[{}, 1, None]), "expected"),
        (lambda m: m.pop("chunk_grid"), "chunk_grid is missing"),
    ],
)
def test_metadata_of_a_cube(change, said, tmp_path):
    pytest.importorskip("zarr")
    path = Path(write_zarr(by_variable(arrays()), tmp_path / "c_2024.zarr", consolidated=False))
    file = path / "B02" / "zarr.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        open_tile(path)


def test_deep_and_torn_metadata(tmp_path):
    pytest.importorskip("zarr")
    path = Path(write_zarr(by_variable(arrays()), tmp_path / "c_2024.zarr", consolidated=False))
    for text in ("", "{", "[" * 100_000, '{"a": 1, "a": 2}', "\0"):
        (path / "B03" / "zarr.json").write_text(text)
        with pytest.raises(InputError, match=r"B03/zarr\.json: expected the metadata of a cube"):
            open_tile(path)


@pytest.mark.filterwarnings("ignore")  # of h5netcdf, when it gives up
def test_netcdf_that_is_cut_or_none(tmp_path):
    pytest.importorskip("h5netcdf")
    path = tmp_path / "c_2024.nc"
    by_variable(arrays()).to_netcdf(path, engine="h5netcdf")
    data = path.read_bytes()
    for damaged in (b"", b"no netCDF", data[:8], data[: len(data) // 2], data[:8] + bytes(5000)):
        path.unlink()
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="expected a cube that xarray opens"):
            open_tile(path)


# ---- plans

OPTIONS = {"model": "v2-nano", "dims": None, "workers": 4, "open": {"year": None}}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("crs", "nonsense", "crs: expected one that pyproj reads"),
        ("crs", "EPSG:999999", "crs: expected one that pyproj reads"),
        ("height", 0, "height: expected 1 to"),
        ("height", -5, "height: expected 1 to"),
        ("width", 401, "pixels: expected height x width"),
        ("year", 0, "year: expected 1 to"),
        ("name", "../a", "expected a name that a file can have"),
        ("name", "n" * 300, "expected a name that a file can have"),
        ("source", "", "source: expected a path or URL"),
        ("source", "a\0b", "source: expected a path or URL"),
        ("transform", (0.0,) * 6, "pixels of some size"),
        ("transform", (float("nan"),) * 6, "finite number"),
        ("flop", float("inf"), "finite number"),
        ("seconds", -1.0, "at least 0"),
        ("bytes_in", -1, "bytes_in: expected 0 to"),
    ],
)
def test_rows_of_a_plan(column, value, said, tmp_path):
    pytest.importorskip("pyarrow")
    values = {name: getattr(ROW, name) for name in ROW.__slots__} | {column: value}
    path = tmp_path / "plan.parquet"
    Plan([PlanRow(**values)], [], OPTIONS, None, None, 0).save(path)
    with pytest.raises(InputError, match=rf"row 1, .*{said}"):
        Plan.load(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {**OPTIONS, "workers": 10**30},
        {**OPTIONS, "workers": 0},
        {**OPTIONS, "model": None},
        {**OPTIONS, "open": []},
        {**OPTIONS, "open": {"seed": 1}},
        {**OPTIONS, "dims": "a"},
    ],
)
def test_options_of_a_plan(options, tmp_path):
    pytest.importorskip("pyarrow")
    Plan([ROW], [], options, None, None, 0).save(tmp_path / "plan.parquet")
    with pytest.raises(InputError, match="plan again"):
        Plan.load(tmp_path / "plan.parquet")


# ---- names

NOT_UTF8 = os.fsdecode(b"\xff_2024")


@pytest.mark.parametrize("path", ["~nobody-has-this-name/x", "a\0b", "n" * 300, "", "\ud800", 5])
def test_names_that_no_file_can_have(path, tmp_path, mini):
    tile = synthetic_tile(6, 8)
    calls = [
        lambda: open_tile(path),
        lambda: tf.embed(path, mini),
        lambda: write_tile(tile, path),
        lambda: Plan.load(path),
        lambda: Plan([ROW], [], OPTIONS, None, None, 0).save(path),
        lambda: tf.plan([path], "v2-nano", calibrate=False),
        lambda: tf.embed_tiles([path], tmp_path / "out", mini),
        lambda: list(expand([f"@{path}"])) if isinstance(path, str) else open_tile(path),
        lambda: tf.probe(path, path),
        lambda: tf.picture(path, path),
        lambda: tf.verify(path),
    ]
    for call in calls:
        with pytest.raises(TesseraError) as error:
            call()
        str(error.value).encode()


def test_a_name_that_is_no_utf8(tmp_path, mini, run):
    folder = save(tmp_path / NOT_UTF8, arrays())
    assert tf.embed(folder, mini).shape == (H, W, 32)
    for out in ("x.zarr", "npy"):
        with pytest.raises(InputError, match="a name in UTF-8 that a file can have"):
            tf.embed_tiles(
                [open_tile(folder, **dict(zip(("crs", "transform"), UTM, strict=True)))],
                tmp_path / out,
                mini,
            )
    result = run("plan", folder, "--model", "v2-nano", "--no-calibrate")
    assert result.code == 0 and r"\udcff_2024" in result.out
    with pytest.raises(InputError, match=r"\\xff|\\udcff") as error:
        open_tile(tmp_path / f"no{NOT_UTF8}")
    str(error.value).encode()


def test_the_command_prints_every_name(tmp_path):
    command = [sys.executable, "-m", "tessera_fast", "plan", os.fsencode(tmp_path) + b"/\xff"]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "" and r"\udcff: expected" in done.stdout


# ---- settings


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000, "\0", "a = 1\na = 2"])
def test_config_files(text, tmp_path):
    pytest.importorskip("torch")
    from tessera_fast.probing.config import read_config as probe
    from tessera_fast.training.config import TwinsPart, read_config

    path = tmp_path / "x.toml"
    path.write_text(text)
    for read in (lambda: read_config(path, TwinsPart), lambda: probe(path)):
        with pytest.raises(InputError, match="expected a TOML file"):
            read()


# ---- addresses


@pytest.mark.parametrize(
    "url",
    [
        "://",
        "nothing://a",
        "http://[::1/x",
        "memory://\0",
        "zip://x::y",
        "reference://a",
        "simplecache::memory://a",
        "ftp://127.0.0.1:1/a",
        "a" * 5000 + "://b",
        "local://\udcff",
    ],
)
def test_addresses(url):
    pytest.importorskip("fsspec")
    with pytest.raises(InputError) as error:
        open_tile(url)
    str(error.value).encode()


def test_small_files_behind_an_address_are_small(tmp_path):
    pytest.importorskip("fsspec")
    folder = save(tmp_path / "t_2024", arrays())
    with (folder / "doys.npy").open("r+b") as file:
        file.truncate(1 << 33)  # a hole
    with pytest.raises(InputError, match=r"doys\.npy: expected at most 4194304 bytes"):
        open_tile(f"file://{folder}")


def test_a_plan_does_not_grow_when_it_is_read(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "plan.parquet"
    Plan([ROW], [], OPTIONS, None, None, 0).save(path)
    table = pyarrow.parquet.read_table(path)
    long = pyarrow.array(["a" * (1 << 28)])
    grown = table.set_column(0, "name", long).replace_schema_metadata(table.schema.metadata)
    pyarrow.parquet.write_table(grown, path, compression="zstd", write_statistics=False)
    assert path.stat().st_size < 1 << 20
    outcome = fuzz.Outcome()
    fuzz.one(0, 0, lambda rng: b"", lambda _: Plan.load(path), outcome)
    assert outcome.refused == {"InputError": 1} and not outcome.faults
