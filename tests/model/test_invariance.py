"""A pixel's embedding is a function of its own observations alone, bit for bit.

It does not depend on its neighbours, its place in a block, the row block, or the number of threads;
v1.0 draws dates at random and depends on (seed, row, column) besides.
"""

import bisect
from dataclasses import replace

import numpy as np
import pytest

from isas import every_isa
from row_blocks import embed_rows
from tessera_fast.backends.base import RunOptions
from tessera_fast.backends.cpu import cpu
from tessera_fast.errors import InputError
from tessera_fast.model.model import Model
from tessera_fast.packing import Observations
from tessera_fast.pipeline.embed import block_rows
from tessera_fast.spec import ModelSpec, released, variant
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.weights import untrained_weights
from windows import random_window

SMALL = {"num_layers": 1, "num_heads": 3, "ff_dim": 37, "out_dim": 19, "saved_dim": 17}
SPECS = {
    "softmax": variant("v2-nano", d_model=42, **SMALL),
    "qk_norm": variant("v2-nano", d_model=42, qk_norm=True, **SMALL),
    "custom_gru": variant("v1.1-mpc", d_model=42, **SMALL),
    "torch_gru": replace(variant("v1.0", d_model=42, **SMALL), sampling="v2"),
    "fusion": variant("v2-teacher", d_model=60, **SMALL),
}
every_model = pytest.mark.parametrize("name", SPECS)
every_precision = pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])


@pytest.fixture
def load(monkeypatch):
    """A model on one instruction set and a number of threads."""

    def load(
        spec: ModelSpec, isa: str | None = None, threads: int = 1, precision: str = "fp32"
    ) -> Model:
        if isa:
            monkeypatch.setenv("TESSERA_FAST_ISA", isa)
        weights = untrained_weights(spec, 5)
        plan = RunOptions(precision, threads=threads)
        model = Model(weights, "cpu", cpu.load(spec, weights, plan), plan)
        assert isa in (None, model.provenance()["isa"])
        return model

    return load


def window(seed: int, shape, dates=(11, 6, 5)) -> Observations:
    """Between no and all dates a pixel; a tenth of the pixels lack a stream or both."""
    made = random_window(seed, shape, dates, clear=0.7)
    rng = np.random.default_rng(seed)
    made.s2_masks[:, rng.random(shape) < 0.07] = 0
    for orbit in made.orbits:
        orbit.bands[:] *= 2500
    no_s1 = rng.random(shape) < 0.07
    for orbit in made.orbits:
        orbit.bands[:, no_s1] = 0
    return made


def encode(model: Model, observations: Observations, row0=0, seed=0, repeats=1) -> np.ndarray:
    height, width = observations.shape
    out = np.full((height * width, model.repr_dim), 7, np.float32)
    model.encode(observations, out, row0=row0, seed=seed, repeats=repeats)
    return out.reshape(height, width, -1)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float32 and np.array_equal(a, b, equal_nan=True)


def permuted(observations: Observations, order: np.ndarray) -> Observations:
    """The pixels of a window in another order, as a window of P x 1."""

    def move(a):
        return a.reshape(len(a), -1, 1, *a.shape[3:])[:, order]

    orbits = tuple(replace(o, bands=move(o.bands)) for o in observations.orbits)
    masks = move(observations.s2_masks)
    return replace(
        observations, s2_bands=move(observations.s2_bands), s2_masks=masks, orbits=orbits
    )


@every_isa
@every_model
@every_precision
def test_alone_and_among_many_others(precision, name, isa, load):
    model = load(SPECS[name], isa, 2, precision)
    side = 64 if precision == "fp32" else 24
    tile = window(1, (side, side))
    together = encode(model, tile)
    missing = np.isnan(together).all(-1)
    assert 0 < missing.sum() < missing.size / 10
    assert np.array_equal(missing, np.isnan(together).any(-1))
    alone = load(SPECS[name], isa, 1, precision)
    places = np.random.default_rng(2).integers(0, side, (40, 2))
    for row, column in [(0, 0), (side - 1, side - 1), *places]:
        one = tile.window(slice(row, row + 1), slice(column, column + 1))
        assert same(encode(alone, one)[0, 0], together[row, column])


@every_isa
@every_model
def test_order_of_the_pixels(name, isa, load):
    model, tile = load(SPECS[name], isa, threads=2), window(3, (16, 30))
    together = encode(model, tile).reshape(480, -1)
    for order in (np.arange(480)[::-1], np.random.default_rng(4).permutation(480)):
        assert same(encode(model, permuted(tile, order)).reshape(480, -1), together[order])


@every_isa
@every_model
@every_precision
def test_number_of_threads(precision, name, isa, load):
    tile = window(5, (31, 17) if precision == "fp32" else (13, 17), (40, 30, 30))
    once = encode(load(SPECS[name], isa, 1, precision), tile)
    for threads in (2, 3, 16):
        assert same(encode(load(SPECS[name], isa, threads, precision), tile), once)


@every_isa
@every_model
def test_neighbours_of_any_length(name, isa, load):
    """Short pixels among ones that are cut at 256 dates: other blocks, other groups."""
    model, tile = load(SPECS[name], isa), window(6, (5, 9), (300, 150, 150))
    rng = np.random.default_rng(7)
    tile.s2_masks[rng.random(tile.s2_masks.shape) < np.linspace(0, 1, 9)] = 0
    together = encode(model, tile)
    for row in range(5):
        for columns in (slice(0, 4), slice(4, 9), slice(row, row + 1)):
            part = encode(model, tile.window(slice(row, row + 1), columns))
            assert same(part[0], together[row, columns])


@every_isa
def test_nano_alone_and_among_others(isa, load):
    model, tile = load(released("v2-nano"), isa), window(8, (4, 32))
    together = encode(model, tile)
    for row, column in [(0, 0), (3, 31), (1, 7), (2, 20)]:
        one = tile.window(slice(row, row + 1), slice(column, column + 1))
        assert same(encode(model, one)[0, 0], together[row, column])


# ---- through the pipeline


def memory_for(tile, model: Model, rows: int) -> int:
    """The least memory setting, in bytes, whose bands have this many rows."""

    def rows_at(memory: int) -> int:
        try:
            return block_rows(tile, model, memory)
        except InputError:
            return 0

    return bisect.bisect_left(range(1 << 31), rows, lo=1, key=rows_at)


@pytest.mark.parametrize("name", [*SPECS, "v1.0"])
@pytest.mark.parametrize("threads", [1, 2])
def test_row_bands(name, threads, load):
    spec = SPECS.get(name) or variant("v1.0", d_model=42, **SMALL)
    model = load(spec, threads=threads)
    tile = synthetic_tile(23, 19, seed=2)
    whole = encode(model, tile.rows(0, 23), seed=3)
    counts = None
    for rows in (1, 2, 7, 23):
        bands = embed_rows(tile, model, memory=memory_for(tile, model, rows), seed=3)
        assert [len(b.values) for b in bands[:-1]] == [rows] * (len(bands) - 1)
        assert [b.start for b in bands] == list(range(0, 23, rows))
        assert same(np.concatenate([b.values for b in bands]), whole)
        found = np.concatenate([b.counts for b in bands])
        assert counts is None or np.array_equal(found, counts)
        counts = found
    assert same(encode(load(spec, threads=3), tile.rows(0, 23), seed=3), whole)


def test_columns_of_a_prefix(load):
    model = load(replace(SPECS["softmax"], matryoshka=(4, 8)))
    tile = synthetic_tile(5, 7, seed=1)
    (whole,) = embed_rows(tile, model)
    for dims in (4, 8):
        (prefix,) = embed_rows(tile, model, dims=dims)
        assert same(prefix.values, whole.values[..., :dims])


# ---- v1.0 draws its dates


@pytest.mark.parametrize("base", ["v1.0", "v1.0-qat"])
@every_isa
def test_draws_depend_on_seed_row_and_column(base, isa, load):
    model = load(variant(base, d_model=42, **SMALL), isa, threads=2)
    tile = window(9, (8, 6), (60, 30, 30))
    whole = encode(model, tile, seed=11, row0=100)
    observed = np.isfinite(whole).all(-1)
    assert observed.all()
    for start, stop in ((0, 1), (3, 8)):
        rows = tile.window(slice(start, stop), slice(None))
        assert same(encode(model, rows, seed=11, row0=100 + start), whole[start:stop])
    left = tile.window(slice(None), slice(0, 3))
    assert same(encode(model, left, seed=11, row0=100), whole[:, :3])
    for other in ({"seed": 12, "row0": 100}, {"seed": 11, "row0": 101}):
        changed = (encode(model, tile, **other) != whole).any(-1)
        assert changed.mean() > 0.5
    # the same series in every column: only the draw tells them apart
    repeated = np.broadcast_to(0, 6)
    twin = replace(
        tile,
        s2_bands=tile.s2_bands[:, :, repeated],
        s2_masks=tile.s2_masks[:, :, repeated],
        orbits=tuple(replace(o, bands=o.bands[:, :, repeated]) for o in tile.orbits),
    )
    columns = encode(model, twin)
    assert len(np.unique(columns[0], axis=0)) > 1


def test_repeats_average_the_seeds_that_follow(load):
    model = load(variant("v1.0", d_model=42, **SMALL))
    tile = window(10, (3, 5), (60, 30, 30))
    one = [encode(model, tile, seed=seed) for seed in (4, 5, 6)]
    mean = (one[0] + one[1] + one[2]) / np.float32(3)
    assert same(encode(model, tile, seed=4, repeats=3), mean)
    assert not same(one[0], one[1])
    with pytest.raises(InputError, match="repeats"):
        encode(load(SPECS["softmax"]), tile, repeats=2)
