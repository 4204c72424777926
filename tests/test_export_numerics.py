"""Exported graphs in ONNX Runtime against the official outputs, every model and precision."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx
from golden_cases import CASES, MODEL_INPUT, MODELS, golden_weights
from onnx_models import OnnxModel, graphs
from oracle import assert_golden, assert_reduced

import tessera_fast as tf
from tessera_fast.exports.calibrate import synthetic_ranges
from tessera_fast.exports.form import LAYOUTS, PRECISIONS, Form
from tessera_fast.packing import PackedTokens, pack
from tessera_fast.spec import variant
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.weights.load import untrained_weights

SMALL = [stem for stem, spec in MODELS.items() if spec.d_model <= 144]
NANO = variant("v2-nano", name="mini", d_model=48, ff_dim=80)


def inputs(case) -> tuple[PackedTokens, PackedTokens]:
    if case.input == MODEL_INPUT:
        return case.model_input()
    return pack(case.observations(), case.spec)[:2]


def golden(stem: str, model: OnnxModel) -> tuple[np.ndarray, np.ndarray]:
    """(got, expected) of every input of a model that this layout takes."""
    got, expected = [], []
    for case in [c for c in CASES if c.stem == stem]:
        tokens = inputs(case)
        if model.takes(*tokens):
            observed = case.compared()
            got.append(model.embed(*tokens)[0][observed])
            expected.append(case.expected("f32")[observed])
    if not got:
        pytest.skip(f"{stem} has no golden input of raw integers")
    return np.concatenate(got), np.concatenate(expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stem", MODELS)
def test_fp32_is_the_official_output(stem, layout):
    assert_golden(*golden(stem, OnnxModel(golden_weights(stem), Form("fp32", layout))))


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("stem", MODELS)
def test_reduced_precisions_keep_their_gates(stem, precision):
    weights = golden_weights(stem)
    form = Form(precision, "dense")
    ranges = synthetic_ranges(weights, precision) if form.quantized else None
    got, expected = golden(stem, OnnxModel(weights, form, ranges))
    assert_reduced(got, expected, "bf16" if precision == "fp16" else precision)
