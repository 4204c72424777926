"""Maps of classes: a legend and a colour table, and the picture that docs/probes.md shows."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from label_squares import squares
from places import REPOSITORY
from tessera_fast.drawing.palette import colour

pytest.importorskip("sklearn", reason="a probe needs scikit-learn")
rasterio = pytest.importorskip("rasterio", reason="maps need rasterio")
ROOT = REPOSITORY
FLANDERS = ROOT / ".." / "shared" / "data" / "flanders_2019"
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def picture(path):
    with rasterio.open(path) as file:
        return np.moveaxis(file.read()[:3], 0, -1)


def features(labels, size=16):
    noise = np.random.default_rng(0).standard_normal((*labels.shape, size))
    return (np.eye(size)[labels % size] + 0.05 * noise).astype(np.float32)


@pytest.fixture
def placed(tmp_path):
    """A store-like folder of one tile with a place, and its classes (32, 32)."""
    from dataclasses import replace

    from fake_tiles import FLOAT, tile, write

    labels, _ = squares()
    key = tile("t", 32, 32)
    counts = np.ones((32, 32, 3), np.uint16)
    write(tmp_path / "e", {key: (features(labels), None, counts)}, replace(FLOAT, dims=16))
    return tmp_path / "e", labels


@pytest.mark.parametrize("high", [0, 1000, 100_000])
def test_a_map_has_a_legend_and_a_colour_table(placed, tmp_path, high):
    source, labels = placed
    names = {high + k: f"kind {k}" for k in (1, 2, 3, 4)}
    report = tf.probe(source, labels + high, head="knn", per_class=5, seeds=2, classes=names)
    made = report.save(tmp_path / "report")
    image = picture(made / "map_t.png")
    for k in range(4):
        assert (image[-40:] == colour(k)).all(-1).sum() >= 16 * 24  # a box of the legend
    with rasterio.open(made / "map_t.tif") as file:
        codes, tags = file.read(1), file.tags()
        assert {f"CLASS_{code}": name for code, name in names.items()}.items() <= tags.items()
        if high > 65_535:  # no GeoTIFF has a colour table of such codes
            return
        table = file.colormap(1)
        assert file.colorinterp[0] == rasterio.enums.ColorInterp.palette
    assert [table[high + k + 1] for k in range(4)] == [(*colour(k), 255) for k in range(4)]
    if high == 0:
        assert table[0][3] == 0 or file.nodata == 0
    assert set(np.unique(codes)) <= {0, *names}


def test_a_map_of_values_has_no_colour_table(placed, tmp_path):
    source, labels = placed
    values = labels.astype(np.float32)
    report = tf.probe(source, values, split="block", block=8, per_class=20, seeds=2)
    made = report.save(tmp_path / "report")
    with rasterio.open(made / "map_t.tif") as file:
        assert file.dtypes == ("float32",)
        with pytest.raises(ValueError, match="NULL color table"):
            file.colormap(1)


def test_the_page_s_commands_make_its_picture(tmp_path, monkeypatch, run):
    if not FLANDERS.exists():
        pytest.skip(f"no {FLANDERS}")
    page = (ROOT / "docs" / "probes.md").read_text()
    section = page[page.index("## A first figure") :]
    lines = re.findall(r"^tessera-fast (.*)$", section, re.M)
    assert len(lines) == 2 and "report/map_flanders_2019.png" in section
    (shown,) = re.findall(r"\]\((images/\S+\.png)\)", section)
    (tmp_path / "flanders_2019").symlink_to(FLANDERS.resolve())
    monkeypatch.chdir(tmp_path)
    for line in lines:
        assert run(*shlex.split(line)).code == 0, line
    made, expected = picture("report/map_flanders_2019.png"), picture(ROOT / "docs" / shown)
    assert made.shape == expected.shape
    # another processor rounds otherwise, and a vote at a tie may turn
    assert (made == expected).all(-1).mean() > 0.99
    scores = json.loads(Path("report/report.json").read_text())["features"]["demo-nano"]["mean"]
    row = re.search(r"^\| demo-nano \(128\) \|(.*)\|$", section, re.M)[1].split("|")
    assert abs(scores["10"]["balanced_accuracy"] - float(row[1].split()[0])) < 0.02
