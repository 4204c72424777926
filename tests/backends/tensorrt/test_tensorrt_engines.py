"""Engines of the tensorrt back end: the folders they are kept in, and real ones."""

import json

import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("torch", reason="torch is not installed")

import tessera_fast as tf
from fake_tensorrt import FakePackage
from golden_cases import MODELS, golden_weights
from tessera_fast.backends.tensorrt import adapter, engines
from tessera_fast.errors import BackendUnavailable, InputError
from tessera_fast.exports.calibrate import ActivationRanges, synthetic_calibration
from tessera_fast.exports.folder import read_manifest
from tessera_fast.exports.form import Form
from tessera_fast.exports.repository import write_repository
from tessera_fast.weights.load import untrained_weights


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
    calibration = ActivationRanges("a tile", synthetic_calibration(one, "int8").ranges)
    write(
        one,
        tmp_path / "engines" / "one",
        form,
        device="A card",
        refittable=True,
        calibration=calibration,
    )
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


# ---- real engines, built without a GPU

RTX = adapter.installed("tensorrt_rtx")
needs_rtx = pytest.mark.skipif(RTX is None, reason="tensorrt-rtx is not installed")


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp8"])
@pytest.mark.parametrize("model", ["v2-nano", "v2-small"])
def test_engines_build_for_cards_that_are_not_here(model, precision, tmp_path):
    """For compute capabilities 8.6 (not fp8, which it lacks), 8.9 and 12.0."""
    targets = ["8.9", "12.0"] if precision == "fp8" else ["8.6", "8.9", "12.0"]
    path = tf.export(
        model,
        tmp_path / "x",
        weights="untrained",
        format="tensorrt",
        precision=precision,
        targets=targets,
    )
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
    assert all(
        (tmp_path / f"{part}.engine").stat().st_size
        for part in ("s2_encoder", "s1_encoder", "head")
    )


@needs_rtx
def test_an_unknown_target_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"builds for 7\.5, .*, got 9\.0"):
        tf.export(
            "v2-nano", tmp_path / "y", weights="untrained", format="tensorrt", targets=["9.0"]
        )
    assert not (tmp_path / "y").exists()


@needs_rtx
def test_what_tensorrt_refuses_comes_with_its_words(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendUnavailable, match=r"tensorrt_rtx .* cannot read .*x\.onnx"):
        adapter.build(RTX, tmp_path / "x.onnx", [], targets=("8.9",))


@needs_rtx
def test_rtx_engines_are_not_for_the_inference_server(tmp_path):
    path = tf.export(
        "v2-nano", tmp_path / "x", weights="untrained", format="tensorrt", targets=["8.9"]
    )
    with pytest.raises(InputError, match="runs engines of tensorrt, not of tensorrt_rtx"):
        write_repository(path, tmp_path / "models")
