"""Exports on disk: manifest, whole or not at all, parameters beside the graph, command line."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import tessera_fast as tf
from fake_tiles import listing
from golden_cases import SHARED, golden_observations, golden_weights
from tessera_fast.errors import InputError, StoreError, WeightsError
from tessera_fast.exports import calibrate, feeds, folder, runtime
from tessera_fast.exports.form import Form
from tessera_fast.packing import pack
from tessera_fast.spec import S2_BANDS, released
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.weights.checkpoint import digest

NANO = {"model": "v2-nano", "weights": "untrained"}
FILES = {"manifest.json", "s2_encoder.onnx", "s1_encoder.onnx", "head.onnx"}


def manifest_of(path):
    return json.loads((path / "manifest.json").read_text())


def embed(path, s2, s1):
    """The embeddings of packed tokens through the files alone, as the manifest names them."""
    graphs = manifest_of(path)["graphs"]
    run = {part: runtime.session(path / graph["file"]) for part, graph in graphs.items()}
    pooled = {
        s: run[f"{s}_encoder"].run(None, feeds.slots(t, 0, t.pixels))[0]
        for s, t in (("s2", s2), ("s1", s1))
    }
    return run["head"].run(None, pooled)[0]


@pytest.mark.parametrize("layout", ["packed", "dense"])
def test_the_manifest_describes_the_files(layout, tmp_path):
    path = tf.export(**NANO, out=tmp_path / "x", layout=layout, precision="fp16", dims=64)
    assert path == tmp_path / "x" and {p.name for p in path.iterdir()} == FILES
    manifest = manifest_of(path)
    assert manifest["model"] == "v2-nano" and manifest["trained"] is False
    assert manifest["form"] == {
        "precision": "fp16",
        "layout": layout,
        "int8_output": False,
        "dims": 64,
    }
    assert manifest["s2_bands"] == list(S2_BANDS)
    assert manifest["spec"] == json.loads(json.dumps(released("v2-nano").to_json()))
    for graph in manifest["graphs"].values():
        assert graph["sha256"] == digest(path / graph["file"])
        run = runtime.session(path / graph["file"])
        for kind, tensors in (("inputs", run.get_inputs()), ("outputs", run.get_outputs())):
            assert [t["name"] for t in graph[kind]] == [t.name for t in tensors]
            assert [t["shape"] for t in graph[kind]] == [t.shape for t in tensors]
            for described, tensor in zip(graph[kind], tensors, strict=True):
                ours = {"float32": "float"}.get(described["dtype"], described["dtype"])
                assert tensor.type == f"tensor({ours})"
    assert manifest["graphs"]["head"]["outputs"][0]["shape"] == ["P", 64]


def test_two_exports_are_the_same_bytes(tmp_path):
    for name in "ab":
        tf.export(**NANO, out=tmp_path / name, precision="int8")
    assert listing(tmp_path / "a") == listing(tmp_path / "b")


def test_an_export_is_not_replaced_unless_asked(tmp_path):
    out = tmp_path / "deep" / "x"
    tf.export(**NANO, out=out)
    before = listing(out)
    with pytest.raises(StoreError, match="exists; give another folder, or overwrite"):
        tf.export(**NANO, out=out, int8_output=True)
    assert listing(out) == before
    tf.export(**NANO, out=out, int8_output=True, overwrite=True)
    assert manifest_of(out)["form"]["int8_output"] is True
    assert [p.name for p in out.parent.iterdir()] == ["x"]


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("holiday")
    with pytest.raises(StoreError, match=r"holds no manifest\.json"):
        tf.export(**NANO, out=tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "holiday"


def test_a_failed_export_leaves_nothing_or_what_was_there(tmp_path, monkeypatch):
    tf.export(**NANO, out=tmp_path / "x")
    before = listing(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_manifest", full)
    for name in ("x", "new"):
        with pytest.raises(StoreError, match="No space left on device"):
            tf.export(**NANO, out=tmp_path / name, overwrite=True, int8_output=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "onx"}, InputError, "format: expected onnx, tensorrt, got 'onx'"),
        ({"precision": "fp4"}, InputError, "precision: expected fp32, .*, got 'fp4'"),
        ({"layout": "ragged"}, InputError, "layout: expected packed, dense, got 'ragged'"),
        ({"dims": 33}, InputError, "can be cut to 16, 32, 64, 128 dimensions, got 33"),
        ({"targets": ["8.9"]}, InputError, "with format 'tensorrt' alone"),
        ({"refittable": True}, InputError, "with format 'tensorrt' alone"),
        ({"format": "tensorrt", "layout": "packed"}, InputError, "engines take the dense layout"),
        ({"calibration": "tile"}, InputError, "with precision int8 or fp8 alone, got fp32"),
        ({"weights": "absent.pt"}, WeightsError, "absent.pt"),
    ],
)
def test_errors(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        tf.export(**{**NANO, "out": tmp_path / "x", **options})
    assert list(tmp_path.iterdir()) == []


def test_large_parameters_lie_beside_the_graphs(tmp_path, monkeypatch):
    """Of models whose graphs protobuf cannot hold; the same numbers, mapped by the runtime."""
    weights = golden_weights("v2_teacher_mini")
    s2, s1, _ = pack(golden_observations("tile"), weights.spec)
    for name, limit in (("inside", folder._BESIDE), ("beside", 0)):
        monkeypatch.setattr(folder, "_BESIDE", limit)
        (tmp_path / name).mkdir()
        folder.write_onnx(weights, Form(), tmp_path / name)
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    assert {p.name for p in beside.iterdir()} - {p.name for p in inside.iterdir()} == {
        f"{part}.onnx.data" for part in folder.PARTS
    }
    for graph in manifest_of(beside)["graphs"].values():
        assert graph["data_sha256"] == digest(beside / graph["data"])
        assert (beside / graph["file"]).stat().st_size < (beside / graph["data"]).stat().st_size
    assert np.array_equal(embed(inside, s2, s1), embed(beside, s2, s1))


def test_the_teacher_is_too_large_for_a_file_and_no_other_model_is():
    sizes = {n: folder._bytes(released(n)) for n in ("v2-nano", "v1.0", "v2-teacher")}
    assert sizes["v1.0"] < folder._BESIDE < sizes["v2-teacher"]


# ---- calibration


def test_ranges_follow_the_tile():
    """The same tile gives the same ranges, fp8 more room; one for every quantised linear."""
    weights = golden_weights("v2_qknorm")
    tile = synthetic_tile(8, 8).rows(0, 8)

    def ranges(observations):
        return calibrate.calibrated_ranges(weights.spec, weights.tensors, observations, "int8")

    plain = ranges(tile)
    assert plain == ranges(tile) and all(v > 0 for v in plain.values())
    again = calibrate.calibrated_ranges(weights.spec, weights.tensors, tile, "fp8")
    assert again == {name: 4 * value for name, value in plain.items()}
    assert len(plain) == 2 * (2 * 3 + 3 * (3 - 1))


def test_ranges_hold_what_the_model_reads():
    """No input of a quantised product of the calibrating pixels is clipped."""
    weights = golden_weights("v2_qknorm")
    window = synthetic_tile(6, 6).rows(0, 6)
    found = calibrate.calibrated_ranges(weights.spec, weights.tensors, window, "int8")
    s2, _, _ = pack(window, weights.spec)
    largest = calibrate._largest(weights.spec, weights.tensors, "s2", s2)
    assert all(found[name] >= value for name, value in largest.items())


def test_calibration_without_a_stream_is_refused(tmp_path):
    tile = synthetic_tile(6, 6)
    window = tile.rows(0, 6)
    window.s2_masks[:] = 0
    weights = golden_weights("v2_qknorm")
    with pytest.raises(InputError, match="got none of S2; calibrate on another tile"):
        calibrate.calibrated_ranges(weights.spec, weights.tensors, window, "int8")


def test_slots_want_raw_integers():
    case = golden_observations("tile")
    s2, _, _ = pack(case, released("v2-nano"))
    floats = replace(s2, bands=s2.bands.astype(np.float32))
    with pytest.raises(InputError, match="expected raw integers, got float32"):
        feeds.slots(floats, 0, 1)


# ---- command line


def test_export_on_the_command_line(run, tmp_path):
    tile = write_tile(synthetic_tile(8, 8), tmp_path / "farm_2024")
    out = tmp_path / "x"
    done = run(
        "export",
        "v2-nano",
        "--weights",
        "untrained",
        "--precision",
        "int8",
        "--int8-output",
        "--calibrate",
        tile,
        "-o",
        out,
    )
    assert done.code == 0 and {p.name for p in out.iterdir()} == FILES
    assert "head.onnx" in done.out and "exported in" in done.out
    assert manifest_of(out)["form"]["int8_output"] is True
    again = run("export", "v2-nano", "--weights", "untrained", "-o", out)
    assert again.code == 1 and "exists" in again.err
    forced = run("export", "v2-nano", "--weights", "untrained", "-o", out, "--overwrite")
    assert forced.code == 0 and manifest_of(out)["form"]["precision"] == "fp32"


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"{SHARED / 'data'} is absent")
def test_a_tile_of_the_disk_calibrates(tmp_path):
    path = tf.export(
        **NANO, out=tmp_path / "x", precision="fp8", calibration=SHARED / "data" / "flanders_2018"
    )
    recorded = manifest_of(path)["calibration"]
    assert recorded["source"] == "flanders_2018"
    assert (
        recorded["ranges"]
        != calibrate.synthetic_calibration(
            tf.load_model("v2-nano", weights="untrained").weights, "fp8"
        ).ranges
    )
