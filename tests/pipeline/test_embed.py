"""tf.embed: every way in gives the same numbers, every option does what it says."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from conftest import PACKAGE
from official_checkpoints import MINI
from oracle import assert_golden
from tessera_fast import _cpu
from tessera_fast.pipeline.embed import block_rows
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.weights import save_safetensors, untrained_weights
from tile_sources import NAMES, by_variable, flat, stacked

NO_EMBEDDING = (0, 2)  # row, column of the edge pixel that was never observed


@pytest.fixture(scope="module")
def tile():
    return synthetic_tile(10, 8, seed=4)


@pytest.fixture(scope="module")
def data(tile):
    """The tile as a dict of arrays under the official names."""
    return flat(tile)


@pytest.fixture(scope="module")
def model(mini):
    with tf.load_model(mini) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def values(tile, model):
    """(10, 8, 32) float32, what every way in must give."""
    return tf.embed(tile, model)


def test_every_way_in_gives_the_same(tile, data, model, mini, values, tmp_path):
    folder = write_tile(tile, tmp_path / "farm_2024")
    results = {
        "folder": tf.embed(folder, model),
        "text": tf.embed(str(folder), model),
        "dict": tf.embed(data, model),
        "keywords": tf.embed(model=model, **data),
        "opened": tf.embed(tf.open_tile(folder), model),
        "path of the model": tf.embed(tile, mini),
        "text of the model": tf.embed(tile, str(mini), threads=2),
        "no bar": tf.embed(tile, model, progress=False),
        "stacked": tf.embed(stacked(data), model),
        "by variable": tf.embed(by_variable(data), model),
    }
    for name, result in results.items():
        np.testing.assert_array_equal(np.asarray(result), values, err_msg=name)
        assert result.dtype == np.float32 and result.shape == (10, 8, 32)
    assert np.isnan(values[NO_EMBEDDING]).all()
    assert np.isfinite(np.delete(values.reshape(-1, 32), NO_EMBEDDING[1], axis=0)).all()


def test_an_opened_tile_is_used_again(tile, model, values):
    for _ in range(2):
        np.testing.assert_array_equal(tf.embed(tile, model), values)
    one_row = tf.embed(flat(tile, 3, 4), model)
    np.testing.assert_array_equal(one_row[0], values[3])


def test_dataset_gives_a_data_array(data, model, values):
    xr = pytest.importorskip("xarray")
    dataset = stacked(data).assign_coords(
        y=("y", 5e6 - 10.0 * np.arange(10)),
        x=("x", 5e5 + 10.0 * np.arange(8)),
        spatial_ref=0,
        place=("y", np.arange(10)),
    )
    dataset.spatial_ref.attrs["crs_wkt"] = "EPSG:32631"
    result = tf.embed(dataset, model)
    assert isinstance(result, xr.DataArray) and result.dims == ("y", "x", "band")
    np.testing.assert_array_equal(result.y, dataset.y)
    np.testing.assert_array_equal(result.x, dataset.x)
    assert "place" in result.coords and "spatial_ref" in result.coords
    np.testing.assert_array_equal(result, values)
    codes = tf.embed(dataset, model, output="int8")
    assert isinstance(codes, tf.QuantizedEmbeddings)


@pytest.mark.parametrize("dims", [None, 8, 16])
def test_int8_is_quantize_of_float32(tile, model, dims):
    expected = tf.quantize(tf.embed(tile, model, dims=dims))
    got = tf.embed(tile, model, dims=dims, output="int8")
    assert got.codes.dtype == np.int8 and got.scales.dtype == np.float32
    np.testing.assert_array_equal(got.codes, expected.codes)
    np.testing.assert_array_equal(got.scales, expected.scales)
    assert np.isposinf(got.scales[NO_EMBEDDING]) and not got.codes[NO_EMBEDDING].any()
    assert np.isnan(tf.dequantize(*got)[NO_EMBEDDING]).all()


def test_dims_are_the_leading_ones(tile, model, values):
    for dims in (8, 16, 32):
        np.testing.assert_array_equal(tf.embed(tile, model, dims=dims), values[..., :dims])
    codes = tf.embed(tile, model, dims=8, output="int8").codes
    whole = tf.embed(tile, model, output="int8").codes[..., :8]
    assert (codes != whole).any()  # the scale is that of the 8 dimensions kept
    for dims in (0, 7, 64):
        with pytest.raises(tf.InputError, match=rf"can be cut to 8, 16, 32 dimensions, got {dims}"):
            tf.embed(tile, model, dims=dims)


def test_seed_and_repeats_of_v1_0(tile, tmp_path):
    path = tmp_path / "v1_0.safetensors"
    save_safetensors(path, untrained_weights(MINI["v1.0-qat"]))
    with tf.load_model(path) as model:
        zero, one = (tf.embed(tile, model, seed=seed) for seed in (0, 1))
        np.testing.assert_array_equal(tf.embed(tile, model), zero)
        assert (zero[5] != one[5]).any()
        both = tf.embed(tile, model, repeats=2)
        np.testing.assert_array_equal(both, (zero + one) / 2)
        memory = smallest_memory(tile, model, 4)
        np.testing.assert_array_equal(tf.embed(tile, model, seed=1, memory=memory), one)


def smallest_memory(tile, model, rows):
    """Bytes that give blocks of at most ``rows`` rows."""
    memory = 1 << 27
    while True:
        try:
            assert block_rows(tile, model, memory) <= rows
            return memory
        except tf.InputError:
            memory += 1 << 16


def test_progress(tile, mini, model, values):
    calls = []

    def report(*call):
        calls.append(call)

    for memory in ("1GiB", smallest_memory(tile, model, 4)):
        calls.clear()
        got = tf.embed(tile, model, memory=memory, progress=report)
        np.testing.assert_array_equal(got, values)
        done = [n for n, _ in calls]
        assert done == sorted(done) and done[-1] == 80 and done[0] >= 0
        assert {total for _, total in calls} == {80}
    assert len(set(done)) >= 3  # at the end of every band at least
    pytest.importorskip("torch")
    tf.embed(tile, mini, backend="reference", progress=report)
    assert calls[-1] == (80, 80)


def test_an_error_in_progress_ends_the_work(tile, model, values):
    def refuse(done, total):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        tf.embed(tile, model, progress=refuse)
    np.testing.assert_array_equal(tf.embed(tile, model), values)


def test_progress_true_shows_a_bar(tile, model, capsys):
    tf.embed(tile, model, progress=True)
    assert "100%" in capsys.readouterr().err
    tf.embed(tile, model)
    tf.embed(tile, model, progress=False)
    assert capsys.readouterr().err == ""


def test_memory(tile, model, values):
    with pytest.raises(tf.InputError, match=r"64 MiB cannot hold one row .*at least \d+ MiB"):
        tf.embed(tile, model, memory="64MiB")
    with pytest.raises(tf.InputError, match="memory: 64 MiB") as caught:
        tf.embed(tile, model, memory=64 << 20)
    needed = str(caught.value).partition("at least ")[2].partition(" MiB")[0]
    np.testing.assert_array_equal(tf.embed(tile, model, memory=f"{needed}MiB"), values)
    for wrong in ("lots", "-1GiB", "1 GiB 2", "1XB", 0, -5):
        with pytest.raises(tf.InputError, match="memory: expected a"):
            tf.embed(tile, model, memory=wrong)


def test_default_memory_grows_with_the_threads(tile, mini):
    """A machine with many CPUs runs without a setting; one that is given is kept."""
    with tf.load_model(mini, threads=1000) as model:
        assert block_rows(tile, model, None) == tile.height
        with pytest.raises(tf.InputError, match="with 1000 threads"):
            block_rows(tile, model, "1GiB")


def test_missing_sentinel1(data, model):
    alone = {name: a for name, a in data.items() if not name.startswith("sar")}
    for source in (alone, {**alone, **dict.fromkeys(NAMES)}):
        with pytest.raises(tf.InputError, match="allow_missing_s1=True"):
            tf.embed(source, model)
        got = tf.embed(source, model, allow_missing_s1=True)
        assert np.isfinite(got[5]).all() and np.isnan(got[0, 0]).all()
    silent = {**data, **{n: np.zeros_like(data[n]) for n in NAMES}}  # observed nowhere: the same
    np.testing.assert_array_equal(got, tf.embed(silent, model))
    half = {name: a for name, a in data.items() if not name.startswith("sar_desc")}
    assert np.isfinite(tf.embed(half, model)[5]).all()


def test_a_loaded_model_goes_without_other_options(tile, model):
    options = {
        "weights": "untrained",
        "backend": "cpu",
        "precision": "fp32",
        "device": "cpu",
        "threads": 1,
    }
    for name, value in options.items():
        with pytest.raises(tf.InputError, match="a loaded model was given together with weights"):
            tf.embed(tile, model, **{name: value})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"backend": "cpu", "precision": "fp64"},
            tf.BackendUnavailable,
            "runs fp32, bf16, int8, not fp64",
        ),
        (
            {"precision": "fp64"},
            tf.BackendUnavailable,
            "no back end can run this: cuda: .*cpu: .*fp64",
        ),
        ({"precision": "int4"}, tf.InputError, "got 'int4'. Did you mean 'int8'"),
        (
            {"backend": "abacus"},
            tf.InputError,
            "backend: expected auto, cuda, tensorrt, cpu, reference, got",
        ),
        ({"device": "cuda"}, tf.BackendUnavailable, "runs on device 'cpu', not 'cuda'"),
        ({"threads": 0}, tf.InputError, "threads: expected a whole number from 1 to 4,096, got 0"),
        ({"output": "int4"}, tf.InputError, "output: expected float32, int8, got 'int4'"),
        ({"repeats": 2}, tf.InputError, "repeats: expected 1, .* got 2 with v2-mini"),
        ({"repeats": 0}, tf.InputError, "repeats: expected 1, .* got 0"),
        ({"model": "v3"}, tf.InputError, "model: expected one of v2-nano, .* got 'v3'"),
        ({"model": "gone.pt"}, tf.WeightsError, "gone.pt"),
        ({"weights": "untrained"}, tf.WeightsError, "goes with a model's name"),
    ],
)
def test_options_that_cannot_be_met(options, error, message, tile, mini):
    with pytest.raises(error, match=message):
        tf.embed(tile, **{"model": mini, **options})


def test_either_a_tile_or_arrays(tile, data, mini):
    with pytest.raises(tf.InputError, match=r"give either a tile .* or the arrays .* neither"):
        tf.embed(model=mini)
    with pytest.raises(tf.InputError, match="got both"):
        tf.embed(tile, mini, bands=data["bands"])
    with pytest.raises(tf.InputError, match=r"embed has no keyword 'dim'\. Did you mean 'dims'"):
        tf.embed(model=mini, **data, dim=16)
    with pytest.raises(tf.InputError, match=r"expected a folder, a dict .* got list"):
        tf.embed([1, 2], mini)


def test_forced_instruction_set(tile, mini, monkeypatch):
    values = tf.embed(tile, mini, precision="fp32")
    seen = np.isfinite(values)
    runs = [name for name, here, _, _ in _cpu.isas() if here]
    assert "portable" in runs
    for name in runs:
        monkeypatch.setenv("TESSERA_FAST_ISA", name)
        with tf.load_model(mini, precision="fp32") as forced:
            assert forced.provenance()["isa"] == name
            assert_golden(tf.embed(tile, forced)[seen], values[seen])
    cannot = [name for name, here, _, _ in _cpu.isas() if not here]
    for name in (*cannot, "abacus"):
        monkeypatch.setenv("TESSERA_FAST_ISA", name)
        for backend in ("auto", "cpu"):
            with pytest.raises(tf.BackendUnavailable, match=rf"TESSERA_FAST_ISA.*{name}"):
                tf.embed(tile, mini, backend=backend)


def test_forced_threads(tile, mini, monkeypatch, values):
    for text in ("2", "1"):
        monkeypatch.setenv("TESSERA_FAST_THREADS", text)
        np.testing.assert_array_equal(tf.embed(tile, mini), values)
    for text in ("many", "0", "-1", "1.5", "²"):
        monkeypatch.setenv("TESSERA_FAST_THREADS", text)
        with pytest.raises(tf.InputError, match="TESSERA_FAST_THREADS: expected a whole"):
            tf.embed(tile, mini)


@pytest.mark.parametrize("shared", [True, False])
def test_two_threads(shared, tile, mini, values):
    """With one model, whose calls take turns, and with a model each."""
    other = synthetic_tile(10, 8, seed=5)
    tiles = [tile, other]
    expected = [values, tf.embed(other, mini)]
    models = [tf.load_model(mini, threads=1) for _ in range(1 if shared else 2)]
    errors, start = [], threading.Barrier(2)

    def work(i):
        try:
            start.wait()
            for n in range(8):
                which = (i + n) % 2
                got = tf.embed(tiles[which], models[0 if shared else i])
                np.testing.assert_array_equal(got, expected[which])
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []


def test_import_is_light():
    """numpy alone, until something needs more."""
    code = (
        "import sys; import tessera_fast as tf; "
        "heavy = {'torch', 'zarr', 'pyproj', 'xarray', 'rasterio', 'tqdm', 'huggingface_hub'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PACKAGE), "PATH": str(Path(sys.executable).parent)},
    )
    assert done.stdout == "[]\n"
