"""Peak memory is what the setting allows, whatever the size of the tile.

Measured from outside, as the largest resident set of a process that runs the command line. The
model is as small as it can be, so that the tile is what counts and the test is short.
"""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from conftest import PACKAGE
from tessera_fast.spec import variant
from tessera_fast.weights import save_safetensors, untrained_weights

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a program's peak memory is read from /proc"
)
MIB = 1 << 20
SIDE, DATES, RADAR_DATES = 500, 70, 35  # 70 dates of each sensor, half of the radar's per orbit


def write_big_tile(folder: Path, height: int, width: int) -> Path:
    """A tile of random values in which nearly every date is clear, written date by date."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    series = {
        "bands": (DATES, (10,), np.uint16, 12_000),
        "masks": (DATES, (), np.uint8, 1),
        "sar_ascending": (RADAR_DATES, (2,), np.int16, 9_000),
        "sar_descending": (RADAR_DATES, (2,), np.int16, 9_000),
    }
    for name, (dates, channels, dtype, highest) in series.items():
        shape = (dates, height, width, *channels)
        with open(folder / f"{name}.npy", "wb") as file:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(dates):
                values = rng.integers(1, highest + 1, shape[1:], dtype)
                if name == "masks":
                    values[rng.integers(0, 20, values.shape, np.uint8) == 0] = 0
                values.tofile(file)
    for name, dates in (("doys", DATES), ("sar_ascending_doy", 35), ("sar_descending_doy", 35)):
        np.save(folder / f"{name}.npy", np.linspace(1, 365, dates).astype(np.int32))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    spec = variant(
        "v2-nano",
        name="v2-least",
        d_model=8,
        num_layers=1,
        num_heads=1,
        ff_dim=8,
        out_dim=8,
        saved_dim=8,
        matryoshka=(),
    )
    path = tmp_path_factory.mktemp("models") / "least.safetensors"
    save_safetensors(path, untrained_weights(spec))
    return path


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A function of height and width that returns a folder."""
    root = tmp_path_factory.mktemp("tiles")

    def make(height: int, width: int) -> Path:
        folder = root / f"{height}x{width}"
        return folder if folder.exists() else write_big_tile(folder, height, width)

    yield make
    for path in root.glob("*/*.npy"):
        path.unlink()


# Runs the command line and reports the peak of this program. Not ru_maxrss, which begins at what
# the process that started it had resident.
MEASURE = textwrap.dedent("""
    import re, sys
    from pathlib import Path
    from tessera_fast.__main__ import main
    code = main(sys.argv[1:])
    status = Path("/proc/self/status").read_text()
    print("peak", 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]))
    sys.exit(code)
""")


def peak(folder: Path, model: Path, out: Path, memory: str, *options: str) -> int:
    """Peak resident bytes of embedding ``folder``."""
    command = [
        sys.executable,
        "-c",
        MEASURE,
        "embed",
        folder,
        "-o",
        out,
        "--model",
        model,
        "--memory",
        memory,
        *options,
    ]
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("peak ")[2])


@pytest.fixture(scope="module")
def measured(tiles, model, tmp_path_factory):
    """A function that embeds a tile once under a setting: peak bytes and the file written."""
    root = tmp_path_factory.mktemp("out")
    known: dict[tuple[int, int, str], tuple[int, bytes]] = {}

    def measure(height: int, width: int, memory: str) -> tuple[int, bytes]:
        key = (height, width, memory)
        if key not in known:
            folder, out = tiles(height, width), root / "-".join(map(str, key))
            bytes_at_peak = peak(folder, model, out, memory)
            known[key] = bytes_at_peak, (out / f"{folder.name}.npy").read_bytes()
        return known[key]

    return measure


def test_a_full_tile_under_one_gibibyte(measured):
    """The tile alone is 437 MB, and its packed tokens as much again."""
    assert measured(SIDE, SIDE, "1GiB")[0] < 1024 * MIB


def test_a_small_setting(measured):
    assert measured(SIDE, SIDE, "256MiB")[0] < 256 * MIB


def test_results_do_not_depend_on_the_setting(measured):
    whole, part = measured(SIDE, SIDE, "1GiB")[1], measured(SIDE, SIDE, "256MiB")[1]
    assert whole == part
    values = np.load(io.BytesIO(whole))
    assert values.shape == (SIDE, SIDE, 8) and values.dtype == np.float32
    assert np.isfinite(values).all() and values.std() > 0


def test_peak_does_not_grow_with_the_height(measured):
    """Stages side by side peak a fifth apart from run to run; bands that are kept would add 219 MB,
    which is twice the peak."""
    low, high = measured(SIDE // 2, SIDE, "256MiB")[0], measured(SIDE, SIDE, "256MiB")[0]
    assert 2 * high < 3 * low
