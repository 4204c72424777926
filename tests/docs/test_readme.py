"""README as its reader follows it: every block that can be run, in order, in a folder of its own:
in an installation without extras, and in one with all of them.

A block that cannot be run has the reason in a comment above it.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from conftest import PACKAGE
from doc_blocks import blocks
from places import REPOSITORY
from tessera_fast.packages import EXTRAS
from tessera_fast.spec import RELEASED
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.tile import open_windows
from tessera_fast.weights import save_safetensors, untrained_weights

README = (REPOSITORY / "README.md").read_text()
BLOCKS = blocks(README)
SMALL = "synthetic_tile(12, 12)"  # in place of 48 x 48: the models that are named take seconds
# Commands of an installation without extras that say which one they need.
NEEDS = {
    "tessera-fast export v2-nano": "onnx",
    "tessera-fast export v2-small": "onnx",
    "tessera-fast plan ": "plan",
    "tessera-fast embed plan.parquet": "plan",
    "tessera-fast mosaic": "geo",
    "tessera-fast export region.zarr": "geo",
}


def test_every_block_is_run_or_says_why_not():
    assert README.count("\n```") == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} == {"bash", "python"}
    reasons = [block.reason for block in BLOCKS if block.reason]
    assert sorted(reasons) == [
        "it builds the package from a clone",
        "it needs TensorRT and an NVIDIA GPU",
        "it needs an NVIDIA GPU",
        "it needs an NVIDIA GPU",
        "it needs the network and a compiler",
    ]
    run = [block for block in BLOCKS if not block.reason]
    assert len(run) >= 11 and {block.language for block in run} == {"bash", "python"}


def test_no_weights_are_claimed_to_be_absent():
    """demo-nano's are part of the package."""
    text = " ".join(README.split())
    assert "no weights are shipped" not in text and "demo-nano" in text.partition("## ")[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What the reader has downloaded: files of the right shapes, with made-up parameters."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("v2-small", "v2-medium"):
        save_safetensors(folder / f"{name}.safetensors", untrained_weights(RELEASED[name]))
    return folder


def reader(folder: Path, weights: Path, python: str, scripts: Path) -> dict[str, str]:
    """The environment of a reader, whose folder has the tiles that README does not make."""
    scripts.mkdir(exist_ok=True)
    command = scripts / "tessera-fast"
    command.write_text(f'#!/bin/sh\nexec "{python}" -m tessera_fast "$@"\n')
    command.chmod(0o755)
    tile = synthetic_tile(7, 14)
    for i, part in enumerate(open_windows(tile, 7)):
        write_tile(part, folder / "tiles" / f"area_2024_{i}")
    x, y = tile.transform[2], tile.transform[5]
    ring = [[x + 20, y - 10], [x + 120, y - 10], [x + 120, y - 60], [x + 20, y - 10]]
    farm = {
        "type": "Polygon",
        "coordinates": [ring],
        "crs": {"type": "name", "properties": {"name": tile.crs}},
    }
    (folder / "farm.geojson").write_text(json.dumps(farm))
    path = os.pathsep.join([str(scripts), os.path.dirname(python), os.environ["PATH"]])
    removed = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {k: v for k, v in os.environ.items() if k not in removed}
    return {
        **kept,
        "PATH": path,
        "TESSERA_FAST_WEIGHTS": str(weights),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def run(words, folder, env):
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def small(text: str) -> str:
    return text.replace("synthetic_tile(48, 48)", SMALL)


def joined(text: str) -> list[str]:
    """The commands of a block of bash, one a line."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


# ---- an installation without extras


def top_level(name: str, seen: set[str]) -> set[Path]:
    """Files and folders of an installed package and of all that it requires, without extras."""
    from packaging.requirements import Requirement

    if name.lower() in seen:
        return set()
    seen.add(name.lower())
    found = importlib.metadata.distribution(name)
    paths = set()
    for file in found.files or ():
        if file.parts[0] not in ("..", "__pycache__"):
            paths.add(Path(str(found.locate_file(file.parts[0]))))
    for text in found.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            paths |= top_level(needed.name, seen)
    return paths


@pytest.fixture(scope="module")
def base(tmp_path_factory, weights):
    """An environment of numpy, pyproj, tqdm and zarr with what they need, and this package."""
    pytest.importorskip("packaging", reason="requirements are read with packaging")
    pytest.importorskip("zarr")
    root = tmp_path_factory.mktemp("base")
    venv.create(root / "venv", with_pip=False, symlinks=True)
    python = root / "venv" / "bin" / "python"
    place = run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], root, None
    ).stdout.strip()
    seen: set[str] = set()
    for name in ("numpy", "pyproj", "tqdm", "zarr"):
        for path in top_level(name, seen):
            if not (Path(place) / path.name).exists():
                (Path(place) / path.name).symlink_to(path)
    # The package alone: the folder that it lies in may hold every other package too.
    (Path(place) / "tessera_fast").symlink_to(PACKAGE / "tessera_fast")
    folder = root / "work"
    folder.mkdir()
    return folder, reader(folder, weights, str(python), root / "scripts"), str(python)


def test_the_base_environment_is_bare(base):
    folder, env, python = base
    modules = " ".join(m for m, extra in EXTRAS.items() if extra)
    code = (
        "import importlib.util as u, sys, tessera_fast\n"
        f"print([m for m in '{modules}'.split() if u.find_spec(m)])"
    )
    done = run([python, "-c", code], folder, env)
    assert done.stdout == "[]\n", done.stderr


def test_a_base_installation(base):
    """What needs no extra works; what needs one says which, in one sentence."""
    folder, env, python = base
    asked = set()
    for block in BLOCKS:
        if block.reason or "import xarray" in block.text:
            continue
        if block.language == "python":
            if "student_medium" not in block.text:  # a file of PyTorch, which is not here
                done = run([python, "-c", small(block.text)], folder, env)
                assert done.returncode == 0, (block.line, done.stderr)
            continue
        for command in joined(block.text):
            if "model-repository" in command:  # of an export, which this installation cannot make
                continue
            start = next((s for s in NEEDS if command.startswith(s)), None)
            words = re.sub(
                r"student_medium\.pt",
                f"{env['TESSERA_FAST_WEIGHTS']}/v2-medium.safetensors",
                command,
            )
            done = run(["bash", "-c", words], folder, env)
            if start is None:
                assert done.returncode == 0, (command, done.stderr)
                continue
            last = done.stderr.splitlines()[-1]
            assert done.returncode == 1 and "Traceback" not in done.stderr, command
            assert f"pip install 'tessera_fast[{NEEDS[start]}]'" in last, (command, last)
            asked.add(NEEDS[start])
            if start == "tessera-fast plan ":  # README's other way to give the tiles
                words = "tessera-fast embed tiles/ -o region.zarr --model v2-small"
                done = run(["bash", "-c", words], folder, env)
                assert done.returncode == 0, done.stderr
    assert asked == {"onnx", "plan", "geo"}
    made = {path.name for path in folder.iterdir()}
    assert {
        "farm_2024",
        "farm.zarr",
        "npy_folder",
        "region.zarr",
        "region.png",
        "v2-medium.safetensors",
    } <= made
    assert (folder / "farm_2024" / "roi.tiff").is_file()


# ---- with all extras


@pytest.fixture(scope="module")
def follower(tmp_path_factory, weights):
    """A folder in which everything of README has been done."""
    for package in ("zarr", "rasterio", "pyarrow", "xarray", "onnx", "onnxruntime", "torch", "ray"):
        pytest.importorskip(package, reason=f"README needs {package}")
    from official_checkpoints import save_model

    root = tmp_path_factory.mktemp("readme")
    folder = root / "work"
    folder.mkdir()
    env = reader(folder, weights, sys.executable, root / "scripts")
    env["PYTHONPATH"] = str(PACKAGE)
    env["RAY_ADDRESS"] = "local"
    save_model(folder / "student_medium.pt", RELEASED["v2-medium"])
    said = []
    for block in BLOCKS:
        if block.reason:
            continue
        words = ["bash", "-e", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = run([*words, small(block.text)], folder, env)
        assert done.returncode == 0, (block.line, block.text, done.stdout, done.stderr)
        said.append(done.stdout)
    return folder, said


def test_readme_can_be_followed(follower):
    folder, said = follower
    made = {path.name for path in folder.iterdir()}
    assert {
        "farm_2024",
        "farm.zarr",
        "npy_folder",
        "nano_onnx",
        "plan.parquet",
        "region.zarr",
        "region.png",
        "farm.tif",
        "maps",
        "v2-medium.safetensors",
        "small_onnx",
        "model_repository",
    } <= made
    assert len(list((folder / "maps").iterdir())) == 2
    text = "\n".join(said)
    assert "checks passed" in text and "FAILED" not in text
    assert "2 of 2 tiles embedded with v2-small" in text and ": sound" in text


def test_the_reading_example_reads_what_was_written(follower):
    """The part that README takes of the store is the tile that it made."""
    import numpy as np

    import tessera_fast as tf

    folder, _ = follower
    (block,) = [b for b in BLOCKS if "xr.open_zarr" in b.text]
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(block.text, "README", "exec"), names)
    expected = tf.dequantize(
        *tf.embed(folder / "farm_2024", "v2-nano", weights="untrained", output="int8")
    )
    part = names["embeddings"].transpose("y", "x", "band").values[:12, :12]
    np.testing.assert_array_equal(part, expected)
