"""bf16 and int8 of the cpu back end: the gates against the official fp32 outputs, and "auto"."""

from functools import lru_cache

import numpy as np
import pytest

import tessera_fast as tf
from encoded import encode
from golden_cases import CASES, MODEL_INPUT, MODELS, golden_weights
from isas import BEST, ISAS, every_isa
from oracle import assert_reduced
from tessera_fast import _cpu
from tessera_fast.backends.base import Encoder, RunOptions
from tessera_fast.backends.cpu import cpu
from tessera_fast.errors import BackendUnavailable
from tessera_fast.packing import pack

PRECISIONS = ("bf16", "int8")


@pytest.fixture
def force(monkeypatch):
    return lambda isa: monkeypatch.setenv("TESSERA_FAST_ISA", isa)


@lru_cache(maxsize=1)
def encoder(stem: str, isa: str, precision: str) -> Encoder:
    """Called with ``isa`` forced."""
    made = cpu.load(MODELS[stem], golden_weights(stem), RunOptions(precision, threads=2))
    assert made.provenance["isa"] == isa and made.precision == precision
    return made


def by_model() -> list:
    """(stem, precision, isa), those of one model side by side: its weights are drawn once."""
    return [
        pytest.param(
            stem, precision, *isa.values, marks=isa.marks, id=f"{stem}-{precision}-{isa.values[0]}"
        )
        for stem in MODELS
        for isa in ISAS
        for precision in PRECISIONS
        if isa.values[0] == BEST or MODELS[stem].d_model < 200
    ]


@pytest.mark.parametrize(("stem", "precision", "isa"), by_model())
def test_gate(stem, precision, isa, force):
    """Over all inputs together: a share of 0.1 % means nothing among a small input's codes."""
    force(isa)
    got, expected = [], []
    for case in [c for c in CASES if c.stem == stem]:
        values, observed = case.expected("f32"), case.compared()
        model_input = case.input == MODEL_INPUT
        tokens = case.model_input() if model_input else pack(case.observations(), case.spec)
        out = encode(encoder(stem, isa, precision), case.spec, tokens)
        assert np.isnan(out[~observed]).all()
        got.append(out[observed])
        expected.append(values[observed])
    assert_reduced(np.concatenate(got), np.concatenate(expected), precision)


@every_isa
def test_auto_is_bf16_where_there_are_instructions_for_it(isa, force):
    force(isa)
    model = tf.load_model("v2-nano", weights="untrained")
    assert model.precision == ("bf16" if isa in ("amx", "avx512bf16", "neonbf16") else "fp32")
    assert model.provenance()["precision"] == model.precision
    assert _cpu.native_bf16(isa) == (model.precision == "bf16")


def test_other_precisions_are_refused():
    with pytest.raises(BackendUnavailable, match="fp32, bf16, int8, not fp8"):
        tf.load_model("v2-nano", weights="untrained", backend="cpu", precision="fp8")
