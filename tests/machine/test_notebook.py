"""What people see while they wait and of what they get: in a notebook, and of a training run."""

import io
import sys
import types
from dataclasses import replace
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pytest

import tessera_fast as tf
from conftest import needs_zarr
from tessera_fast.machine.notebook import SHOWN, in_notebook, table
from tessera_fast.progress import progress_bar
from tessera_fast.synthetic import synthetic_tile


class Bar:
    """Stands for a class of tqdm; notes what was drawn."""

    made: ClassVar[list["Bar"]] = []

    def __init__(self, **options):
        self.options, self.n, self.closed = options, 0, False
        self.made.append(self)

    def update(self, more):
        self.n += more

    def close(self):
        self.closed = True


@pytest.fixture
def kernel(monkeypatch):
    """A process that looks like a kernel of Jupyter; ``kernel(widgets)``."""

    def start(widgets, config=("IPKernelApp",)):
        shell = types.SimpleNamespace(config=dict.fromkeys(config))
        fake = types.SimpleNamespace(get_ipython=lambda: shell)
        monkeypatch.setitem(sys.modules, "IPython", fake)
        module = types.ModuleType("ipywidgets") if widgets else None
        monkeypatch.setitem(sys.modules, "ipywidgets", module)
        page = types.ModuleType("tqdm.notebook")
        page.tqdm = Bar
        monkeypatch.setitem(sys.modules, "tqdm.notebook", page)
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # a kernel's is no terminal
        Bar.made.clear()

    return start


def embed(**options):
    tile = synthetic_tile(4, 6)
    return tf.embed(tile, "demo-nano", **options)


def test_a_notebook_with_widgets_has_its_bar(kernel):
    kernel(widgets=True)
    embed()
    (bar,) = Bar.made
    assert bar.closed and bar.n == bar.options["total"] == 24
    assert "demo-nano" in bar.options["desc"]
    assert sys.stderr.getvalue() == ""


def test_a_notebook_without_widgets_has_a_line(kernel):
    kernel(widgets=False)
    embed()
    assert not Bar.made
    assert "demo-nano: 100%" in sys.stderr.getvalue()


def test_silence_is_silent_in_a_notebook(kernel):
    kernel(widgets=True)
    embed(progress=False)
    assert not Bar.made and sys.stderr.getvalue() == ""


def test_what_is_no_notebook(kernel, monkeypatch):
    assert not in_notebook()
    kernel(widgets=True, config=())  # IPython on a terminal
    assert not in_notebook()
    embed()
    assert not Bar.made and sys.stderr.getvalue() == ""
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()  # imported by a program
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    with progress_bar(3, "x", None) as tick:
        tick(3)


# ---- objects


class Cells(HTMLParser):
    """The texts of a page's cells, by row; nothing but the expected elements may be in it."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.open, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag in ("div", "strong", "table", "thead", "tbody", "tr", "th", "td") and not attrs
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_a_table_is_escaped_and_short():
    evil = "<script>alert('&')</script>\udcff"
    cells = Cells(table(evil, [[evil, 1]] * (SHOWN + 7), ["<b>", "n"], [evil]))
    assert cells.rows[0] == ["<b>", "n"] and len(cells.rows) == 1 + SHOWN
    assert cells.rows[1] == [evil.replace("\udcff", "\\udcff"), "1"]
    assert "and 7 more" in cells.text
    assert Cells(table("nothing", [])).rows == []


def test_a_model_and_a_tile():
    with tf.load_model("v2-nano", weights="untrained", backend="cpu") as model:
        shown = Cells(model._repr_html_())
    rows = dict(shown.rows)
    assert "v2-nano (untrained)" in shown.text and "mean nothing" in shown.text
    assert rows["embedding"] == "128 numbers" and rows["prefixes"] == "16, 32, 64"
    assert rows["runs on"].startswith("cpu, cpu, ") and rows["weights"] == "untrained:1"
    tile = synthetic_tile(4, 6)
    rows = dict(Cells(tile._repr_html_()).rows)
    assert rows["size"] == "4 x 6 pixels" and rows["CRS"] == "EPSG:32631"
    assert rows["Sentinel-2"] == f"{tile.dates[0]} dates" and rows["time"] == "2024"
    unknown = replace(tile.georeference, crs=None, unreadable="a <roi> & no rasterio")
    rows = dict(Cells(replace(tile, georeference=unknown)._repr_html_()).rows)
    assert "a <roi> & no rasterio" in rows["CRS"]


def test_a_plan(farm, mini):
    plan = tf.plan(farm, mini, rate=1000)
    cells = Cells(plan._repr_html_())
    (tile,) = plan.rows
    assert cells.rows[0][0] == "tile" and cells.rows[1][:2] == ["farm_2024", "12 x 9"]
    assert f"pixels: {tile.pixels}" in cells.text and "1,000 px/s" in cells.text
    assert "farm_2024" in str(plan) and "12 x 9" in str(plan)
    Cells(replace(plan, rows=[])._repr_html_())


def test_a_probe():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.kron(np.arange(16).reshape(4, 4) % 2 + 1, np.ones((6, 6), np.int64))
    image = labels[..., None] + rng.normal(0, 0.3, (24, 24, 4))
    report = tf.probe(
        image,
        labels,
        seeds=2,
        per_class=[2, 5],
        split="block",
        block=6,
        classes={1: "<wheat>", 2: "maize"},
    )
    cells = Cells(report._repr_html_())
    head, *rows = cells.rows
    assert head[:2] == ["labels a class", "features"] and set(report.metrics) == set(head[2:])
    assert len(rows) == 2 * len(report.scores) and {row[0] for row in rows} == {"2", "5"}


@needs_zarr
def test_a_job_and_what_verify_says(farm, mini, tmp_path):
    out = tmp_path / "x.zarr"
    job = tf.embed_tiles([farm], out, mini)
    cells = Cells(job._repr_html_())
    assert cells.rows[1][:3] == ["farm_2024", "done", "108"] and "1 of 1 tiles" in cells.text
    same = tf.verify(out, out)
    cells = Cells(same._repr_html_())
    assert "equal" in cells.text and str(out) in cells.text
    from tessera_fast.verification import check

    assert "sound" in Cells(check(out)._repr_html_()).text


# ---- a training run


def waiting(**options):
    logbook = pytest.importorskip("tessera_fast.training.logbook")
    return logbook.Waiting(**options)


def test_a_line_after_the_first_step_and_then_every_few_seconds():
    now, said = [0.0], []
    line = waiting(
        step=0, steps=100_000, say=lambda s: said.append((now[0], s)), clock=lambda: now[0]
    )
    for step in range(1, 3000):
        now[0] += 2.0
        line.step(step, lambda: 0.5)
    times = [t for t, _ in said]
    assert said[0] == (2.0, "step 1/100000 loss 0.5, 2 s a step, about 2 d 8 h left")
    assert times[1] <= 10 and all(t <= 70 for t in np.diff(times))
    assert np.diff(times[:5]).max() < 15 and np.diff(times)[-1] >= 60
    assert len(said) < 3000 * 2 / 50


def test_rows_of_the_log_take_the_place_of_lines():
    now, said = [0.0], []
    line = waiting(step=7, steps=9, say=said.append, clock=lambda: now[0])
    line.row()
    now[0] = 4.0
    line.step(8, lambda: 1.0)
    assert not said
    now[0] = 6.0
    line.step(9, lambda: 1.0)
    assert said == ["step 9/9 loss 1, 3 s a step"]
    silent = waiting(step=0, steps=9, say=None)
    silent.step(1, lambda: pytest.fail("asked a device for nothing"))


def test_a_run_says_at_once_what_it_does(spawn, tmp_path):
    """Before PyTorch is there, and with the first step: no row of the log comes before step 20."""
    pytest.importorskip("torch")
    from train_configs import RUN, two_tiles, writer

    config = writer(two_tiles(tmp_path), tmp_path)(run={**RUN, "log_every": 20})
    process = spawn("train", config)
    lines = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == 0, lines
    assert lines[0] == f"{config}: 6 steps; PyTorch is loaded"
    assert "2 tiles of 96 pixels in all; the first batch is read" in lines[1]
    assert lines[2].startswith("step 1/6 loss ") and lines[-1].startswith("step 6/6 loss ")
