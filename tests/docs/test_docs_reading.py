"""The lines that documents give for reading a store: on two small tiles far apart, in bounded
memory."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from conftest import PACKAGE
from fake_tiles import PROVENANCE, fake, tile, write
from places import REPOSITORY

pytest.importorskip("xarray", reason="the documents read stores with xarray")
pytest.importorskip("rioxarray", reason="the documents read GeoTIFF with rioxarray")
pytest.importorskip("zarr", minversion="3", reason="a store needs zarr >= 3")
pytest.importorskip("pyproj", reason="a store needs pyproj")
ROOT = REPOSITORY
MOST = 200e6  # bytes; all of the zone would be 28 GB
# where the documents' tiles are, and another 73 km to the east and south of it
HERE = tile("farm_2024", 64, 64, x0=501_000.0, y0=5_630_000.0, year=2024)
FAR = tile("far_2024", 64, 64, x0=574_000.0, y0=5_557_000.0, year=2024)
MEASURE = """
import tracemalloc
{imports}
tracemalloc.start()
{lines}
print(tracemalloc.get_traced_memory()[1])
{check}
"""
CHECK = """
expected = np.load("expected.npy")
found = embeddings.values[:, :64, :64].transpose(1, 2, 0)
np.testing.assert_array_equal(found, expected[: found.shape[0], : found.shape[1]])
assert found.dtype == np.float32 and 0 < np.isnan(found).mean() < 1
"""


def blocks():
    """Every block of Python that opens a store: page, number, text."""
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]):
        python = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.M)
        for text in python:
            if "open_zarr" in text or "open_group" in text:
                yield f"{page.stem}-{'classes' if 'labels.csv' in text else 'values'}", text


BLOCKS = dict(blocks())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the documents name, with tiles far apart."""
    import numpy as np

    import tessera_fast as tf

    place = tmp_path_factory.mktemp("far")
    run = replace(PROVENANCE, dims=128, prefixes=())
    data = {key: fake(key, dims=128, seed=k) for k, key in enumerate((HERE, FAR))}
    for name in ("farm.zarr", "region.zarr"):
        write(place / name, data, run)
    np.save(place / "expected.npy", tf.dequantize(*data[HERE][:2]))
    tf.export_store(place / "farm.zarr", place / "maps", tiles=["farm_2024"])
    (made,) = (place / "maps").iterdir()
    made.rename(
        place / "maps" / "grid_3.02_50.82_2024.tiff"
    )  # this tile's centre is not the page's
    row, col = np.random.default_rng(0).integers(0, 64, (2, 300))
    points = np.stack([501_005 + 10 * col, 5_629_995 - 10 * row, col % 3], axis=1)
    np.savetxt(place / "labels.csv", points, "%d", delimiter=",", header="x,y,class", comments="")
    return place


def test_the_lines_are_found():
    assert set(BLOCKS) == {
        "README-values",
        "products-values",
        "region_to_map-values",
        "region_to_map-classes",
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_far_tiles_are_read_in_bounded_memory(folder, name):
    lines = BLOCKS[name].splitlines()
    imports = [line for line in lines if line.startswith("import ")]
    rest = [line for line in lines if line not in imports]
    check = CHECK if name.endswith("values") else "assert (classes.values[:64, :64] < 3).any()"
    text = MEASURE.format(
        imports="\n".join(["import numpy as np", *imports]), lines="\n".join(rest), check=check
    )
    # a limit on the process as well: what asks for gigabytes fails, and does not stop the machine
    limit = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", limit + text],
        cwd=folder,
        env={"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < MOST
