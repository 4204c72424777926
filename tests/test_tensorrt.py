"""The tensorrt back end without a GPU: its batches in ONNX Runtime, its cache, its refusals."""

import json
import threading

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import tessera_fast as tf
from golden_cases import CASES, MODEL_INPUT, MODELS, golden_observations, golden_weights
from oracle import assert_golden, assert_reduced
from tessera_fast import backends
from tessera_fast.backends.base import Plan
from tessera_fast.backends.tensorrt import (
    EMULATED,
    adapter,
    encoder,
    engines,
    lanes,
    precision_of,
    tensorrt,
)
from tessera_fast.errors import BackendUnavailable, InputError
from tessera_fast.exports.calibrate import Calibration, synthetic_calibration
from tessera_fast.exports.feeds import bins
from tessera_fast.exports.folder import read_manifest
from tessera_fast.exports.form import PRECISIONS, Form
from tessera_fast.exports.repository import write_repository
from tessera_fast.packing import pack
from tessera_fast.spec import RELEASED, released
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.weights.load import untrained_weights

SMALL = [stem for stem, spec in MODELS.items() if spec.d_model <= 144]


def load(stem, precision="fp32"):
    return tensorrt.load(MODELS[stem], golden_weights(stem), Plan(precision, EMULATED))


def encode(loaded, s2, s1, width=None):
    out = np.full((s2.pixels, width or loaded._spec.saved_dim), np.nan, np.float32)
    loaded.encode(s2, s1, out)
    return out


@pytest.mark.parametrize("stem", [*SMALL, "v1_0_qat"])
def test_fp32_is_the_official_output(stem):
    loaded = load(stem)
    for case in [c for c in CASES if c.stem == stem]:
        tokens = case.model_input() if case.input == MODEL_INPUT else pack(
            case.observations(), case.spec)[:2]  # fmt: skip
        out, observed = encode(loaded, *tokens), case.compared()
        assert_golden(out[observed], case.expected("f32")[observed])
        assert np.isnan(out[~observed]).all()


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_reduced_precisions_through_the_public_call(precision):
    tile = synthetic_tile(8, 9)
    plain = tf.embed(tile, "v2-nano", weights="untrained", precision="fp32", backend="cpu")
    with tf.load_model("v2-nano", EMULATED, weights="untrained", backend="tensorrt",
                       precision=precision) as model:  # fmt: skip
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
        (Plan("tf32"), "runs fp32, fp16, bf16, int8, fp8, not tf32"),
        (Plan("fp16", "cpu"), "runs on device cuda or cuda:N, not 'cpu'"),
        (Plan("fp16", "cuda:x"), "not 'cuda:x'"),
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
    assert "no TensorRT is installed" in tensorrt.why_not(released("v2-nano"), Plan())
    monkeypatch.setattr(adapter, "installed", lambda: FakePackage())
    assert "torch finds no GPU" in tensorrt.why_not(released("v2-nano"), Plan())


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
    reason = tensorrt.why_not(released("v2-nano"), Plan(precision))
    assert reason is None if message is None else message in reason
    assert "cuda:1 was asked for" in tensorrt.why_not(released("v2-nano"), Plan("fp16", "cuda:1"))


def test_auto_is_not_tensorrt_and_its_own_auto_is_sixteen_bits():
    assert "tensorrt" in backends.BEST_FIRST and "tensorrt" not in backends.AUTOMATIC
    for name, spec in RELEASED.items():
        assert precision_of(spec, Plan()) == ("bf16" if name == "v2-teacher" else "fp16")


# ---- the cache


class FakePackage:
    name, version, builds_without_gpu, module = "tensorrt_rtx", "1.7", True, None


class FakeEngine:
    def __init__(self, package, plan):
        self.plan, self.refitted = plan, []

    def refit(self, onnx):
        self.refitted.append(onnx.name)


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """Names of the graphs that were built; the cache and the folder of engines below tmp_path."""
    built = []

    def build(package, onnx, profiles, **options):
        built.append((onnx.name, options["targets"]))
        return f"{onnx.name}, {len(built)}".encode()

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(engines, "Engine", FakeEngine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TESSERA_FAST_ENGINES", str(tmp_path / "engines"))
    return built


def get(weights, form=None, capability="8.9", device="A card"):
    return engines.engines(
        weights, form or Form("fp16", "dense"), FakePackage(), capability, device
    )


def write(weights, folder, form=None, **options):
    folder.mkdir(parents=True)
    form = form or Form("fp16", "dense")
    engines.write_engines(weights, form, FakePackage(), folder, **options)


def test_engines_are_built_once_and_kept(builds, tmp_path):
    weights = golden_weights("v2_qknorm")
    first, where = get(weights)
    assert [name for name, _ in builds] == ["s2_encoder.onnx", "s1_encoder.onnx", "head.onnx"]
    assert where.parent == tmp_path / "cache" / "tessera_fast" / "engines"
    second, again = get(weights)
    assert len(builds) == 3 and again == where
    assert {p: e.plan for p, e in first.items()} == {p: e.plan for p, e in second.items()}


def test_another_model_form_or_card_is_another_engine(builds):
    spec = MODELS["v2_qknorm"]
    folders = {get(untrained_weights(spec, 1))[1]}
    folders.add(get(untrained_weights(spec, 2))[1])
    folders.add(get(untrained_weights(spec, 1), Form("bf16", "dense"))[1])
    folders.add(get(untrained_weights(spec, 1), device="Another card")[1])
    assert len(folders) == 4 and len(builds) == 12


def test_engines_made_elsewhere_are_found(builds, tmp_path):
    weights = golden_weights("v2_qknorm")
    write(weights, tmp_path / "engines" / "mine", targets=("8.6", "8.9"))
    built = len(builds)
    assert get(weights, capability="8.6")[1] == tmp_path / "engines" / "mine"
    assert len(builds) == built
    get(weights, capability="12.0")  # not a target of theirs
    assert len(builds) == built + 3


def test_refittable_engines_take_other_parameters(builds, tmp_path):
    spec = MODELS["v2_qknorm"]
    one, other = untrained_weights(spec, 1), untrained_weights(spec, 2)
    write(one, tmp_path / "engines" / "one", device="A card", refittable=True)
    built = len(builds)
    same, _ = get(one)
    assert all(engine.refitted == [] for engine in same.values())
    changed, _ = get(other)
    assert len(builds) == built
    assert {p: e.refitted for p, e in changed.items()} == {p: [f"{p}.onnx"] for p in changed}


def test_quantised_engines_are_not_refitted(builds, tmp_path):
    """Their scales are no parameters: other weights would run with the ranges of the first."""
    spec, form = MODELS["v2_qknorm"], Form("int8", "dense")
    one, other = untrained_weights(spec, 1), untrained_weights(spec, 2)
    calibration = Calibration("a tile", synthetic_calibration(one, "int8").ranges)
    write(one, tmp_path / "engines" / "one", form, device="A card", refittable=True,
          calibration=calibration)  # fmt: skip
    assert get(one, form)[1] == tmp_path / "engines" / "one"
    built = len(builds)
    _, where = get(other, form)
    assert len(builds) == built + 3
    assert read_manifest(where)["calibration"]["source"] == "synthetic tile"


def test_a_damaged_engine_is_named(builds):
    weights = golden_weights("v2_qknorm")
    _, where = get(weights)
    (where / "head.engine").write_bytes(b"rubbish")
    with pytest.raises(BackendUnavailable, match=r"head.engine: its sha256 is not the manifest's"):
        get(weights)


def test_a_failed_build_leaves_no_folder(builds, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise BackendUnavailable("cannot build")

    monkeypatch.setattr(engines, "build", refuse)
    with pytest.raises(BackendUnavailable, match="cannot build"):
        get(golden_weights("v2_qknorm"))
    assert list((tmp_path / "cache" / "tessera_fast" / "engines").iterdir()) == []


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (Form("fp16"), {}, "engines are of the dense layout"),
        (Form("fp8", "dense"), {"targets": ("8.6",)}, "fp8 needs compute capability 8.9"),
        (Form("fp16", "dense"), {"targets": ("8.6",), "refittable": True}, "on the GPU that runs"),
    ],
)
def test_engines_that_cannot_be(form, options, message, builds, tmp_path):
    with pytest.raises(InputError, match=message):
        write(golden_weights("v2_qknorm"), tmp_path / "x", form, **options)
    assert builds == []


# ---- on a GPU


@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stem", SMALL)
def test_engines_on_a_gpu(stem, precision, graphs, monkeypatch, tmp_path):
    """Built, cached and run here; a second encode replays what the first captured."""
    reason = tensorrt.why_not(MODELS[stem], Plan(precision))
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TESSERA_FAST_TENSORRT_GRAPHS", graphs)
    monkeypatch.setattr(lanes, "batch_pixels", lambda length: 2)
    monkeypatch.setattr(encoder, "batch_pixels", lambda length: 2)
    loaded = tensorrt.load(MODELS[stem], golden_weights(stem), Plan(precision))
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


# ---- real engines, built without a GPU

RTX = adapter.installed("tensorrt_rtx")
needs_rtx = pytest.mark.skipif(RTX is None, reason="tensorrt-rtx is not installed")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
@pytest.mark.parametrize("model", ["v2-nano", "v2-small"])
def test_engines_build_for_cards_that_are_not_here(model, precision, tmp_path):
    """For compute capabilities 8.6 (not fp8, which it lacks), 8.9 and 12.0."""
    targets = ["8.9", "12.0"] if precision == "fp8" else ["8.6", "8.9", "12.0"]
    path = tf.export(model, tmp_path / "x", weights="untrained", format="tensorrt",
                     precision=precision, targets=targets)  # fmt: skip
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["engines"]["targets"] == targets
    for graph in manifest["graphs"].values():
        plan = (path / graph["engine"]).read_bytes()
        assert len(plan) > (path / graph["file"]).stat().st_size / 2


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("stem", ["v2_qknorm", "v1_1_mini_aws", "v2_teacher_mini"])
def test_engines_of_every_kind_of_model_build(stem, precision, tmp_path):
    """QK-norm, a recurrence, pre-norm with fusion layers: what TensorRT-RTX can trip over."""
    form = Form(precision, "dense")
    weights = golden_weights(stem)
    calibration = synthetic_calibration(weights, precision) if form.quantized else None
    engines.write_engines(weights, form, RTX, tmp_path, targets=("8.9",), calibration=calibration)
    assert all((tmp_path / f"{part}.engine").stat().st_size for part in
               ("s2_encoder", "s1_encoder", "head"))  # fmt: skip


@needs_rtx
def test_an_unknown_target_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"builds for 7\.5, .*, got 9\.0"):
        tf.export("v2-nano", tmp_path / "y", weights="untrained", format="tensorrt",
                  targets=["9.0"])  # fmt: skip
    assert not (tmp_path / "y").exists()


@needs_rtx
def test_what_tensorrt_refuses_comes_with_its_words(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendUnavailable, match=r"tensorrt_rtx .* cannot read .*x\.onnx"):
        adapter.build(RTX, tmp_path / "x.onnx", [], targets=("8.9",))


@needs_rtx
def test_rtx_engines_are_not_for_the_inference_server(tmp_path):
    path = tf.export("v2-nano", tmp_path / "x", weights="untrained", format="tensorrt",
                     targets=["8.9"])  # fmt: skip
    with pytest.raises(InputError, match="runs engines of tensorrt, not of tensorrt_rtx"):
        write_repository(path, tmp_path / "models")
