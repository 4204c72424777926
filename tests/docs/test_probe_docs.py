"""docs/probes.md and the recipes: commands, options, and each recipe on its stand-in."""

import argparse
import importlib.util
import inspect
import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest

import tessera_fast as tf
from places import REPOSITORY
from tessera_fast.__main__ import _parser
from tessera_fast.packing import pack
from tessera_fast.spec import NAMED

pytest.importorskip("sklearn", reason="a probe needs scikit-learn")
pytest.importorskip("rasterio", reason="stand-ins are written as GeoTIFF")
DOCS = REPOSITORY / "docs"
RECIPES = DOCS / "recipes"
PAGES = sorted([DOCS / "probes.md", *RECIPES.glob("*.md")])
NAMES = sorted(p.stem for p in RECIPES.glob("*.toml"))


def standins():
    place = importlib.util.spec_from_file_location("standins", RECIPES / "standins.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.mark.parametrize("recipe", NAMES)
def test_recipes_run_on_their_stand_ins(recipe, tmp_path, mini, run):
    standins().make(recipe, tmp_path, 48, None, None)
    tf.embed_tiles([str(tmp_path / "tile_2024")], tmp_path / "embeddings", model=mini)
    done = run("probe", tmp_path / f"{recipe}.toml", "--per-class", "8", "--seeds", 2)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert list(report["features"])[1:] == ["statistics", "months", "constant"]
    assert {p.suffix for p in (tmp_path / "report").iterdir()} == {".txt", ".json", ".png", ".tif"}


def test_radar_alone_is_without_a_clear_date(tmp_path):
    made = standins()
    made.make("vegetation_index", tmp_path, 12, None, None)
    seen = tf.open_tile(tmp_path / "tile_2024").rows(0, 12)
    assert not np.any(seen.s2_masks) and all(np.any(o.bands) for o in seen.orbits)
    # the labels are made of the bands, and v1.0 reads them where no date is clear: not if all are 0
    assert not np.any(seen.s2_bands)
    for model, runs in (("v2-nano", True), ("v1.1-mpc", True), ("v1.0", False)):
        optical, radar, observed = pack(seen, NAMED[model])
        assert len(optical.bands) == 0 and not observed[:, 0].any(), model
        assert (len(radar.bands) > 0) == runs, model
    clear = replace(seen, s2_bands=np.ones_like(seen.s2_bands))
    assert len(pack(clear, NAMED["v1.0"])[0].bands) > 0
    labels = __import__("rasterio").open(tmp_path / "labels.tif").read(1)
    assert np.nanmax(labels) > 0.3 and np.isnan(labels[0, 0])  # the pixel without Sentinel-2


def test_the_fire_shows_in_both_sensors():
    made = standins()
    before = made.arrays_of(made.synthetic_tile(24, 24, seed=made.SEED, year=made.YEAR))
    after = {name: array.copy() for name, array in before.items()}
    labels = made.burned(24, after)
    assert set(np.unique(labels)) == {1, 2}
    late = before["doys"] >= made.DAY_OF_FIRE
    changed = (before["bands"] != after["bands"]).any(axis=-1)
    assert not changed[~late].any() and not changed[:, labels == 1].any()
    assert changed[late][:, labels == 2].mean() > 0.9
    late = before["sar_ascending_doy"] >= made.DAY_OF_FIRE
    fell = before["sar_ascending"].astype(int) - after["sar_ascending"]
    assert set(np.unique(fell[late][:, labels == 2])) == {0, 200, 500}
    assert not fell[~late].any() and not fell[:, labels == 1].any()


def test_every_recipe_has_a_page():
    assert set(NAMES) == set(standins().NAMES) and len(NAMES) == 6
    for name in NAMES:
        text = (RECIPES / f"{name}.md").read_text()
        assert f"{name}.toml" in text and f"standins.py {name}" in text
        assert "simulated" in text or name == "vegetation_index"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_and_options_are_known(page):
    text = page.read_text()
    lines = re.findall(r"^(tessera-fast [a-z].*)$", text, re.M)
    assert lines
    for line in lines:
        _parser().parse_args(shlex.split(line, comments=True)[1:])
    (choices,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    known = {o for c in choices.choices.values() for a in c._actions for o in a.option_strings}
    of_standins = {"--tile", "--labels"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known | of_standins


def test_options_of_the_command_are_those_of_the_function():
    (choices,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    options = {a.dest for a in choices.choices["probe"]._actions} - {"help", "out", "overwrite"}
    assert options <= set(inspect.signature(tf.probe).parameters)
