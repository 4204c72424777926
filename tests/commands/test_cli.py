"""The command line: what it writes, says and returns, in this process and in real ones."""

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from conftest import FARM_SHAPE, OUTPUTS, PACKAGE, needs_zarr
from fake_tiles import listing
from official_checkpoints import MINI, save_model
from places import SHARED
from tessera_fast.__main__ import main
from tessera_fast.synthetic import synthetic_tile, write_tile

DATA = SHARED / "data"
FARM_LINE = "farm_2024: 108 px in "


def assert_equal(got, expected):
    np.testing.assert_array_equal(got, expected)


def test_npy_float32(farm, mini, run, tmp_path):
    result = run("embed", farm, "-o", tmp_path / "out", "--model", mini)
    assert result.code == 0
    assert FARM_LINE in result.out and " px/s, 1 without data" in result.out
    with tf.load_model(mini) as model:
        assert f"v2-mini (untrained) (cpu, {model.precision})" in result.out
    lines = result.out.splitlines()
    assert lines[1].endswith(f" s -> {tmp_path / 'out'}") and lines[2].startswith("encoder busy")
    assert result.err == "untrained weights: these embeddings mean nothing\n"
    written = np.load(tmp_path / "out" / "farm_2024.npy")
    assert_equal(written, tf.embed(farm, mini))
    assert written.dtype == np.float32 and written.shape == (*FARM_SHAPE, 32)
    visible = {p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")}
    assert visible == {"farm_2024.npy"}


def test_npy_int8_and_dims(farm, mini, run, tmp_path):
    out = tmp_path / "out"
    assert run("embed", farm, "-o", out, "--model", mini, "--int8", "--dims", 8).code == 0
    expected = tf.embed(farm, mini, output="int8", dims=8)
    assert_equal(np.load(out / "farm_2024.npy"), expected.codes)
    assert_equal(np.load(out / "farm_2024_scales.npy"), expected.scales)
    assert expected.codes.shape == (*FARM_SHAPE, 8)


def read_store(path, tile, group="utm31"):
    """Codes (H, W, E), scales and counts of the store where the tile lies, found by coordinates."""
    xr = pytest.importorskip("xarray")
    found = xr.open_zarr(path, group=group, consolidated=False)
    x0, y0 = tile.transform[2], tile.transform[5]
    window = found.sel(
        time=tile.year,
        x=slice(x0, x0 + 10 * tile.width),
        y=slice(y0, y0 - 10 * tile.height),
    )
    return found, window


def cropped(tile, rows):
    """The first rows of a tile, as a dict of arrays."""
    window = tile.rows(0, rows)
    arrays = {"bands": window.s2_bands, "masks": window.s2_masks, "doys": window.s2_doys}
    for orbit in window.orbits:
        name = ("sar_ascending", "sar_descending")[orbit.index]
        arrays |= {name: orbit.bands, f"{name}_doy": orbit.doys}
    return arrays


def check_store(path, folder, model):
    """CRS, transform, year, values and counts of a store against `tf.embed` of a folder."""
    pytest.importorskip("rioxarray")
    tile = tf.open_tile(folder)
    found, window = read_store(path, tile)
    rows = min(16, tile.height)  # of a tile that is cut to them: half a minute less
    expected = tf.embed(cropped(tile, rows), model, output="int8")
    assert found.rio.crs.to_epsg() == 32631
    assert window.embeddings.rio.crs.to_epsg() == 32631
    transform = tuple(found.rio.transform())[:6]
    assert (transform[0], transform[4]) == (10, -10)
    assert (tile.transform[2] - transform[2]) % 10 == (transform[5] - tile.transform[5]) % 10 == 0
    assert window.x.values[0] == tile.transform[2] + 5  # centres
    assert window.y.values[0] == tile.transform[5] - 5
    codes = window.embeddings.transpose("y", "x", "band").values[:rows]
    scales = window.scales.values[:rows]
    assert_equal(codes, expected.codes)
    assert_equal(scales, expected.scales)
    assert_equal(tf.dequantize(codes, scales), tf.dequantize(*expected))
    observations = tile.rows(0, tile.height)
    assert_equal(window.s2_obs_count.values, (observations.s2_masks != 0).sum(0))
    by_orbit = {o.index: (o.bands != 0).any(-1).sum(0) for o in observations.orbits}
    for index, name in enumerate(("s1_asc_obs_count", "s1_desc_obs_count")):
        assert_equal(window[name].values, by_orbit.get(index, np.zeros(window.scales.shape)))
    return found


@needs_zarr
def test_two_tiles_to_a_store(run, tmp_path, spawn):
    """Real tiles where they are at hand."""
    folders = [DATA / "flanders_2018", DATA / "flanders_2019"]
    if not all(f.is_dir() for f in folders):
        folders = [
            write_tile(synthetic_tile(24, 20, year=year), tmp_path / f"farm_{year}")
            for year in (2018, 2019)
        ]
    out = tmp_path / "x.zarr"
    arguments = ["embed", *folders, "-o", out, "--model", "v2-nano", "--weights", "untrained"]
    process = spawn(*arguments)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, (stdout, stderr)
    assert stderr == "untrained weights: these embeddings mean nothing\n"  # no bar in a pipe
    assert "2 of 2 tiles embedded with v2-nano (untrained)" in stdout
    with tf.load_model("v2-nano", weights="untrained") as model:
        for folder in folders:
            found = check_store(out, folder, model)
    assert list(found.time.values) == [2018, 2019]
    before = listing(out)
    again = run(*arguments)
    assert again.code == 0
    assert [line.split(":")[1] for line in again.out.splitlines()[:2]] == [" already done"] * 2
    assert "0 of 2 tiles embedded" in again.out
    assert listing(out) == before


@needs_zarr
def test_a_trailing_slash_does_not_change_the_output(farm, mini, run, tmp_path):
    assert run("embed", farm, "-o", tmp_path / "x.zarr", "--model", mini).code == 0
    again = run("embed", farm, "-o", f"{tmp_path / 'x.zarr'}/", "--model", mini)
    assert (again.code, again.err.count("StoreError")) == (0, 0)
    assert "already done" in again.out


@pytest.mark.parametrize("out", OUTPUTS)
def test_refuses_to_mix(out, farm, mini, run, tmp_path):
    other = write_tile(synthetic_tile(6, 6, seed=1), tmp_path / "other_2024")
    base = ["-o", tmp_path / out, "--model", "v2-nano", "--weights"]
    assert run("embed", farm, *base, "untrained:2").code == 0
    before = listing(tmp_path / out)
    refused = {
        "weights_sha256": [*base, "untrained:3"],
        "dims": [*base, "untrained:2", "--dims", 16],
        "model": ["-o", tmp_path / out, "--model", mini],
        "precision": [*base, "untrained:2", "--backend", "reference", "--precision", "fp64"],
    }
    if out == "x":
        refused["dtype"] = [*base, "untrained:2", "--int8"]
    for field, arguments in refused.items():
        result = run("embed", farm, other, *arguments)
        assert result.code == 1, field
        assert "will not mix" in result.err and f"{field}: it holds" in result.err
        assert "another output" in result.err
    assert listing(tmp_path / out) == before
    assert run("embed", other, *base, "untrained:2").code == 0


def test_options_do_not_change_the_values(farm, mini, run, tmp_path):
    with tf.load_model(mini) as model:
        precision = model.precision
    variants = {
        "default": [],
        "one": ["--threads", 1],
        "two": ["--threads", 2, "--memory", "200MiB"],
        "named": ["--backend", "cpu", "--precision", precision, "--device", "cpu"],
    }
    files = {}
    for name, options in variants.items():
        out = tmp_path / name
        assert run("embed", farm, "-o", out, "--model", mini, *options).code == 0
        files[name] = (out / "farm_2024.npy").read_bytes()
    assert len(set(files.values())) == 1


def test_reference_backend(farm, mini, run, tmp_path):
    pytest.importorskip("torch")
    from oracle import assert_golden

    out = tmp_path / "x"
    arguments = ["-o", out, "--model", mini, "--backend", "reference", "--precision", "fp64"]
    result = run("embed", farm, *arguments)
    assert result.code == 0 and "(reference, fp64)" in result.out
    reference, ours = np.load(out / "farm_2024.npy"), tf.embed(farm, mini, precision="fp32")
    seen = np.isfinite(ours).all(-1)
    assert_equal(np.isfinite(reference).all(-1), seen)
    assert_golden(ours[seen], reference[seen])


@needs_zarr
def test_year_and_missing_sentinel1(farm, mini, run, tmp_path):
    for path in farm.glob("sar_*"):
        path.unlink()
    bare = farm.rename(tmp_path / "farm")
    base = ["embed", bare, "-o", tmp_path / "x.zarr", "--model", mini]
    assert "--allow-missing-s1" in run(*base).err
    result = run(*base, "--allow-missing-s1")
    assert result.code == 1
    assert "needs its year" in result.err and "--year" in result.err
    assert not (tmp_path / "x.zarr").exists()
    assert run(*base, "--allow-missing-s1", "--year", 2021).code == 0
    _, window = read_store(
        tmp_path / "x.zarr", tf.open_tile(bare, year=2021, allow_missing_s1=True)
    )
    expected = tf.embed(bare, mini, output="int8", allow_missing_s1=True)
    assert_equal(window.scales.values, expected.scales)
    assert window.s1_asc_obs_count.max() == window.s1_desc_obs_count.max() == 0


def test_store_without_a_place(farm, mini, run, tmp_path):
    (farm / "roi.tiff").unlink()
    result = run("embed", farm, "-o", tmp_path / "x.zarr", "--model", mini)
    assert result.code == 1
    assert "CRS and transform" in result.err and "roi.tiff" in result.err and ".npy" in result.err
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize("out", OUTPUTS)
def test_second_of_three_tiles_fails(out, farm, mini, run, tmp_path):
    bad = Path(shutil.copytree(farm, tmp_path / "bad_2023"))
    last = Path(shutil.copytree(farm, tmp_path / "last_2022"))
    masks = np.load(bad / "masks.npy")
    good = masks.copy()
    masks[3, 5, 5] = 9  # found while packing, not when the tile is opened
    np.save(bad / "masks.npy", masks)
    arguments = ["embed", farm, bad, last, "-o", tmp_path / out, "--model", mini]
    result = run(*arguments)
    assert result.code == 3
    assert FARM_LINE in result.out and "last_2022" not in result.out
    assert "bad_2023, masks: expected" in result.err
    assert run("embed", bad, "-o", tmp_path / f"alone_{out}", "--model", mini).code == 1
    np.save(bad / "masks.npy", good)
    result = run(*arguments)
    assert result.code == 0
    assert "farm_2024: already done" in result.out and "bad_2023: 108 px" in result.out
    assert "2 of 3 tiles" in result.out


def test_a_changed_tile_is_made_again(farm, mini, run, tmp_path):
    arguments = ["embed", farm, "-o", tmp_path / "x", "--model", mini]
    assert run(*arguments).code == 0
    bands = np.load(farm / "bands.npy")
    np.save(farm / "bands.npy", bands + 1)
    result = run(*arguments)
    assert FARM_LINE in result.out
    assert_equal(np.load(tmp_path / "x" / "farm_2024.npy"), tf.embed(farm, mini))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "v3-huge"], "model: expected one of v2-nano"),
        (["--model", "v2-nano", "--weights", "gone.pt"], "gone.pt"),
        (["--model", "v2-nano", "--weights", "untrained:x"], "untrained:<seed>"),
        (["--dims", "17"], "can be cut to 8, 16, 32 dimensions, got 17"),
        (["--memory", "1MiB"], r"give at least"),
        (
            ["--backend", "abacus"],
            "backend: expected auto, cuda, tensorrt, cpu, reference, got 'abacus'",
        ),
        (
            ["--backend", "cpu", "--precision", "fp64"],
            "the cpu back end runs fp32, bf16, int8, not fp64",
        ),
        (["--device", "cuda"], "'cuda'"),
        (["--repeats", "3"], "repeats: expected 1"),
    ],
)
def test_wrong_options_write_nothing(options, message, farm, mini, run, tmp_path):
    model = [] if "--model" in options else ["--model", mini]
    result = run("embed", farm, "-o", tmp_path / "out" / "x", *model, *options)
    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_info(run, monkeypatch):
    result = run("info")
    assert result.code == 0
    assert f"tessera_fast {tf.__version__}" in result.out
    for word in ("numpy", "portable", ", chosen", "cpu              available", "v2-teacher"):
        assert word in result.out
    monkeypatch.setenv("TESSERA_FAST_ISA", "portable")
    monkeypatch.setenv("TESSERA_FAST_WEIGHTS", "/models")
    result = run("info")
    assert "forced by TESSERA_FAST_ISA=portable" in result.out and "/models" in result.out
    monkeypatch.setenv("TESSERA_FAST_ISA", "abacus")
    result = run("info")
    assert result.code == 0
    assert "abacus" in next(line for line in result.out.splitlines() if line.startswith("  cpu "))


def test_convert(farm, run, tmp_path):
    official = save_model(tmp_path / "mini.pt", MINI["v2"])
    converted = tmp_path / "mini.safetensors"
    result = run("convert", official, converted)
    assert result.code == 0
    assert result.out.startswith(f"{converted}: v2-custom, ")
    assert_equal(tf.embed(farm, converted), tf.embed(farm, official))
    again = run("convert", official, converted)
    assert again.code == 1 and "exists" in again.err
    assert run("convert", official, converted, "--overwrite").code == 0
    mismatch = run("convert", official, tmp_path / "y.safetensors", "--model", "v2-nano")
    assert mismatch.code == 1 and not (tmp_path / "y.safetensors").exists()
    official.write_bytes(official.read_bytes()[:-200])
    assert run("convert", official, tmp_path / "y.safetensors").code == 1
    assert not (tmp_path / "y.safetensors").exists()


@needs_zarr
def test_demo(run, tmp_path):
    out = tmp_path / "new" / "demo"
    result = run("demo", "--size", 32, "-o", out)
    assert result.code == 0
    assert "demo-nano" in result.out and "px/s" in result.out and "% of the pixels" in result.out
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG") and (out / "demo.zarr").is_dir()
    tile = synthetic_tile(32, 32, year=2024)
    _, window = read_store(out / "demo.zarr", tile)
    with tf.load_model("demo-nano") as model:
        assert_equal(window.scales.values, tf.embed(tile, model, output="int8").scales)
    before = listing(out)
    again = run("demo", "--size", 32, "-o", out)
    assert again.code == 0 and "already" in again.out
    assert listing(out) == before
    (tmp_path / "file").write_text("")
    blocked = run("demo", "--size", 8, "-o", tmp_path / "file")
    assert blocked.code == 1 and "folder" in blocked.err


@pytest.mark.parametrize("command", [[], ["embed"], ["demo"], ["convert"], ["info"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert (
        text.startswith("usage: tessera-fast") and "None" not in text and "==SUPPRESS==" not in text
    )
    if command == ["embed"]:
        options = "model weights backend precision dims int8 year memory threads allow-missing-s1"
        assert all(f"--{name}" in text for name in options.split())
        assert "default 1GiB" in text and "default v2-medium" in text
    if not command:
        for name in ("embed", "demo", "convert", "info"):
            assert f"\n    {name} " in text


def test_version_and_module(spawn):
    stdout, stderr = spawn("--version").communicate(timeout=60)
    assert stdout == f"tessera-fast {tf.__version__}\n" and stderr == ""


def in_terminal(*arguments):
    """Run the command line with a pseudo-terminal as stderr; what it wrote there, and its code."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera_fast", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=writer,
        env=env,
    )
    os.close(writer)
    seen = b""
    while True:
        try:
            part = os.read(reader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(reader)
    return process.wait(timeout=60), seen.decode()


def test_progress_bar_only_on_a_terminal(farm, mini, spawn, tmp_path):
    code, seen = in_terminal("embed", farm, "-o", tmp_path / "x", "--model", mini)
    assert code == 0
    assert "x: 100%" in seen and "px" in seen
    process = spawn("embed", farm, "-o", tmp_path / "y", "--model", mini)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "100%" not in stdout + stderr and "\r" not in stdout + stderr


def test_a_reader_that_has_seen_enough(spawn):
    """As `tessera-fast info | head -1` has it."""
    process = spawn("info")
    process.stdout.close()
    process.stdout = None  # nothing for the fixture to read
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""
