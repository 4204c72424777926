"""encode_tile and encode_pixels in place of the official functions.

Tests against the official code itself need a checkout of ucam-eo/tessera (commit ef4f0ac) in the
environment variable TESSERA_OFFICIAL, and torch.
"""

import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from conftest import PACKAGE
from golden_cases import MODELS, golden_file, golden_weights
from official_checkpoints import save_model
from oracle import assert_golden, assert_same_codes
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.weights import save_safetensors

STUDENTS = ("v2_nano", "v2_qknorm")
STEMS = (*STUDENTS, "v2_teacher_mini")
ORBITS = {"asc": "sar_ascending", "desc": "sar_descending"}


def checkout() -> Path:
    if not os.environ.get("TESSERA_OFFICIAL"):
        pytest.skip("TESSERA_OFFICIAL is not set to a checkout of ucam-eo/tessera")
    pytest.importorskip("torch")
    return Path(os.environ["TESSERA_OFFICIAL"]) / "tessera_infer_v2"


def official(kind: str):
    """The official package "student" or "teacher", under a name of its own."""
    folder = checkout() / kind
    name = f"official_{kind}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def kind_of(stem: str) -> str:
    return "teacher" if "teacher" in stem else "student"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function of a golden model's name that returns its .pt file."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(stem: str) -> Path:
        path = folder / f"{stem}.pt"
        if not path.exists():
            save_model(path, MODELS[stem], dict(golden_weights(stem).tensors))
        return path

    return make


@pytest.fixture(scope="module", params=STEMS)
def pair(request, checkpoint):
    """The official package and its model on the CPU, and ours, from one checkpoint."""
    torch = pytest.importorskip("torch")
    package = official(kind_of(request.param))
    path = checkpoint(request.param)
    with tf.load_model(path, precision="fp32") as ours:
        yield package, package.load_model(str(path), torch.device("cpu")), ours


def tile_arguments(dtype=np.float32, stem="tile"):
    """The golden tile as keyword arguments; upstream wants floats."""
    data = golden_file(stem)
    out = {"s2_bands": data["bands"].astype(dtype), "s2_doys": data["doys"]}
    out["s2_masks"] = data["masks"]
    for short, name in ORBITS.items():
        out[f"s1_{short}_bands"] = data[name].astype(dtype)
        out[f"s1_{short}_doys"] = data[f"{name}_doy"]
    return out


def observed(arguments) -> np.ndarray:
    """(H, W) or (P,): pixels that upstream gives a value."""
    masks = arguments.get("s2_masks")
    bands = arguments["s2_bands"]
    dates = 0 if bands.ndim == 4 else 1
    seen = np.ones(bands.shape[:-1], bool) if masks is None else np.asarray(masks) != 0
    seen = seen.any(dates)
    for short in ORBITS:
        sar = arguments.get(f"s1_{short}_bands")
        if sar is not None and sar.size:
            seen = seen | (sar != 0).any((dates, -1))
    return seen


def compare(pair, function, arguments, **options):
    import torch

    package, theirs, ours = pair
    expected = getattr(package, function)(
        theirs, **arguments, **options, device=torch.device("cpu"), batch_pixels=64
    )
    got = getattr(tf, function)(
        ours, **arguments, **options, device=torch.device("cpu"), batch_pixels=64
    )
    assert got.dtype == expected.dtype == np.float32 and got.shape == expected.shape
    seen = observed(arguments)
    assert_golden(got[seen], expected[seen])
    assert np.isnan(got[~seen]).all()
    return got


@pytest.mark.parametrize("kind", ["student", "teacher"])
@pytest.mark.parametrize("function", ["encode_tile", "encode_pixels"])
def test_signature(kind, function):
    theirs = inspect.signature(getattr(official(kind), function)).parameters
    ours = inspect.signature(getattr(tf, function)).parameters
    assert set(theirs) <= set(ours)
    count = list(theirs).index("device") + 1  # what follows it differs between their packages
    assert list(ours)[:count] == list(theirs)[:count]
    if kind == "student":
        assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        if name != "device":  # theirs is a GPU; ours is where the model was loaded
            assert ours[name].default == parameter.default, name
    assert next(iter(inspect.signature(official(kind).load_model).parameters)) == "ckpt_path"
    assert list(inspect.signature(tf.load_model).parameters)[:2] == ["model", "device"]


def test_tile(pair):
    arguments = tile_arguments()
    got = compare(pair, "encode_tile", arguments)
    assert (~observed(arguments)).sum() == 1
    package, theirs, ours = pair
    import torch

    order = list(inspect.signature(tf.encode_tile).parameters)[1:8]
    positional = [arguments[name] for name in order]
    np.testing.assert_array_equal(tf.encode_tile(ours, *positional), got)
    expected = package.encode_tile(theirs, *positional, 64, torch.device("cpu"))
    np.testing.assert_array_equal(tf.encode_tile(ours, *positional, 64, torch.device("cpu")), got)
    assert_golden(got[observed(arguments)], expected[observed(arguments)])


def test_long_tile(pair):
    compare(pair, "encode_tile", tile_arguments(stem="long"))


@pytest.mark.parametrize("mask", ["none", "bool", "float", "int64"])
def test_masks(pair, mask):
    arguments = tile_arguments()
    masks = arguments["s2_masks"]
    arguments["s2_masks"] = None if mask == "none" else masks.astype(mask)
    got = compare(pair, "encode_tile", arguments)
    if mask != "none":
        np.testing.assert_array_equal(got, tf.encode_tile(pair[2], **tile_arguments()))


@pytest.mark.parametrize("absent", ["none", "empty", "ascending", "descending"])
def test_absent_orbits(pair, absent):
    arguments = tile_arguments()
    for short, name in ORBITS.items():
        bands, days = f"s1_{short}_bands", f"s1_{short}_doys"
        if absent == "empty":
            arguments[bands], arguments[days] = arguments[bands][:0], arguments[days][:0]
        elif absent == "none" or name.endswith(absent):
            arguments[bands] = arguments[days] = None
    compare(pair, "encode_tile", arguments)


@pytest.mark.parametrize("shared_days", [False, True])
def test_series(pair, shared_days):
    series = dict(golden_file("series"))
    if shared_days:
        for name in ("s2_doys", "s1_asc_doys", "s1_desc_doys"):
            series[name] = series[name][0]
    got = compare(pair, "encode_pixels", series)
    if shared_days:
        spread = {k: v[None].repeat(5, 0) if v.ndim == 1 else v for k, v in series.items()}
        np.testing.assert_array_equal(tf.encode_pixels(pair[2], **spread), got)


def test_padded_series(pair):
    """Series of different lengths, padded with dates of day 0 that are not observed."""
    series = dict(golden_file("series"))
    padding = {"s2": ("s2_bands", "s2_masks", "s2_doys")}
    padding |= {s: (f"s1_{s}_bands", f"s1_{s}_doys") for s in ORBITS}
    padded = dict(series)
    for names in padding.values():
        for name in names:
            a = series[name]
            padded[name] = np.concatenate([a, np.zeros_like(a[:, :3])], axis=1)
    got = compare(pair, "encode_pixels", padded)
    np.testing.assert_array_equal(got, tf.encode_pixels(pair[2], **series))
    for name in ("s2_doys", "s1_asc_doys"):
        wrong = {**padded, name: padded[name].copy()}
        observed_date = np.argwhere(series["s2_masks"][0])[0, 0] if name == "s2_doys" else 0
        wrong[name][0, observed_date] = 0
        with pytest.raises(tf.InputError, match=rf"{name}: expected whole days 1\.\.366, got 0 at"):
            tf.encode_pixels(pair[2], **wrong)


def test_standardized(pair):
    """Given standardised values: where a date is observed is decided by what is given."""
    ours = pair[2]
    arguments = tile_arguments()
    raw = tf.encode_tile(ours, **arguments)
    stats = ours.spec.statistics
    plain = dict(arguments)
    plain["s2_bands"] = scaled(arguments["s2_bands"], stats.s2_mean, stats.s2_std)
    kept = dict(plain)
    for i, short in enumerate(ORBITS):
        name = f"s1_{short}_bands"
        sar = scaled(arguments[name], stats.s1_mean[i], stats.s1_std[i])
        plain[name] = sar
        kept[name] = np.where((arguments[name] != 0).any(-1, keepdims=True), sar, 0)
    compare(pair, "encode_tile", plain, standardize=False)
    compare(pair, "encode_tile", kept, standardize=False)
    seen = observed(arguments)
    got = tf.encode_tile(ours, **kept, standardize=False)
    assert_golden(got[seen], raw[seen])


def scaled(values, mean, std):
    mean, std = np.float32(mean), np.float32(std)
    return ((values - mean) / (std + np.float32(1e-9))).astype(np.float32)


# Without a checkout: against what the official code returned.


@pytest.fixture(scope="module", params=[*STEMS, "v1_1_mini_aws"])
def golden_model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / f"{request.param}.safetensors"
    save_safetensors(path, golden_weights(request.param))
    with tf.load_model(path, device="cpu", precision="fp32") as model:
        yield request.param, model


def test_golden_tile(golden_model):
    stem, model = golden_model
    got = tf.encode_tile(model, **tile_arguments())
    seen = observed(tile_arguments())
    assert_golden(got[seen], golden_file(stem)["tile_f32"][seen])
    assert np.isnan(got[~seen]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int16", "uint16", ">f4"])
def test_any_numeric_type(golden_model, dtype):
    _, model = golden_model
    expected = tf.encode_tile(model, **tile_arguments())
    for days in ("int64", "float32", "uint16"):
        arguments = tile_arguments(dtype)
        for name in arguments:
            if name.endswith("doys"):
                arguments[name] = arguments[name].astype(days)
        np.testing.assert_array_equal(tf.encode_tile(model, **arguments), expected)
    transposed = {
        k: np.asfortranarray(v) if v.ndim == 4 else v for k, v in tile_arguments(dtype).items()
    }
    np.testing.assert_array_equal(tf.encode_tile(model, **transposed), expected)


def test_golden_series(golden_model):
    stem, model = golden_model
    series = golden_file("series")
    got = tf.encode_pixels(model, **series)
    if stem.startswith("v2"):
        assert_golden(got, golden_file(stem)["series_f32"])
    alone = [
        tf.encode_pixels(model, **{k: v[p : p + 1] for k, v in series.items()}) for p in range(5)
    ]
    np.testing.assert_array_equal(np.concatenate(alone), got)
    none = tf.encode_pixels(model, series["s2_bands"][:0], series["s2_doys"][:0])
    assert none.shape == (0, model.repr_dim) and none.dtype == np.float32


def test_tile_equals_pixels_and_embed(golden_model):
    _, model = golden_model
    arguments = tile_arguments("int32")
    tile = tf.encode_tile(model, **arguments)
    H, W = tile.shape[:2]
    series = {
        k: v if v.ndim == 1 else np.moveaxis(v, 0, 2).reshape(H * W, len(v), *v.shape[3:])
        for k, v in arguments.items()
    }
    pixels = tf.encode_pixels(model, **series)
    np.testing.assert_array_equal(pixels.reshape(tile.shape), tile)
    data = golden_file("tile")
    np.testing.assert_array_equal(tf.embed(dict(data), model), tile)


def test_devices(golden_model):
    torch = pytest.importorskip("torch")
    _, model = golden_model
    arguments = tile_arguments()
    expected = tf.encode_tile(model, **arguments)
    for device in ("cpu", torch.device("cpu"), "auto", None):
        np.testing.assert_array_equal(tf.encode_tile(model, **arguments, device=device), expected)
    for device in ("cuda", torch.device("cuda"), "cuda:1"):
        with pytest.raises(tf.InputError, match=r"loaded on 'cpu', got 'cuda.*load_model"):
            tf.encode_tile(model, **arguments, device=device)
        with pytest.raises(tf.BackendUnavailable, match="'cuda"):
            tf.load_model("v2-nano", device, weights="untrained")
    for device in ("cpu", torch.device("cpu"), "auto"):
        with tf.load_model("v2-nano", device, weights="untrained") as loaded:
            assert loaded.backend == "cpu"
            tf.encode_pixels(loaded, **golden_file("series"), device="cpu")
    with pytest.raises(tf.InputError, match=r"autocast_dtype: .* load_model\(precision"):
        tf.encode_tile(model, **arguments, autocast_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s2_bands": np.zeros((3, 4, 10))}, r"s2_bands: expected numbers \(T, H, W, 10\)"),
        ({"s2_doys": np.arange(3)}, r"s2_doys: expected \(\d+,\), got \(3,\)"),
        ({"s2_doys": None}, "s2_doys: expected the days"),
        ({"s1_asc_doys": None}, "s1_asc_doys: expected the days"),
        ({"s2_masks": np.ones((2, 2))}, "s2_masks: expected .* to match s2_bands"),
        ({"s1_asc_bands": np.ones((2, 1, 1, 2)), "s1_asc_doys": [1, 2]}, "s1_asc_bands: expected"),
        ({"batch_pixels": 0}, "batch_pixels: expected a positive"),
        ({"model": "v2-nano"}, "model: expected what tessera_fast.load_model returns, got str"),
    ],
)
def test_bad_arguments(change, message, golden_model):
    with pytest.raises(tf.InputError, match=message):
        tf.encode_tile(**{"model": golden_model[1], **tile_arguments(), **change})


SCRIPT = """
import os, sys
import numpy as np
import torch
{imports}

checkpoint, folder, out = sys.argv[1:]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = load_model(checkpoint, device)

def load(name, dtype):
    return np.load(os.path.join(folder, name + ".npy")).astype(dtype)

e = encode_tile(
    model,
    load("bands", np.float32),
    load("doys", np.int64),
    s2_masks=load("masks", np.uint8),
    s1_asc_bands=load("sar_ascending", np.float32),
    s1_asc_doys=load("sar_ascending_doy", np.int64),
    s1_desc_bands=load("sar_descending", np.float32),
    s1_desc_doys=load("sar_descending_doy", np.int64),
    batch_pixels=4096,
    device=device,
)
assert e.shape[-1] == model.repr_dim
codes, scales = quantize(e[1:, :, :64])
np.savez(out, e=e, codes=codes, scales=scales)
"""


def test_a_script_with_only_the_import_changed(checkpoint, tmp_path):
    pytest.importorskip("torch")
    folder = write_tile(synthetic_tile(4, 6), tmp_path / "farm_2024")
    imports = {"ours": "from tessera_fast import encode_tile, load_model, quantize"}
    path = [str(PACKAGE)]
    if os.environ.get("TESSERA_OFFICIAL"):
        imports["theirs"] = "from infer import encode_tile\nfrom model import load_model\n"
        imports["theirs"] += "from quantize import quantize"
        path.append(str(checkout() / "student"))
    results = {}
    for name, lines in imports.items():
        script, out = tmp_path / f"{name}.py", tmp_path / f"{name}.npz"
        script.write_text(SCRIPT.format(imports=lines))
        done = subprocess.run(
            [sys.executable, str(script), str(checkpoint("v2_nano")), str(folder), str(out)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        results[name] = np.load(out)
    ours = results["ours"]
    assert ours["e"].shape == (4, 6, 128) and ours["codes"].shape == (3, 6, 64)
    if "theirs" in results:
        theirs = results["theirs"]
        assert_golden(ours["e"][1:], theirs["e"][1:])
        assert_same_codes(ours["codes"], theirs["codes"])
