"""The cpu back end of every instruction set: the official outputs, and the reference elsewhere."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

import tessera_fast as tf
from encoded import encode
from golden_cases import CASES, MODEL_INPUT, MODELS, REAL_CROPS, GoldenCase, golden_weights
from isas import BEST, ISAS, RUNNABLE, every_isa
from oracle import assert_golden, assert_same_codes
from tessera_fast import _cpu
from tessera_fast.backends.base import Encoder, RunOptions
from tessera_fast.backends.cpu import cpu
from tessera_fast.errors import BackendUnavailable
from tessera_fast.packing import Observations, PackedTokens, pack
from tessera_fast.spec import STATISTICS, ModelSpec
from tessera_fast.weights import Weights, untrained_weights
from windows import random_window

EVERYTHING = (slice(None), slice(None))
WIDE = 200  # from this width on, the slower instruction sets run fewer pixels


@pytest.fixture
def force(monkeypatch):
    """Choose the instruction set as a user does."""

    def choose(isa: str) -> None:
        monkeypatch.setenv("TESSERA_FAST_ISA", isa)

    return choose


@lru_cache(maxsize=1)
def golden_encoder(stem: str, isa: str) -> Encoder:
    """Called with ``isa`` forced; CASES are in the order of the models, so one is kept."""
    encoder = cpu.load(MODELS[stem], golden_weights(stem), RunOptions("fp32", threads=2))
    assert encoder.provenance["isa"] == isa
    return encoder


def window(case: GoldenCase, isa: str) -> tuple[slice, slice]:
    """Rows and columns that are compared: all on the best instruction set. On the others a wide
    model takes minutes, and the op tests cover what differs: a few pixels of every input do."""
    if isa == BEST or case.spec.d_model < WIDE:
        return EVERYTHING
    if case.input in REAL_CROPS:
        return slice(None, None, 4), slice(None, None, 4)
    if case.input == "tile":
        return slice(1), slice(None)  # the hard pixels
    return slice(2), slice(2)


def by_model() -> list:
    """(case, isa), the instruction sets of one model side by side: its weights are drawn once."""
    stems = {case.stem: [c for c in CASES if c.stem == case.stem] for case in CASES}
    return [
        pytest.param(case, *isa.values, marks=isa.marks, id=f"{case}-{isa.values[0]}")
        for cases in stems.values()
        for isa in ISAS
        for case in cases
    ]


@pytest.mark.parametrize(("case", "isa"), by_model())
def test_golden(case, isa, force):
    spec = case.spec
    expected = {name: case.expected(name) for name in ("f32", "f64")}
    observed, codes = case.compared(), {name: case.expected_int8(name) for name in expected}
    if case.input == MODEL_INPUT:
        tokens, kept = case.model_input(), np.arange(len(observed))
    else:
        cut = window(case, isa)
        tokens = pack(case.observations().window(*cut), spec)
        shape = case.observations().shape
        kept = np.arange(len(observed)).reshape(shape)[cut].reshape(-1)
    observed = observed[kept]

    force(isa)
    got = encode(golden_encoder(case.stem, isa), spec, tokens)
    got_codes, got_scales = _cpu.quantize(got, spec.absmax_floor, spec.scale_floor, isa)
    assert np.isnan(got[~observed]).all()
    assert not got_codes[~observed].any() and np.isposinf(got_scales[~observed]).all()
    assert observed.any()
    for name, values in expected.items():
        assert_golden(got[observed], values[kept][observed])
        if codes[name] is None:
            floors = {"absmax_floor": spec.absmax_floor, "scale_floor": spec.scale_floor}
            official = tf.quantize(values, **floors).codes
        else:
            official = codes[name][0]
        assert_same_codes(got_codes[observed], official[kept][observed])


def test_every_golden_model_and_input_is_there():
    assert {case.stem for case in CASES} == set(MODELS) and len(MODELS) == 10
    assert len(CASES) == 6 * 5 + 2 * 4 + 2


# ---- other shapes and seeds


def random_spec(seed: int) -> ModelSpec:
    """A small model of odd sizes; every option of ModelSpec occurs among the first dozen seeds."""
    rng = np.random.default_rng(seed)
    head_dim = (36, 110, 20, 14, 2, 6)[seed % 6]
    fusion = seed % 4 == 1  # its four heads divide the width, so the encoder has four here
    heads = 4 if fusion else min((8, 1, 3, 4, 2, 5, 7)[seed % 7], 300 // head_dim)
    out_dim = int(rng.integers(3, 70))
    return ModelSpec(
        name=f"random-{seed}",
        d_model=heads * head_dim,
        num_layers=1 + seed % 2,
        num_heads=heads,
        ff_dim=int(rng.integers(1, 90)) * 2 + 1,
        out_dim=out_dim,
        saved_dim=int(rng.integers(1, out_dim + 1)),
        statistics=list(STATISTICS.values())[seed % len(STATISTICS)],
        sampling=("v2", "v1.1", "v1.0")[seed % 3],
        pre_norm=fusion,
        qk_norm=fusion or seed % 4 == 2,
        pooling=("softmax", "custom_gru", "torch_gru")[seed // 2 % 3],
        reducer=("mlp", "linear")[seed // 3 % 2],
        final_norm=bool(seed % 5 % 2),
        fusion_layers=2 if fusion else 0,
        dummy_orbit=seed % 2 == 0,
    )


def random_observations(seed: int) -> Observations:
    """35 pixels, the first six without Sentinel-2, without Sentinel-1 or without either; every
    fourth seed has pixels of more than 256 dates."""
    dates = (300, 150, 160) if seed % 4 == 3 else (20, 12, 7)
    made = random_window(seed, (5, 7), dates, clear=0.9, s2_dtype=np.uint16)
    made.s2_masks[:, 0, :4] = 0
    orbits = tuple(replace(o, bands=o.bands * np.int16(2500)) for o in made.orbits)
    for orbit in orbits:
        orbit.bands[:, 0, 2:6] = 0
    return replace(made, orbits=orbits)


SPECS = [random_spec(seed) for seed in range(18)]


@lru_cache(maxsize=1)
def judged(spec: ModelSpec) -> tuple[Weights, tuple[PackedTokens, ...], np.ndarray]:
    """Weights, tokens and what the reference makes of them in float64."""
    pytest.importorskip("torch")
    from tessera_fast.backends.reference import reference

    seed = int(spec.name.removeprefix("random-"))
    weights = untrained_weights(spec, seed + 100)
    tokens = pack(random_observations(seed), spec, seed=seed)
    out = np.zeros((tokens[0].pixels, spec.saved_dim))
    reference.load(spec, weights, RunOptions("fp64", threads=1)).encode(tokens[0], tokens[1], out)
    return weights, tokens, out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_equals_the_reference(spec, isa, force):
    weights, tokens, expected = judged(spec)
    force(isa)
    got = encode(cpu.load(spec, weights, RunOptions("fp32", threads=2)), spec, tokens)
    observed = ~np.isnan(expected).any(-1)
    assert np.isnan(got[~observed]).all()
    assert_golden(got[observed], expected[observed])


def test_the_random_models_have_every_option():
    for field, values in {
        "sampling": 3,
        "pooling": 3,
        "reducer": 2,
        "pre_norm": 2,
        "qk_norm": 2,
        "final_norm": 2,
        "dummy_orbit": 2,
    }.items():
        assert len({getattr(spec, field) for spec in SPECS}) == values, field
    assert {1, 2, 4, 8} <= {spec.num_heads for spec in SPECS}
    assert {36, 110, 20, 14} <= {spec.head_dim for spec in SPECS}


# ---- the seam


@every_isa
def test_prefix(isa, force):
    """Fewer columns of ``out`` are the first dimensions, bit for bit."""
    spec = MODELS["v2_qknorm"]
    tokens = pack(random_window(0, (4, 4)), spec)
    force(isa)
    encoder = cpu.load(spec, untrained_weights(spec), RunOptions("fp32", threads=1))
    whole, prefix = np.empty((16, 128), np.float32), np.empty((16, 3), np.float32)
    encoder.encode(*tokens[:2], whole)
    encoder.encode(*tokens[:2], prefix)
    assert np.array_equal(prefix, whole[:, :3], equal_nan=True)


def test_the_forced_instruction_set_runs_or_raises(force):
    spec = MODELS["v2_qknorm"]
    for name, runs, needs, _ in _cpu.isas():
        force(name)
        assert (cpu.why_not(spec, RunOptions()) is None) == runs
        if not runs:
            with pytest.raises(BackendUnavailable, match=f"TESSERA_FAST_ISA.*{needs}"):
                cpu.load(spec, untrained_weights(spec), RunOptions())
    force("avx1024")
    with pytest.raises(BackendUnavailable, match=r"TESSERA_FAST_ISA.*avx1024"):
        tf.load_model("v2-nano", weights="untrained")
    assert RUNNABLE and BEST in RUNNABLE
