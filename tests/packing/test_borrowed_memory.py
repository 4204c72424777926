"""Arrays that another thread writes during a call: errors or other numbers, and memory stays whole.

docs/design/0013-borrowed-memory.md says what is promised. A fault here is a process that dies, so
each case is one process.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from conftest import PACKAGE
from places import HELPERS
from tessera_fast.packing import Observations, pack
from tessera_fast.spec import variant
from tessera_fast.weights import save_safetensors, untrained_weights

SCRIPT = HELPERS / "borrowed_memory.py"
SIZES = {"d_model": 16, "num_layers": 1, "num_heads": 2, "ff_dim": 16}
MODELS = {
    "v2": variant("v2-nano", name="v2-tiny", out_dim=32, saved_dim=32, matryoshka=(32,), **SIZES),
    "v1.1": variant("v1.1-mpc", name="v1.1-tiny", **SIZES),
    "v1.0": variant("v1.0", name="v1.0-tiny", **SIZES),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.safetensors" for name in MODELS}
    for name, path in paths.items():
        save_safetensors(path, untrained_weights(MODELS[name]))
    return paths


def survives(*arguments: object) -> tuple[int, int]:
    """Calls that returned and that raised InputError, in a process that must end well."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    returned, refused = map(int, done.stdout.split())
    return returned, refused


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", ["raw", "tokens"])
def test_arrays_that_are_written_meanwhile(way, model, checkpoints):
    returned, refused = survives(way, 1.5, 2, checkpoints[model])
    assert returned + refused > 0


def window(days: object, dates: int = 3) -> Observations:
    bands = np.ones((dates, 2, 2, 10), np.uint16)
    return Observations(bands, None, np.broadcast_to(np.int32(days), dates), ())


@pytest.mark.parametrize("day", [-1, 0, 367, 2**31 - 1, -(2**31)])
def test_a_day_beyond_the_table_is_refused_where_it_is_read(day):
    with pytest.raises(tf.InputError, match=rf"Sentinel-2 days: expected 1..366, got {day} at"):
        pack(window(day), MODELS["v2"])


def test_a_day_of_an_unobserved_date_does_not_matter():
    given = window(400)
    unobserved = Observations(given.s2_bands, np.zeros((3, 2, 2), np.uint8), given.s2_doys, ())
    assert pack(unobserved, MODELS["v2"])[0].offsets.tolist() == [0] * 5
