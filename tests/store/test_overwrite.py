"""Names of files that people give: nothing is written over a file without being asked, and an
empty name, as of an unset variable of the shell, is no folder. And sizes of memory."""

import json

import numpy as np
import pytest

import tessera_fast as tf
from conftest import needs_zarr
from tessera_fast.commands.demo import run_demo
from tessera_fast.errors import InputError, StoreError, TesseraError
from tessera_fast.sizes import binary, parse_bytes
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.weights import load_weights, save_safetensors

RING = [[3.0165, 50.821], [3.0305, 50.8205], [3.0320, 50.8120], [3.0165, 50.821]]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tile, a store of it and a polygon, by name."""
    pytest.importorskip("zarr")
    folder = tmp_path_factory.mktemp("places")
    tile = write_tile(synthetic_tile(8, 8), folder / "farm_2024")
    tf.embed_tiles([tile], folder / "s.zarr", "demo-nano")
    (folder / "p.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [RING]}))
    return {"tile": tile, "store": folder / "s.zarr", "polygon": folder / "p.geojson"}


def plan(places):
    return tf.plan(places["tile"], "demo-nano", rate=10)


# what is called, with an empty name in place of one of its files
EMPTY = {
    "embed": lambda p: tf.embed("", "demo-nano"),
    "open_tile": lambda p: tf.open_tile(""),
    "open_windows": lambda p: list(tf.open_windows("")),
    "embed_tiles, tiles": lambda p: tf.embed_tiles([""], "x", "demo-nano"),
    "embed_tiles, out": lambda p: tf.embed_tiles([p["tile"]], "", "demo-nano"),
    "embed_tiles, report": lambda p: tf.embed_tiles([p["tile"]], "x", "demo-nano", report_file=""),
    "plan": lambda p: tf.plan("", "demo-nano"),
    "plan, out": lambda p: tf.plan(p["tile"], "demo-nano", out="", rate=1),
    "Plan.save": lambda p: plan(p).save(""),
    "Plan.load": lambda p: tf.Plan.load(""),
    "load_model": lambda p: tf.load_model(""),
    "weights": lambda p: tf.load_model("v2-nano", weights=""),
    "convert": lambda p: tf.convert("", "x.safetensors"),
    "convert, destination": lambda p: tf.convert("demo-nano", ""),
    "save_safetensors": lambda p: save_safetensors("", load_weights("demo-nano")),
    "export": lambda p: tf.export("", "x"),
    "export, out": lambda p: tf.export("demo-nano", ""),
    "export_store": lambda p: tf.export_store("", "x"),
    "export_store, out": lambda p: tf.export_store(p["store"], "", format="npy"),
    "export_store to zarr": lambda p: tf.export_store(p["store"], "", format="zarr"),
    "mosaic": lambda p: tf.mosaic("", "x.tif", polygon=p["polygon"]),
    "mosaic, out": lambda p: tf.mosaic(p["store"], "", polygon=p["polygon"]),
    "mosaic, polygon": lambda p: tf.mosaic(p["store"], "x.tif", polygon=""),
    "mosaic, template": lambda p: tf.mosaic(p["store"], "x.tif", template=""),
    "picture": lambda p: tf.picture("", "x.png"),
    "picture, out": lambda p: tf.picture(p["store"], ""),
    "picture, cog": lambda p: tf.picture(p["store"], cog=""),
    "picture, basis": lambda p: tf.picture(p["store"], "x.png", basis=""),
    "picture, save": lambda p: tf.picture(p["store"], save=""),
    "stac_items": lambda p: tf.stac_items("", "x"),
    "stac_items, out": lambda p: tf.stac_items(p["store"], ""),
    "verify": lambda p: tf.verify(""),
    "verify, b": lambda p: tf.verify(p["store"], ""),
    "verify, maps": lambda p: tf.verify(p["store"], p["store"], maps=""),
    "probe": lambda p: tf.probe("", [[1]]),
    "probe, labels": lambda p: tf.probe(p["store"], ""),
    "demo": lambda p: run_demo(""),
    "write_tile": lambda p: write_tile(synthetic_tile(8, 8), ""),
}
NEEDED = {
    "export": "onnx",
    "export, out": "onnx",
    "mosaic": "rasterio",
    "probe": "sklearn",
    "stac_items": "pystac",
    "Plan.save": "pyarrow",
    "Plan.load": "pyarrow",
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_name_is_refused(case, places, tmp_path, monkeypatch):
    needed = NEEDED.get(case, NEEDED.get(case.partition(",")[0]))
    if needed:
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TesseraError, match="expected the name of a file or folder, got ''"):
        EMPTY[case](places)
    assert not list(tmp_path.iterdir())


def test_empty_names_of_configurations(tmp_path, run):
    (tmp_path / "run.toml").write_text('[run]\nout = ""\nsteps = 1\n[data]\ntiles = "x"\n')
    assert "[run] out: expected the name of a file or" in run("train", tmp_path / "run.toml").err
    (tmp_path / "p.toml").write_text('embeddings = "x"\nlabels = ""\n')
    said = run("probe", tmp_path / "p.toml").err
    assert "p.toml: labels: " in said and "expected the name of a file or folder, got ''" in said


# ---- nothing is written over


def unchanged(path, call):
    """``call`` fails, and the file stays what it is."""
    path.write_text("a user's own")
    result = call()
    assert result.code == 1 and "exists" in result.err, result
    assert path.read_text() == "a user's own"


def test_a_plan(farm, mini, run, tmp_path):
    pytest.importorskip("pyarrow")
    file = tmp_path / "p.parquet"
    words = ["plan", farm, "--model", mini, "--no-calibrate", "-o", file]
    unchanged(file, lambda: run(*words))
    assert run(*words, "--overwrite").code == 0
    made = tf.Plan.load(file)
    with pytest.raises(StoreError, match="exists; give overwrite"):
        made.save(file)
    made.save(file, overwrite=True)
    # nothing is opened for a plan that cannot be kept
    assert "exists" in run("plan", tmp_path / "gone", "-o", file).err


def test_what_verify_writes(places, run, tmp_path):
    file, folder = tmp_path / "v.json", tmp_path / "maps"
    words = ["verify", places["store"], places["store"]]
    unchanged(file, lambda: run(*words, "--json", file))
    assert run(*words, "--json", file, "--overwrite").code == 0
    assert json.loads(file.read_text())["same"] is True
    assert run(*words, "--maps", folder).code == 0
    (folder / "mine.png").write_text("x")
    refused = run(*words, "--maps", folder)
    assert refused.code == 1 and "new or an empty folder" in refused.err
    assert run(*words, "--maps", folder, "--overwrite").code == 0
    assert (folder / "mine.png").exists()


def test_the_report_of_a_job(farm, mini, run, tmp_path):
    """A report takes the place of an earlier one, and of nothing else."""
    file = tmp_path / "r.json"
    words = ["embed", farm, "-o", tmp_path / "x", "--model", mini, "--report", file]
    unchanged(file, lambda: run(*words))
    assert not (tmp_path / "x").exists()
    file.write_text("")  # as mktemp makes it
    for state in ("done", "skipped"):
        assert run(*words).code == 0
        assert [tile["state"] for tile in json.loads(file.read_text())["tiles"]] == [state]


@needs_zarr
def test_a_demo(run, tmp_path):
    picture = tmp_path / "demo.png"
    words = ["demo", "--size", 16, "-o", tmp_path]
    unchanged(picture, lambda: run(*words))
    assert not (tmp_path / "demo.zarr").exists()
    assert run(*words, "--overwrite").code == 0
    first = picture.read_bytes()
    assert run(*words).code == 0 and picture.read_bytes() == first
    other = run(*words, "--seed", 1)
    assert other.code == 1 and "exists" in other.err and picture.read_bytes() == first


def test_a_trace(farm, run, tmp_path):
    file = tmp_path / "t.json"
    unchanged(file, lambda: run("bench", farm, "--model", "v2-nano", "--trace", file))


def test_bench_says_that_weights_are_untrained(farm, run):
    said = "untrained weights: random parameters"
    assert run("bench", farm, "--model", "v2-nano", "--rows", 2).out.startswith(said)
    assert said not in run("bench", farm, "--model", "demo-nano", "--rows", 2).out


# ---- memory


@pytest.mark.parametrize(
    ("memory", "shown"),
    [
        ("1KB", "1000 bytes"),
        ("1 KiB", "1024 bytes"),
        (1, "1 bytes"),
        ("1.5MiB", "1.5 MiB"),
        (np.int64(3 << 20), "3 MiB"),
    ],
)
def test_too_little_memory_is_shown_as_it_is(memory, shown, mini):
    """1KB was shown as 0 MiB."""
    tile = synthetic_tile(4, 6)
    with pytest.raises(InputError, match=f"memory: {shown} cannot hold") as caught:
        tf.embed(tile, mini, memory=memory)
    least = str(caught.value).partition("at least ")[2].partition(",")[0]
    assert tf.embed(tile, mini, memory=least.replace(" ", "")).shape == (4, 6, 32)
    with pytest.raises(InputError, match=f"memory: {shown} cannot hold .* at least \\d+ MiB"):
        tf.embed_tiles([tile], "never", mini, memory=memory)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "lots",
        "0",
        "0.4B",
        "-1GiB",
        "1 GiB 2",
        "9" * 400,
        "1" * 25 + "GB",
        "\u0661GiB",
        -1,
        0,
        True,
        None,
        float("nan"),
        float("inf"),
        2**80,
        [1],
    ],
)
def test_what_is_no_size(wrong):
    with pytest.raises(InputError, match="memory: expected a"):
        parse_bytes(wrong)


def test_sizes():
    assert parse_bytes("1.5 gib") == 3 << 29 and parse_bytes("2GB") == 2 * 10**9
    assert parse_bytes(5.9) == 5 and parse_bytes(np.float64(7)) == 7
    assert binary(1000) == "1000 bytes" and binary(3 << 29) == "1.5 GiB"
