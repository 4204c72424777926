"""The weights of the package, and what `make demo` makes of them."""

from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.commands.demo import classified
from tessera_fast.spec import DEMO, NAMED, RELEASED
from tessera_fast.synthetic import synthetic_classes, synthetic_tile
from tessera_fast.weights import load_weights

FILE = Path(tf.__file__).parent / "weights" / "demo-nano.safetensors"


def test_the_package_has_small_weights_that_say_what_they_are(monkeypatch):
    monkeypatch.setenv("TESSERA_FAST_WEIGHTS", "/nowhere")  # nothing is looked for elsewhere
    assert FILE.stat().st_size < 2_500_000
    weights = load_weights("demo-nano")
    assert weights.trained and weights.source == "package:demo-nano.safetensors"
    assert weights.spec is not RELEASED["v2-nano"] and weights.spec == DEMO == NAMED["demo-nano"]
    assert load_weights(FILE).spec == DEMO  # as a file it keeps its name
    with pytest.raises(tf.WeightsError, match="not v2-nano: expected name 'v2-nano'"):
        load_weights("v2-nano", FILE)
    assert not load_weights("demo-nano", "untrained").trained


def test_the_demo_tells_classes_apart():
    """Of one synthetic tile, from ten labelled pixels a class."""
    tile, truth = synthetic_tile(64, 64, seed=3), synthetic_classes(64, 64, seed=3, year=2024)
    with tf.load_model("demo-nano") as model:
        values = tf.embed(tile, model, progress=False)
    right = np.mean([np.mean(classified(values, truth, s) == truth) for s in range(5)])
    assert right > max(0.6, np.bincount(truth.ravel()).max() / truth.size)


def test_classes_are_those_of_the_nearest_mean():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.array([4, 9, 2], np.uint8), (30, 30, 15)).reshape(5, 15)
    values = np.eye(10, dtype=np.float32)[truth] + 0.01 * rng.standard_normal((5, 15, 10))
    values[0, 0] = np.nan
    found = classified(values, truth, 1)
    expected = np.where(truth == 2, found, truth)  # 15 pixels are too few to learn from
    expected[0, 0] = 0  # no embedding
    assert (found == expected).all() and set(np.unique(found[truth == 2])) <= {4, 9}
