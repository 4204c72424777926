"""docs/edge.md as its reader follows it: the commands, then the script with onnxruntime alone."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from places import REPOSITORY

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import tessera_fast as tf
from oracle import assert_golden
from tessera_fast.__main__ import main
from tessera_fast.synthetic import synthetic_tile, write_tile

PAGE = (REPOSITORY / "docs" / "edge.md").read_text(encoding="utf-8")
SCRIPT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.split(" #")[0] for line in PAGE.splitlines() if line.startswith("tessera-fast")]


def test_the_script_gives_our_embeddings(tmp_path, monkeypatch):
    """In a Python that cannot import this package, on a tile with pixels that lack a stream."""
    monkeypatch.chdir(tmp_path)
    tile = synthetic_tile(7, 6)
    write_tile(tile, tmp_path / "farm_2024")
    masks = np.load("farm_2024/masks.npy")
    masks[:, 0, :3] = 0
    np.save("farm_2024/masks.npy", masks)
    for name in ("ascending", "descending"):
        bands = np.load(f"farm_2024/sar_{name}.npy")
        bands[:, 0, 2:5] = 0
        np.save(f"farm_2024/sar_{name}.npy", bands)
    (command,) = [c for c in COMMANDS if "-o nano_onnx" in c]
    assert main(shlex.split(command)[1:]) == 0
    (script,) = SCRIPT
    guard = "import sys\nsys.modules['tessera_fast'] = None\n"
    subprocess.run([sys.executable, "-c", guard + script], check=True, cwd=tmp_path)
    got = np.load("farm_embeddings.npy")
    expected = tf.embed("farm_2024", "v2-nano", weights="untrained", precision="fp32")
    seen = np.isfinite(expected).all(-1)
    assert (np.isfinite(got).all(-1) == seen).all()
    assert 0 < (~seen).sum() < seen.size / 2
    assert_golden(got[seen], expected[seen])


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    """Every tessera-fast line of the page parses."""
    from tessera_fast.__main__ import _parser

    _parser().parse_args(shlex.split(command)[1:])
