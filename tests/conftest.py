"""What the user-level tests share: a tile in the official layout, tiny models, and the CLI."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import tessera_fast
from tessera_fast.__main__ import main
from tessera_fast.spec import variant
from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.weights import save_safetensors, untrained_weights

PACKAGE = Path(tessera_fast.__file__).parents[1]


def _gpu_found() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


if not _gpu_found():
    # Triton reads it when it is imported: without a GPU its kernels run on the CPU, as numpy
    os.environ.setdefault("TRITON_INTERPRET", "1")
FARM_SHAPE = (12, 9)
needs_zarr = pytest.mark.skipif(
    importlib.util.find_spec("zarr") is None, reason="a store needs zarr >= 3 (Python >= 3.11)"
)
# Names of an output of each kind.
OUTPUTS = (pytest.param("x.zarr", marks=needs_zarr), "x")


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v2 model of one narrow layer, untrained, as a checkpoint file."""
    spec = variant(
        "v2-nano",
        name="v2-mini",
        d_model=16,
        num_layers=1,
        num_heads=2,
        ff_dim=16,
        out_dim=32,
        saved_dim=32,
        matryoshka=(8, 16, 32),
    )
    path = tmp_path_factory.mktemp("models") / "mini.safetensors"
    save_safetensors(path, untrained_weights(spec))
    return path


@pytest.fixture(scope="session")
def _farm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "farm_2024"
    return write_tile(synthetic_tile(*FARM_SHAPE), folder)


@pytest.fixture
def farm(_farm: Path, tmp_path: Path) -> Path:
    """A folder in the official layout with a roi.tiff, to be changed at will."""
    return Path(shutil.copytree(_farm, tmp_path / "farm_2024"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process."""

    def call(*args: object) -> Result:
        capsys.readouterr()
        code = main([str(a) for a in args])
        return Result(code, *capsys.readouterr())

    return call


def heed_interrupts() -> None:
    """A suite that was started in the background hands its children an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def spawn() -> Callable[..., "subprocess.Popen[str]"]:
    """Start `python -m tessera_fast` with pipes; ``env`` adds to the environment."""
    started = []

    def start(*args: object, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tessera_fast", *map(str, args)]
        path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            preexec_fn=heed_interrupts,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
