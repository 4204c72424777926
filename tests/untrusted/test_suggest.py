"""A name that does not exist is named, and so is the nearest that does: in Python, on the command
line, in configurations and in the environment."""

import argparse
import inspect
import logging
import re
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast import env
from tessera_fast.__main__ import _parser, main
from tessera_fast.backends import BEST_FIRST, DEVICES, PRECISIONS
from tessera_fast.backends.cpu import PRECISIONS as OF_CPU
from tessera_fast.backends.cuda import PRECISIONS as OF_CUDA
from tessera_fast.backends.reference import _DTYPES as OF_REFERENCE
from tessera_fast.errors import InputError, TesseraError, UnknownKeyword
from tessera_fast.exports.form import PRECISIONS as OF_TENSORRT
from tessera_fast.probing.config import read_config as read_probe
from tessera_fast.spec import S1_BANDS, S2_BANDS
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.training.config import TwinsPart
from tessera_fast.training.config import read_config as read_training
from tessera_fast.untrusted.suggest import closest, keywords_of

FUNCTIONS = [name for name in tf.__all__ if inspect.isfunction(getattr(tf, name))]
(_CHOICES,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
COMMANDS = dict(_CHOICES.choices)
OPTIONS = [
    (command, option)
    for command, parser in COMMANDS.items()
    for option in parser._option_string_actions
    if option.startswith("--") and len(option) > 4
]
BY_NAME = {"embed": "bands", "embed_tiles": "s1_units", "plan": "period", "open_windows": "year"}


def misspelt(word):
    """Two letters in the middle change places, or one is dropped where they are the same."""
    i = next(i for i in range(len(word) // 2, len(word) - 1) if word[i] != word[i + 1])
    return word[:i] + word[i + 1] + word[i] + word[i + 2 :]


# ---- Python


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_keyword_of_a_function(name):
    function = getattr(tf, name)
    known = keywords_of(function)
    word = max(known, key=lambda k: k == "model" or len(k) / 100)
    with pytest.raises(UnknownKeyword) as caught:
        function(**{misspelt(word): None})
    assert str(caught.value) == (
        f"{name} has no keyword {misspelt(word)!r}. Did you mean {word!r}?"
    )
    assert isinstance(caught.value, InputError) and isinstance(caught.value, TypeError)


@pytest.mark.parametrize(("name", "word"), BY_NAME.items())
def test_a_keyword_that_is_taken_by_stars(name, word):
    with pytest.raises(UnknownKeyword, match=f"Did you mean '{word}'"):
        getattr(tf, name)(**{misspelt(word): None})


def test_what_is_said_where_nothing_is_near():
    with pytest.raises(UnknownKeyword, match=r"'qqqqq'\. It has codes, scales\.$"):
        tf.dequantize(qqqqq=1)


def test_functions_keep_their_signatures():
    assert "modle" not in inspect.signature(tf.embed).parameters
    assert inspect.signature(tf.embed).parameters["model"].default == "v2-medium"
    assert tf.embed.__name__ == "embed" and tf.embed.__doc__.startswith("TESSERA")


def test_the_reported_case():
    """A keyword was taken for an array: "give either a tile or the arrays, got both"."""
    with pytest.raises(InputError, match=r"has no keyword 'modle'\. Did you mean 'model'\?"):
        tf.embed("farm", modle="v2-nano")


VALUES = {
    "model": (lambda v: tf.load_model(v), "v2-nanno", "v2-nano"),
    "a model's capitals": (lambda v: tf.load_model(v), "V2_Nano", "v2-nano"),
    "weights": (lambda v: tf.load_model("v2-nano", weights=v), "untraned", "untrained"),
    "a seed": (lambda v: tf.load_model("v2-nano", weights=v), "untraind:3", "untrained"),
    "precision": (
        lambda v: tf.load_model("v2-nano", weights="untrained", precision=v),
        "fp31",
        "fp32",
    ),
    "backend": (
        lambda v: tf.load_model("v2-nano", weights="untrained", backend=v),
        "tensort",
        "tensorrt",
    ),
    "device": (lambda v: tf.load_model("v2-nano", weights="untrained", device=v), "cdua:1", "cuda"),
    "output": (lambda v: tf.embed({}, "demo-nano", output=v), "flaot32", "float32"),
    "an array": (lambda v: tf.embed({v: 1}, "demo-nano"), "mask", "masks"),
    "s1_units": (lambda v: tf.open_tile({}, s1_units=v), "pwer", "power"),
    "s2_offset": (lambda v: tf.open_tile(synthetic_dict(), s2_offset=v), "removd", "removed"),
    "executor": (
        lambda v: tf.embed_tiles(synthetic_tile(2, 6), "x", "demo-nano", executor=v),
        "proces",
        "process",
    ),
    "on_error": (lambda v: tf.embed_tiles([], "x", "demo-nano", on_error=v), "skipp", "skip"),
    "a plan's model": (lambda v: tf.plan(["x"], v), "v2-smal", "v2-small"),
    "format": (lambda v: tf.export("demo-nano", "x", format=v), "tensort", "tensorrt"),
    "a store's format": (lambda v: tf.export_store("x", "y", format=v), "geotif", "geotiff"),
    "resampling": (lambda v: tf.mosaic("x", "y", polygon="z", resampling=v), "bilinar", "bilinear"),
    "task": (lambda v: tf.probe([[[1.0]]], [[1]], task=v), "regresion", "regression"),
}


def synthetic_dict():
    window = synthetic_tile(2, 6).rows(0, 2)
    return {"bands": window.s2_bands, "masks": window.s2_masks, "doys": window.s2_doys}


@pytest.mark.parametrize("case", VALUES)
def test_a_value_of_an_argument(case, tmp_path, monkeypatch):
    if "probe" in case or case == "task":
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    call, wrong, right = VALUES[case]
    with pytest.raises(TesseraError, match=f"Did you mean '{right}'"):
        call(wrong)
    assert not list(tmp_path.iterdir())


def test_an_attribute():
    with pytest.raises(AttributeError, match=r"'embedd'\. Did you mean 'embed'\?$"):
        tf.embedd  # noqa: B018
    assert dir(tf) == sorted(dir(tf)) and set(dir(tf)) == {*tf.__all__, "__version__"}


def test_the_known_precisions_are_those_of_the_back_ends():
    assert {"auto", *OF_CPU, *OF_CUDA, *OF_TENSORRT, *OF_REFERENCE} == set(PRECISIONS)
    assert set(DEVICES) == {"auto", "cpu", "cuda"} and "auto" not in BEST_FIRST


def test_long_names_take_no_time():
    assert closest("x" * 10**7, ["model", "y" * 10**6]) == ""


# ---- names in a source


@pytest.mark.parametrize("form", ["folder", "Dataset"])
@pytest.mark.parametrize("name", ["bands", "masks", "doys", "sar_ascending", "sar_descending_doy"])
def test_a_name_in_a_source(form, name, tmp_path, caplog):
    """What is missing may be there under another name."""
    source = saved(form, tmp_path, {name: misspelt(name)})
    wrong = misspelt(name) + (".npy" if form == "folder" else "")
    if (form, name) == ("Dataset", "sar_ascending"):  # which may be absent: a warning
        tf.open_tile(source)
        assert f"Did you mean '{wrong}'" in caplog.text
        return
    with pytest.raises(InputError, match=f"missing .*Did you mean '{wrong}'"):
        tf.open_tile(source)


@pytest.mark.parametrize("form", ["folder", "Dataset"])
def test_an_orbit_of_another_name(form, tmp_path, caplog):
    """An orbit may be absent, and one that is only misspelt would be left out in silence."""
    both = {"sar_ascending": "sar_ascendng", "sar_ascending_doy": "sar_ascendng_doy"}
    tile = tf.open_tile(saved(form, tmp_path, both))
    assert tile.dates[1] == 0 < tile.dates[2]
    (message,) = caplog.messages
    assert "sar_ascending" in message and "Did you mean 'sar_ascendng" in message
    every = {
        **both,
        **{k.replace("asc", "desc"): v.replace("asc", "desc") for k, v in both.items()},
    }
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r"at least one Sentinel-1 orbit.*Did you mean 'sar_asc"):
        tf.open_tile(saved(form, tmp_path / "again", every))
    caplog.clear()
    (tmp_path / "right").mkdir()
    tf.open_tile(saved(form, tmp_path / "right", {}))
    assert not caplog.messages


def saved(form, folder, names):
    """A tile as a folder or a Dataset, with other names for some arrays."""
    tile = write_tile(synthetic_tile(2, 6), folder / "t_2024")
    arrays = {path.stem: np.load(path) for path in tile.glob("*.npy")}
    if form == "folder":
        for right, wrong in names.items():
            (tile / f"{right}.npy").rename(tile / f"{wrong}.npy")
        return tile
    xr = pytest.importorskip("xarray")
    dims = {"bands": ("time", "y", "x", "band"), "masks": ("time", "y", "x"), "doys": ("time",)}
    for orbit in ("sar_ascending", "sar_descending"):
        dims |= {orbit: (orbit[4:], "y", "x", "polarization"), f"{orbit}_doy": (orbit[4:],)}
    coordinates = {"band": list(S2_BANDS), "polarization": list(S1_BANDS)}
    return xr.Dataset({names.get(n, n): (dims[n], a) for n, a in arrays.items()}, coordinates)


# ---- the command line


def usage_error(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_option_of_a_command(command, option, capsys):
    wrong = "--" + misspelt(option[2:])
    text = usage_error(capsys, command, wrong, "value")
    assert text.startswith(f"usage: tessera-fast {command} ")
    end = f"tessera-fast {command}: error: there is no option {wrong!r}. Did you mean {option!r}?\n"
    assert text.endswith(end)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(command, capsys):
    text = usage_error(capsys, misspelt(command))
    assert f"Did you mean {command!r}?" in text


def test_values_and_places_of_options(capsys):
    for words, expected in {
        ("export", "x", "-o", "y", "--format", "onx"): "Did you mean 'onnx'?",
        ("embed", "x", "-out", "y"): "there is no option '-out'. Did you mean '--out'?",
        ("embed", "x", "-o", "y", "--mod", "demo-nano"): "there is no option '--mod'",
        ("embed", "-v", "x"): "option '-v' goes before the command",
        ("embed", "x", "--verbose"): "option '--verbose' goes before the command",
        ("--verbos", "info"): "Did you mean '--verbose'?",
        ("info", "extra"): "there is no use for 'extra'",
        ("embed", "x", "-o", ""): "argument -o/--out: expected a name, got ''",
        ("embed", "", "-o", "y"): "argument TILE: expected a name, got ''",
        ("plan", "x", "--to="): "argument --to: expected a name, got ''",
        ("train", ""): "argument config: expected a name, got ''",
    }.items():
        assert expected in usage_error(capsys, *words), words


def test_names_of_files_are_no_options(capsys, run):
    """After -- every word is a name."""
    assert "--modle: expected a folder" in run("embed", "-o", "x", "--", "--modle").err


# ---- configurations and the environment


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('[modle]\nbase = "v2-nano"\n', "model"),
        ("[run]\nstpes = 1\n", "steps"),
        ('[data]\ntles = ["x"]\n', "tiles"),
        ('[model]\nbase = "v2-nanno"\n[data]\ntiles = "x"\n[run]\nout = "y"\nsteps = 1', "v2-nano"),
    ],
)
def test_a_setting_of_training(text, right, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(InputError, match=f"Did you mean '{right}'"):
        read_training(tmp_path / "run.toml", TwinsPart)


def test_a_setting_of_a_probe(tmp_path):
    (tmp_path / "probe.toml").write_text('embeddings = "x"\nper_clas = 3\n')
    with pytest.raises(InputError, match="Did you mean 'per_class'"):
        read_probe(tmp_path / "probe.toml")


def test_variables_of_the_environment(monkeypatch, caplog):
    env.warn_of_unknown.cache_clear()
    for name in env.KNOWN:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("TESSERA_FAST_THREAD", "3")
    monkeypatch.setenv("TESSERA_FAST_QQ", "3")
    with caplog.at_level(logging.WARNING):
        tf.load_model("v2-nano", weights="untrained").close()
        tf.load_model("v2-nano", weights="untrained").close()
    near, other = sorted(caplog.messages, key=lambda m: "QQ" in m)
    assert near.endswith("has no effect. Did you mean 'TESSERA_FAST_THREADS'?")
    assert "TESSERA_FAST_QQ has no effect. There are TESSERA_FAST_ENGINES, " in other
    env.warn_of_unknown.cache_clear()


@pytest.mark.parametrize(
    ("name", "read"),
    [("FUSED", env.fused), ("NVTX", env.nvtx), ("TENSORRT_GRAPHS", env.tensorrt_graphs)],
)
def test_a_switch_of_the_environment(name, read, monkeypatch):
    for text, expected in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv(f"TESSERA_FAST_{name}", text)
        assert read() is expected
    monkeypatch.setenv(f"TESSERA_FAST_{name}", "yes")
    with pytest.raises(InputError, match=f"TESSERA_FAST_{name}: expected 1 or 0, got 'yes'"):
        read()


def test_every_variable_is_known():
    """Those that the package names."""
    text = "".join(path.read_text() for path in Path(env.__file__).parent.rglob("*.py"))
    named = set(re.findall(r"TESSERA_FAST_[A-Z]+(?:_[A-Z]+)*\b", text))
    assert named - set(env.KNOWN) <= {"TESSERA_FAST_TEST"}
