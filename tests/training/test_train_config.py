"""Configs of `train` and `distill`: what is read, and what is refused by name."""

import math
import re

import pytest

from places import REPOSITORY
from tessera_fast.errors import InputError
from tessera_fast.training.config import DistillPart, OptimizerPart, TwinsPart, read_config
from train_configs import TWINS, two_tiles, writer


@pytest.fixture(scope="session")
def tiles(tmp_path_factory):
    return two_tiles(tmp_path_factory.mktemp("training"))


@pytest.fixture
def write(tiles, tmp_path):
    return writer(tiles, tmp_path)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"run": {"setps": 3}}, r"\[run\]: expected one of out, steps.*got 'setps'"),
        ({"run": {"steps": 0}}, r"\[run\] steps: expected 1 or more, got 0"),
        ({"run": {"steps": 1.5}}, r"\[run\] steps: expected int, got 1.5"),
        ({"run": {"batch": 1}}, r"\[run\] batch: expected 2 or more, got 1"),
        ({"run": {"precision": "fp8"}}, "expected fp32, bf16, got 'fp8'"),
        ({"run": {"seed": -1}}, "seed"),
        ({"run": {"threads": -1}}, r"\[run\] threads: expected 0 or more"),
        (
            {"optimizer": {"learning_rate": math.nan}},
            "learning_rate: .*, got nan",
        ),
        ({"optimizer": {"weight_factor": -1.0}}, "weight_factor: expected 0 or more"),
        ({"data": {"dates": 41}}, r"\[data\] dates: .* number of 1..40, .*got \[41\]"),
        ({"data": {"dates": [1, 2, 3]}}, "or the least and the most"),
        ({"optimizer": {"warmup": 1.0}}, "warmup: expected 0 to 1"),
        ({"objective": {**TWINS, "prefixes": [64]}}, r"of 1..32 dimensions, got \[64\]"),
        ({"objective": {**TWINS, "prefixes": [32, 32]}}, "expected different numbers"),
        ({"objective": {**TWINS, "prefixes": [8]}}, "expected the whole, 32, among them"),
        ({"objective": {**TWINS, "prefixes": [32], "weights": [0]}}, "not all 0"),
        ({"objective": {**TWINS, "prefixes": [32], "weights": [1, 2]}}, "one for each of 1"),
        ({"objective": {**TWINS, "prefixes": "8"}}, "prefixes: expected int, got '8'"),
        ({"objective": {**TWINS, "prefixes": {}}}, "prefixes: expected a list"),
        ({"model": {"num_heads": 3}}, "multiple of its 3 heads"),
        ({"model": {"base": "v3"}}, "expected one of v2-nano"),
    ],
)
def test_a_wrong_setting_is_named(write, tables, message):
    tables = dict(tables)
    if tables.get("objective", {}).get("prefixes") == {}:
        path = write()
        path.write_text(path.read_text().replace("[objective]", "[objective]\nprefixes = {a=1}"))
    else:
        path = write(**tables)
    with pytest.raises(InputError, match=message):
        read_config(path, TwinsPart)


def test_what_is_missing_is_named(write, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[data]\ntiles = ["*"]\n')
    with pytest.raises(InputError, match=r"\[run\] out: it is missing"):
        read_config(path, TwinsPart)
    path.write_text("[run")
    with pytest.raises(InputError, match="expected a TOML file"):
        read_config(path, TwinsPart)
    path.write_text("[train]\n")
    with pytest.raises(InputError, match=r"expected tables model, .*got 'train'"):
        read_config(path, TwinsPart)
    with pytest.raises(InputError, match="expected tiles at 'none/\\*'"):
        read_config(write(data={"tiles": ["none/*"]}), TwinsPart).tile_paths()
    with pytest.raises(InputError, match=r"\[objective\] teacher: it is missing"):
        read_config(write({}), DistillPart)


def test_the_configs_of_the_page_are_read(tmp_path):
    """docs/training.md, with what is commented out as well."""
    page = (REPOSITORY / "docs" / "training.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    first, second = (re.sub(r"^# (?=\w+ = )", "", block, flags=re.M) for block in blocks)
    path = tmp_path / "page.toml"
    path.write_text(first)
    config = read_config(path, TwinsPart)
    assert config.objective.int8 and config.objective.weights == (1, 1, 1, 2)
    assert config.spec().d_model == 96 and config.spec().matryoshka[0] == 16
    assert config.optimizer == OptimizerPart(), "the page says that it lists the defaults"
    path.write_text(re.sub(r"\[objective\].*?(?=\[optimizer\])", second, first, flags=re.DOTALL))
    assert read_config(path, DistillPart).objective.heads == "auto"
