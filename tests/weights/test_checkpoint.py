"""Files: unsafe, damaged, in other number types or layouts; safetensors."""

import argparse
import datetime
import io
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from checkpoints_alike import same
from official_checkpoints import MINI, arrays, payload, save, save_model
from tessera_fast.errors import InputError, StoreError, WeightsError
from tessera_fast.weights import (
    checkpoint,
    convert,
    load_weights,
    save_safetensors,
    untrained_weights,
)
from tessera_fast.weights.unpickle import unpickle

SPEC = MINI["v2"]
FIRST = "s2_backbone.embedding.0.weight"


# ---- code in a pickle


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "system"), (eval, "eval"), (getattr, "getattr"), (subprocess.call, "call")],
)
def test_a_pickle_that_calls_is_refused_and_not_run(tmp_path, function, named, protocol):
    marker = tmp_path / "ran"
    attack = Calls(function, f"touch {marker}")
    with pytest.raises(WeightsError, match=rf"refuses to run code: .*{named}"):
        unpickle(pickle.dumps({"model": attack}, protocol=protocol))
    assert not marker.exists()


@pytest.mark.parametrize("where", ["state", "beside"])
def test_a_torch_file_that_calls_is_refused_and_not_run(tmp_path, where):
    marker = tmp_path / "ran"
    content = payload(SPEC, arrays(SPEC))
    target = content["model"] if where == "state" else content
    target["extra"] = Calls(os.system, f"touch {marker}")
    path = save(tmp_path / "evil.pt", content)
    with pytest.raises(WeightsError, match=r"evil\.pt: refuses to run code: .*system"):
        load_weights(path)
    assert not marker.exists()


class Plain:
    pass


@pytest.mark.parametrize(
    "code",
    [
        b"cposix\nsystem\n)b.",  # BUILD: would set attributes of a function
        b"(S'x'\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nS'x'\no.",  # OBJ
        b"cposix\nsystem\n)\x81.",  # NEWOBJ
        b"cposix\nsystem\n)}\x92.",  # NEWOBJ_EX
        b"\x82\x01.",  # EXT1: a class registered in this process
        pickle.dumps(Plain(), protocol=2),
    ],
)
def test_other_ways_to_code_are_refused(code):
    with pytest.raises(WeightsError, match="refuses"):
        unpickle(code)


def test_a_name_that_is_not_called_is_inert():
    assert unpickle(pickle.dumps({"f": os.system}, protocol=2))["f"].name.endswith("system")


def test_a_compound_key_is_not_hashed():
    key = ()
    for _ in range(60):  # hashing this would take 2^60 steps
        key = (key, key)
    code = io.BytesIO()
    pickler = pickle._Pickler(code, 2)  # writes the opcodes apart: no dict is built here
    code.write(b"\x80\x02}")
    pickler.proto, pickler.bin = 2, True
    pickler.save(key)
    code.write(b"K\x01s.")
    assert list(unpickle(code.getvalue()).values()) == [1]


def test_plain_data_of_a_training_run_is_ignored(tmp_path):
    torch = pytest.importorskip("torch")
    content = payload(SPEC, arrays(SPEC)) | {
        "loss": np.float64(0.5),
        "steps": np.arange(3),
        "space": argparse.Namespace(lr=1e-3),
        "folder": pathlib.PurePosixPath("/x"),
        "when": datetime.datetime(2025, 1, 1),
        "sets": [{1, 2}, frozenset([3])],
        "bytes": b"ab",
        "big": 1 << 80,
        "none": None,
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "size": torch.Size([2]),
        "ints": torch.arange(4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    for protocol in (2, 4, 5):
        path = save(tmp_path / "run.pt", content, pickle_protocol=protocol)
        same(load_weights(path).tensors, arrays(SPEC))


def test_a_state_dict_of_a_module(tmp_path):
    torch = pytest.importorskip("torch")
    content = torch.nn.Sequential(torch.nn.Linear(3, 2)).state_dict()  # carries _metadata
    file = checkpoint.read(save(tmp_path / "module.pt", content))
    np.testing.assert_array_equal(file.tensors["0.weight"].read(), content["0.weight"].numpy())


def test_reading_needs_no_torch(tmp_path):
    path = save_model(tmp_path / "model.pt", SPEC)
    code = (
        "import sys; from tessera_fast.weights import load_weights; "
        f"load_weights({str(path)!r}); "
        "print([m for m in ('torch', 'safetensors', 'huggingface_hub') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ---- damaged files


def test_every_truncation_is_an_error(tmp_path):
    whole = save_model(tmp_path / "whole.pt", SPEC).read_bytes()
    cut = tmp_path / "cut.pt"
    for n in [0, 1, 3, 4, 29, 30, 100, *range(200, len(whole), len(whole) // 40), len(whole) - 1]:
        cut.write_bytes(whole[:n])
        with pytest.raises(WeightsError, match=r"cut\.pt: "):
            load_weights(cut)


def test_flipped_bytes_raise_weights_error_or_load(tmp_path):
    whole = save_model(tmp_path / "whole.pt", SPEC).read_bytes()
    start = whole.index(b"data.pkl")
    spots = [*range(start, start + 1500, 7), *range(len(whole) - 1500, len(whole), 7)]
    cut = tmp_path / "flip.pt"
    refused = 0
    for spot in spots:
        cut.write_bytes(whole[:spot] + bytes([whole[spot] ^ 0xFF]) + whole[spot + 1 :])
        try:
            load_weights(cut)
        except WeightsError:
            refused += 1
    assert refused > len(spots) // 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<html>not found</html>", "of something else"),
        (b"", "got 0 bytes"),
        (pickle.dumps({"model": {}}), "bare pickle or a file of torch < 1.6"),
    ],
)
def test_what_is_not_a_checkpoint(tmp_path, content, message):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_old_torch_format(tmp_path):
    path = save(
        tmp_path / "old.pt", payload(SPEC, arrays(SPEC)), _use_new_zipfile_serialization=False
    )
    with pytest.raises(WeightsError, match=r"torch < 1\.6"):
        load_weights(path)


def test_absent_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"no\.pt: cannot be read: No such file"):
        load_weights(tmp_path / "no.pt")
    with pytest.raises(WeightsError, match="cannot be read: not a regular file"):
        load_weights(tmp_path)


def repack(source, target, change, compression=zipfile.ZIP_STORED):
    """Copy a zip; ``change(name, data)`` gives new data, or None to leave the entry out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            data = change(info.filename.split("/", 1)[1], old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return target


def test_storages_that_are_absent_or_short(tmp_path):
    path = save_model(tmp_path / "whole.pt", SPEC)
    gone = repack(path, tmp_path / "a.pt", lambda n, d: None if n == "data/0" else d)
    with pytest.raises(WeightsError, match=rf"{FIRST}: its storage is not in the file"):
        load_weights(gone)
    short = repack(path, tmp_path / "b.pt", lambda n, d: d[:-4] if n == "data/0" else d)
    with pytest.raises(WeightsError, match=rf"{FIRST}: needs 1920 bytes of a storage of 1916"):
        load_weights(short)
    big = repack(path, tmp_path / "c.pt", lambda n, d: b"big" if n == "byteorder" else d)
    with pytest.raises(WeightsError, match="little-endian"):
        load_weights(big)
    packed = repack(path, tmp_path / "d.pt", lambda n, d: d, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        load_weights(packed)
    none = repack(path, tmp_path / "e.pt", lambda n, d: None if n == "data.pkl" else d)
    with pytest.raises(WeightsError, match=r"one data\.pkl"):
        load_weights(none)


# ---- number types and layouts


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_become_float32(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    tensors = {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in arrays(SPEC).items()}
    loaded = load_weights(save_model(tmp_path / "x.pt", SPEC, tensors))
    same(loaded.tensors, {k: v.float().numpy() for k, v in tensors.items()})


def test_views_of_shared_storages(tmp_path):
    torch = pytest.importorskip("torch")
    want = arrays(SPEC)
    pool = torch.from_numpy(np.concatenate([np.zeros(5, "f4"), *map(np.ravel, want.values())]))
    tensors, start = {}, 5
    for name, array in want.items():  # slices of one storage, each at its own offset
        tensors[name] = pool[start : start + array.size].view(array.shape)
        start += array.size
    tensors[FIRST] = torch.from_numpy(np.ascontiguousarray(want[FIRST].T)).T
    same(load_weights(save_model(tmp_path / "x.pt", SPEC, tensors)).tensors, want)


def test_float32_tensors_are_views_of_the_file(tmp_path):
    tensor = load_weights(save_model(tmp_path / "x.pt", SPEC)).tensors[FIRST]
    assert not tensor.flags.owndata and not tensor.flags.writeable


def test_an_expanded_tensor_cannot_ask_for_more_than_the_file(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = arrays(SPEC) | {FIRST: torch.zeros(1, 1).expand(48, 10)}
    with pytest.raises(WeightsError, match=rf"{FIRST}: needs 1920 bytes of a storage of 4"):
        load_weights(save_model(tmp_path / "x.pt", SPEC, tensors))


# ---- safetensors


def test_convert_round_trip(tmp_path):
    for name, spec in MINI.items():
        source = save_model(tmp_path / f"{name}.pt", spec)
        target = tmp_path / f"{name}.safetensors"
        convert(source, target)
        loaded = load_weights(target)
        assert loaded.spec == load_weights(source).spec == spec
        same(loaded.tensors, arrays(spec))
        assert loaded.sha256 == checkpoint.digest(target) != checkpoint.digest(source)
        metadata = checkpoint.read(target).metadata
        assert metadata["tessera_fast.source"] == f"{name}.pt"
        assert metadata["tessera_fast.source_sha256"] == checkpoint.digest(source)
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_untrained_stays_labelled_through_files(tmp_path):
    weights = untrained_weights(SPEC, 5)
    for path in (tmp_path / "first.safetensors", tmp_path / "second.safetensors"):
        save_safetensors(path, weights)
        weights = load_weights(path)
        assert not weights.trained and weights.source == f"untrained:5 in {path}"


def test_the_safetensors_library_reads_and_writes_the_same(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    save_safetensors(tmp_path / "ours.safetensors", untrained_weights(SPEC, 3))
    theirs = library.load_file(tmp_path / "ours.safetensors")
    same({name: theirs[name] for name in arrays(SPEC)}, arrays(SPEC))
    spec = MINI["v2-teacher"]  # without our metadata: recognised from the shapes
    library.save_file(arrays(spec), tmp_path / "theirs.safetensors")
    loaded = load_weights(tmp_path / "theirs.safetensors")
    assert loaded.spec == spec
    same(loaded.tensors, arrays(spec))


def test_bfloat16_is_the_nearest_and_takes_half(tmp_path):
    torch = pytest.importorskip("torch")
    weights = untrained_weights(SPEC, 3)
    for dtype in ("float32", "bfloat16"):
        save_safetensors(tmp_path / f"{dtype}.safetensors", weights, dtype=dtype, name="other")
    rounded = load_weights(tmp_path / "bfloat16.safetensors")
    assert rounded.spec == replace(SPEC, name="other")
    want = {n: torch.from_numpy(a).bfloat16().float().numpy() for n, a in arrays(SPEC, 3).items()}
    same(rounded.tensors, want)
    sizes = [(tmp_path / f"{d}.safetensors").stat().st_size for d in ("bfloat16", "float32")]
    values = sum(a.size for a in arrays(SPEC).values())
    assert sizes[1] - sizes[0] > 1.9 * values
    with pytest.raises(InputError, match="expected float32, bfloat16, got 'int8'"):
        save_safetensors(tmp_path / "x.safetensors", weights, dtype="int8")
    with pytest.raises(InputError, match="no other model has, got 'v2-nano'"):
        save_safetensors(tmp_path / "x.safetensors", weights, name="v2-nano")
    assert not (tmp_path / "x.safetensors").exists()


def test_nothing_is_overwritten_or_half_written(tmp_path, monkeypatch):
    weights = untrained_weights(SPEC)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(StoreError, match="exists"):
        save_safetensors(path, weights)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "disk is full")))
        with pytest.raises(StoreError, match="disk is full"):
            save_safetensors(path, weights, overwrite=True)
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == ["x.safetensors"]
    save_safetensors(path, weights, overwrite=True)
    same(load_weights(path).tensors, arrays(SPEC, 1))
    with pytest.raises(StoreError, match="cannot be written"):
        save_safetensors(tmp_path / "no" / "x.safetensors", weights)


def test_malformed_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, untrained_weights(SPEC))
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length]
    for data, message in [
        (whole[:-1], "truncated"),
        (whole + b"x", "expected .* bytes of values"),
        (whole[:100], "truncated: the header needs"),
        (whole.replace(b'"F32"', b'"F99"', 1), "header is malformed"),
        (whole.replace(b'"shape"', b'"shame"', 1), "header is malformed"),
        (whole.replace(b"[48,10]", b"[48,11]", 1), "do not hold"),
        (whole.replace(b'data_offsets":[0', b'data_offsets":[9', 1), "header is malformed"),
        (whole[:8] + header.replace(b"{", b"[", 1) + whole[8 + length :], "something else"),
        (
            whole.replace(b'\\"v2-custom\\"', b'\\"v2-medium\\"', 1),
            "not v2-medium: expected d_model",
        ),
        (whole.replace(b'\\"d_model\\": 48', b'\\"d_model\\": 4x', 1), "spec is malformed"),
        (whole.replace(b'sampling\\": \\"v2', b'sampling\\": \\"v9', 1), "v1.0, got 'v9'"),
    ]:
        assert data != whole
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=message):
            load_weights(path)
