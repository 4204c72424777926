"""The tensorrt back end without a GPU: its batches in ONNX Runtime, its cache, its refusals."""

import threading

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import tessera_fast as tf
from fake_tensorrt import FakePackage
from golden_cases import CASES, MODEL_INPUT, MODELS, golden_observations, golden_weights
from oracle import assert_golden, assert_reduced
from tessera_fast import backends
from tessera_fast.backends.base import RunOptions
from tessera_fast.backends.tensorrt import adapter, encoder, engines, lanes, precision_of, tensorrt
from tessera_fast.backends.tensorrt.device import EMULATED
from tessera_fast.errors import BackendUnavailable, InputError
from tessera_fast.exports.feeds import bins
from tessera_fast.exports.form import PRECISIONS
from tessera_fast.packing import pack
from tessera_fast.spec import RELEASED, released
from tessera_fast.synthetic import synthetic_tile

SMALL = [stem for stem, spec in MODELS.items() if spec.d_model <= 144]


def load(stem, precision="fp32"):
    return tensorrt.load(MODELS[stem], golden_weights(stem), RunOptions(precision, EMULATED))


def encode(loaded, s2, s1, width=None):
    out = np.full((s2.pixels, width or loaded._spec.saved_dim), np.nan, np.float32)
    loaded.encode(s2, s1, out)
    return out


@pytest.mark.parametrize("stem", [*SMALL, "v1_0_qat"])
def test_fp32_is_the_official_output(stem):
    loaded = load(stem)
    for case in [c for c in CASES if c.stem == stem]:
        tokens = (
            case.model_input()
            if case.input == MODEL_INPUT
            else pack(case.observations(), case.spec)[:2]
        )
        out, observed = encode(loaded, *tokens), case.compared()
        assert_golden(out[observed], case.expected("f32")[observed])
        assert np.isnan(out[~observed]).all()


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_reduced_precisions_through_the_public_call(precision):
    tile = synthetic_tile(8, 9)
    plain = tf.embed(tile, "v2-nano", weights="untrained", precision="fp32", backend="cpu")
    with tf.load_model(
        "v2-nano", EMULATED, weights="untrained", backend="tensorrt", precision=precision
    ) as model:
        assert (model.backend, model.precision, model.device) == ("tensorrt", precision, EMULATED)
        facts = model.provenance()
        assert ("calibration" in facts) == (precision != "fp16") and "onnxruntime" in facts
        got = tf.embed(tile, model)
    seen = np.isfinite(plain).all(-1)
    assert (np.isfinite(got).all(-1) == seen).all()
    assert_reduced(got[seen], plain[seen], "bf16" if precision == "fp16" else precision)


def test_chunks_batches_and_prefixes_change_nothing(monkeypatch):
    """Small chunks and batches of few slots give what one batch a length gives."""
    loaded = load("v2_nano")
    s2, s1, _ = pack(golden_observations("tile"), MODELS["v2_nano"])
    whole = encode(loaded, s2, s1)
    monkeypatch.setattr(encoder, "_CHUNK_PIXELS", 7)
    monkeypatch.setattr(encoder, "HEAD_PIXELS", 3)
    monkeypatch.setattr(encoder, "batch_pixels", lambda length: 2)
    done = []
    out = np.full((s2.pixels, 32), np.nan, np.float32)
    loaded.encode(s2, s1, out, done.append)
    observed = np.isfinite(whole).all(axis=1)
    assert_golden(out[observed], whole[observed, :32])
    assert (np.isnan(out).all(axis=1) == ~observed).all()
    assert done == [*range(7, s2.pixels, 7), s2.pixels]


def test_threads_take_turns():
    loaded = load("v2_qknorm")
    s2, s1, _ = pack(golden_observations("tile"), MODELS["v2_qknorm"])
    expected = encode(loaded, s2, s1)
    got: dict[int, np.ndarray] = {}

    def work(i):
        got[i] = encode(loaded, s2, s1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(np.array_equal(out, expected, equal_nan=True) for out in got.values())


def test_wrong_arguments_are_refused():
    loaded = load("v1_1_mini_aws")
    observations = golden_observations("tile")
    s2, s1, _ = pack(observations, MODELS["v1_1_mini_aws"])
    with pytest.raises(InputError, match=r"out: expected \(\d+, 1\.\.16\) for .* got \(\d+, 500\)"):
        loaded.encode(s2, s1, np.empty((s2.pixels, 500), np.float32))
    plain = pack(observations, MODELS["v2_nano"])
    with pytest.raises(InputError, match="got tokens without steps"):
        encode(loaded, *plain[:2])
    part = pack(observations.rows(0, 1), MODELS["v1_1_mini_aws"])
    with pytest.raises(InputError, match="as many Sentinel-1 as Sentinel-2 pixels"):
        encode(loaded, s2, part[1])


# ---- bins


@pytest.mark.parametrize("stem", ["v2_nano", "v1_1_mini_aws"])
@pytest.mark.parametrize("window", ["tile", "long"])
def test_bins_are_the_models_own_sequences(stem, window):
    """Multiples of 8 up to 256; every pixel once; tokens as often as padding repeats them."""
    spec = MODELS[stem]
    for tokens in pack(golden_observations(window), spec)[:2]:
        seen = []
        for pixels, inputs in bins(spec, tokens, engines.batch_pixels):
            length = inputs["doy"].shape[1]
            assert length % 8 == 0 and length <= 256
            assert len(pixels) <= engines.batch_pixels(length)
            for pixel, days in zip(pixels, inputs["doy"], strict=True):
                own = slice(*tokens.offsets[pixel : pixel + 2])
                repeated = np.repeat(tokens.doy[own], tokens.multiplicity[own])
                assert np.array_equal(np.sort(days), np.sort(repeated))
            seen += pixels.tolist()
        assert sorted(seen) == np.flatnonzero(np.diff(tokens.offsets)).tolist()


def test_profiles_cover_every_length_and_no_batch_outgrows_the_buffers():
    spec = released("v2-nano")
    for length in range(1, 257):
        group = engines.group_of(length)
        size = engines.batch_pixels(length)
        assert size >= 1 and size * length <= engines.BATCH_SLOTS
        for part in ("s2_encoder", "s1_encoder"):
            for least, _, most in engines.profiles(spec, part)[group].values():
                assert least[1] <= length <= most[1] and size == most[0]


# ---- refusals


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (RunOptions("tf32"), "runs fp32, fp16, bf16, int8, fp8, not tf32"),
        (RunOptions("fp16", "cpu"), "runs on device cuda or cuda:N, not 'cpu'"),
        (RunOptions("fp16", "cuda:x"), "not 'cuda:x'"),
    ],
)
def test_why_not(plan, message):
    reason = tensorrt.why_not(released("v2-nano"), plan)
    assert reason is not None and message in reason
    with pytest.raises(BackendUnavailable, match="back end tensorrt: "):
        tensorrt.load(released("v2-nano"), None, plan)


def test_why_not_without_a_gpu_or_a_package(monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(adapter, "installed", lambda: None)
    assert "no TensorRT is installed" in tensorrt.why_not(released("v2-nano"), RunOptions())
    monkeypatch.setattr(adapter, "installed", lambda: FakePackage())
    assert "torch finds no GPU" in tensorrt.why_not(released("v2-nano"), RunOptions())


@pytest.mark.parametrize(
    ("capability", "precision", "message"),
    [
        ((9, 0), "fp16", "builds for 8.6, 8.9, 12.0: install tensorrt instead"),
        ((7, 5), "bf16", "has compute capability 7.5, and bf16 needs 8.0"),
        ((8, 6), "fp8", "and fp8 needs 8.9"),
        ((8, 9), "fp8", None),
    ],
)
def test_why_not_on_a_gpu(capability, precision, message, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A card")
    monkeypatch.setattr(adapter, "installed", lambda: FakePackage())
    monkeypatch.setattr(adapter, "capabilities", lambda package: ["8.6", "8.9", "12.0"])
    reason = tensorrt.why_not(released("v2-nano"), RunOptions(precision))
    assert reason is None if message is None else message in reason
    assert "cuda:1 was asked for" in tensorrt.why_not(
        released("v2-nano"), RunOptions("fp16", "cuda:1")
    )


def test_auto_is_not_tensorrt_and_its_own_auto_is_sixteen_bits():
    assert "tensorrt" in backends.BEST_FIRST and "tensorrt" not in backends.AUTOMATIC
    for name, spec in RELEASED.items():
        assert precision_of(spec, RunOptions()) == ("bf16" if name == "v2-teacher" else "fp16")


# ---- on a GPU


@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stem", SMALL)
def test_engines_on_a_gpu(stem, precision, graphs, monkeypatch, tmp_path):
    """Built, cached and run here; a second encode replays what the first captured."""
    reason = tensorrt.why_not(MODELS[stem], RunOptions(precision))
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TESSERA_FAST_TENSORRT_GRAPHS", graphs)
    monkeypatch.setattr(lanes, "batch_pixels", lambda length: 2)
    monkeypatch.setattr(encoder, "batch_pixels", lambda length: 2)
    loaded = tensorrt.load(MODELS[stem], golden_weights(stem), RunOptions(precision))
    got, expected = [], []
    for case in [c for c in CASES if c.stem == stem]:
        tokens = pack(case.observations(), case.spec)[:2]
        out, observed = encode(loaded, *tokens), case.compared()
        assert np.array_equal(out, encode(loaded, *tokens), equal_nan=True)
        got.append(out[observed])
        expected.append(case.expected("f32")[observed])
    values, wanted = np.concatenate(got), np.concatenate(expected)
    if precision == "fp32":
        assert_golden(values, wanted)
    else:
        assert_reduced(values, wanted, "bf16" if precision == "fp16" else precision)
