"""Model repositories of Triton Inference Server: what the server would read."""

import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")

import tessera_fast as tf
from fake_tiles import listing
from tessera_fast.errors import InputError, StoreError
from tessera_fast.exports.repository import write_repository

MODELS = ("tessera-v2-nano", "tessera-v2-nano_s2", "tessera-v2-nano_s1", "tessera-v2-nano_head")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "nano"
    return tf.export("v2-nano", out, weights="untrained", int8_output=True)


def configuration(folder):
    """config.pbtxt as the server's own protobuf message."""
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def tensors(values):
    from tritonclient.grpc import model_config_pb2

    return {v.name: (model_config_pb2.DataType.Name(v.data_type), list(v.dims)) for v in values}


def test_the_server_reads_models_and_their_ensemble(exported, tmp_path):
    repository = write_repository(exported, tmp_path / "models", max_batch=64)
    assert {p.name for p in repository.iterdir()} == set(MODELS)
    found = {name: configuration(repository / name) for name in MODELS}
    for name, config in found.items():
        assert config.name == name and config.max_batch_size == 64
        assert (repository / name / "1").is_dir()
    s1 = found["tessera-v2-nano_s1"]
    assert s1.backend == "onnxruntime" and s1.HasField("dynamic_batching")
    assert tensors(s1.input) == {
        "bands": ("TYPE_INT16", [-1, 2]),
        "doy": ("TYPE_UINT16", [-1]),
        "orbit": ("TYPE_UINT8", [-1]),
        "multiplicity": ("TYPE_UINT16", [-1]),
    }
    assert tensors(s1.output) == {"pooled": ("TYPE_FP32", [144])}
    head = found["tessera-v2-nano_head"]
    assert tensors(head.output) == {"codes": ("TYPE_INT8", [128]), "scales": ("TYPE_FP32", [1])}
    assert [o.HasField("reshape") for o in head.output] == [False, True]


def test_the_ensemble_joins_what_there_is(exported, tmp_path):
    """Every input and output of every step is one of that model, and each is made before use."""
    repository = write_repository(exported, tmp_path / "models")
    ensemble = configuration(repository / MODELS[0])
    known = tensors(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        model = configuration(repository / step.model_name)
        assert (repository / step.model_name / str(step.model_version) / "model.onnx").is_file()
        inputs, outputs = tensors(model.input), tensors(model.output)
        assert set(step.input_map) == set(inputs) and set(step.output_map) == set(outputs)
        for name, value in step.input_map.items():
            assert known[value] == inputs[name]
        known |= {value: outputs[name] for name, value in step.output_map.items()}
    assert all(known[name] == kind for name, kind in tensors(ensemble.output).items())


def test_versions_and_names(exported, tmp_path, run):
    out = tmp_path / "models"
    assert run("model-repository", exported, "-o", out).code == 0
    before = listing(out)
    again = run("model-repository", exported, "-o", out)
    assert again.code == 1 and "exists; give another version" in again.err
    assert listing(out) == before
    second = run("model-repository", exported, "-o", out, "--version", 2, "--cpu")
    assert second.code == 0 and "tessera-v2-nano: version 1, 2" in second.out
    assert "KIND_CPU" in (out / MODELS[1] / "config.pbtxt").read_text()
    assert "model_version: 2" in (out / MODELS[0] / "config.pbtxt").read_text()
    assert run("model-repository", exported, "-o", out, "--name", "farms").code == 0
    assert (out / "farms_head" / "1" / "model.onnx").read_bytes() == (
        exported / "head.onnx"
    ).read_bytes()


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(InputError, match="written by tessera-fast export"):
        write_repository(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_version_elsewhere_in_the_repository_is_not_overwritten(exported, tmp_path):
    (tmp_path / MODELS[3] / "1").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"_head/1: exists"):
        write_repository(exported, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [MODELS[3]]
