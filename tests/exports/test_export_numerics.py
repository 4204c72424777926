"""Exported graphs in ONNX Runtime against the official outputs, every model and precision."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'tessera_fast[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx

from golden_cases import CASES, MODEL_INPUT, MODELS, golden_observations, golden_weights
from onnx_models import OnnxModel, graphs
from oracle import assert_golden, assert_reduced
from tessera_fast import backends
from tessera_fast.backends.base import RunOptions
from tessera_fast.errors import InputError
from tessera_fast.exports import calibrate
from tessera_fast.exports.calibrate import calibrated_ranges, synthetic_calibration
from tessera_fast.exports.form import LAYOUTS, PRECISIONS, Form
from tessera_fast.exports.graph import DTYPES
from tessera_fast.packing import PackedTokens, pack
from tessera_fast.quantization import quantize
from tessera_fast.spec import variant
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.weights import Weights
from tessera_fast.weights.load import untrained_weights

WIDE = 300  # a pixel of a wider model takes about a second
SMALL = [stem for stem, spec in MODELS.items() if spec.d_model <= 144]


@lru_cache(maxsize=1)
def tensors_of(stem: str) -> Weights:
    """The golden weights, drawn once for the tests of a model that follow each other."""
    weights = golden_weights(stem)
    return replace(weights, tensors={name: weights.tensors[name] for name in weights.tensors})


@lru_cache(maxsize=1)
def int8_ranges(stem: str) -> dict[str, float]:
    """As `synthetic_calibration`, of fewer pixels for a wide model."""
    weights, tile = tensors_of(stem), synthetic_tile(32, 32)
    pixels = 32 if weights.spec.d_model > WIDE else calibrate.PIXELS
    return calibrated_ranges(weights.spec, weights.tensors, tile.rows(0, 32), "int8", pixels)


def ranges_of(stem: str, form: Form) -> dict[str, float] | None:
    """What `synthetic_calibration` gives for the form's precision."""
    if not form.quantized:
        return None
    room = calibrate.HEADROOM[form.precision] / calibrate.HEADROOM["int8"]
    return {name: value * room for name, value in int8_ranges(stem).items()}


def golden(stem: str, model: OnnxModel) -> tuple[np.ndarray, np.ndarray]:
    """(got, expected) of every input of a model that this layout takes: all pixels of a narrow
    model, every fourth row of a wide one."""
    got, expected = [], []
    for case in [c for c in CASES if c.stem == stem]:
        values, observed = case.expected("f32"), case.compared()
        if case.input == MODEL_INPUT:
            tokens = case.model_input()
        else:
            window = case.observations()
            if case.spec.d_model > WIDE:
                rows = slice(None, None, 4)
                keep = np.arange(len(values)).reshape(window.shape)[rows].reshape(-1)
                window, values, observed = (
                    window.window(rows, slice(None)),
                    values[keep],
                    observed[keep],
                )
            tokens = pack(window, case.spec)[:2]
        if model.takes(*tokens):
            got.append(model.embed(*tokens)[0][observed])
            expected.append(values[observed])
    if not got:
        pytest.skip(f"{stem} has no golden input of raw integers")
    return np.concatenate(got), np.concatenate(expected)


FORMS = [
    *(Form("fp32", layout) for layout in LAYOUTS),
    *(Form(precision, "dense") for precision in PRECISIONS[1:]),
]


@pytest.mark.parametrize(
    ("stem", "form"),
    [
        pytest.param(stem, form, id=f"{stem}-{form.precision}-{form.layout}")
        for stem in MODELS
        for form in FORMS
    ],
)
def test_golden(stem, form):
    """fp32 is the official output, the other precisions keep their gates."""
    model = OnnxModel(tensors_of(stem), form, ranges_of(stem, form))
    got, expected = golden(stem, model)
    if form.precision == "fp32":
        assert_golden(got, expected)
    else:
        assert_reduced(got, expected, "bf16" if form.precision == "fp16" else form.precision)


def reference(weights, *tokens: PackedTokens) -> np.ndarray:
    out = np.full((tokens[0].pixels, weights.spec.saved_dim), np.nan, np.float32)
    backends.get("reference").load(weights.spec, weights, RunOptions("fp32")).encode(*tokens, out)
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("base", ["v2-nano", "v1.1-mpc", "v1.0", "v1.0-qat"])
def test_real_dates_and_streams_without_any(base, layout):
    """Raw integers of every generation, with pixels that lack one stream, or both."""
    spec = variant(base, name="mini", d_model=64, num_layers=2, ff_dim=80)
    weights = untrained_weights(spec)
    s2, s1, counts = pack(emptied(synthetic_tile(5, 7).rows(0, 5)), spec)
    if spec.sampling != "v1.0":  # which draws from dates without an observation too
        for stream, tokens in ((counts[:, 0], s2), (counts[:, 1:].sum(1), s1)):
            assert (np.diff(tokens.offsets) == 0).any() and (stream == 0).any()
    model = OnnxModel(weights, Form("fp32", layout))
    expected = reference(weights, s2, s1)
    observed = np.isfinite(expected).all(axis=1)
    assert_golden(model.embed(s2, s1)[0][observed], expected[observed])


def emptied(window):
    """The first row without Sentinel-2, the second without Sentinel-1."""
    masks = window.s2_masks.copy()
    masks[:, 0] = 0
    orbits = []
    for orbit in window.orbits:
        bands = orbit.bands.copy()
        bands[:, 1] = 0
        orbits.append(replace(orbit, bands=bands))
    return replace(window, s2_masks=masks, orbits=tuple(orbits))


@pytest.mark.parametrize("stem", ["v2_nano", "v1_1_mini_aws"])
def test_int8_output_is_the_quantised_embedding(stem):
    weights = golden_weights(stem)
    spec = weights.spec
    s2, s1, _ = pack(golden_observations("tile"), spec)
    floats = OnnxModel(weights, Form())
    pooled = floats.pooled("s2", s2), floats.pooled("s1", s1)
    codes, scales = OnnxModel(weights, Form(int8_output=True)).head(*pooled)
    expected = quantize(
        floats.head(*pooled)[0], absmax_floor=spec.absmax_floor, scale_floor=spec.scale_floor
    )
    assert codes.dtype == np.int8 and np.array_equal(codes, expected.codes)
    assert scales.dtype == np.float32 and np.array_equal(scales, expected.scales)


@pytest.mark.parametrize("int8", [False, True])
def test_dims_cuts_before_quantising(int8):
    weights = golden_weights("v2_nano")
    s2, s1, _ = pack(golden_observations("tile"), weights.spec)
    whole = OnnxModel(weights, Form())
    pooled = whole.pooled("s2", s2), whole.pooled("s1", s1)
    short = OnnxModel(weights, Form(dims=32, int8_output=int8)).head(*pooled)
    prefix = whole.head(*pooled)[0][:, :32]
    expected = tuple(quantize(prefix)) if int8 else (prefix,)
    for got, values in zip(short, expected, strict=True):
        assert np.array_equal(got, values)


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_what_a_processor_runs_as_it_is(precision):
    """Without the emulation: ONNX Runtime's own kernels, optimisations and casts."""
    weights = golden_weights("v2_nano")
    form = Form(precision)
    ranges = synthetic_calibration(weights, precision).ranges if form.quantized else None
    model = OnnxModel(weights, form, ranges, as_is=True)
    s2, s1, _ = pack(golden_observations("tile"), weights.spec)
    expected = OnnxModel(weights, Form()).embed(s2, s1)[0]
    gate = "bf16" if precision == "fp16" else precision
    assert_reduced(model.embed(s2, s1)[0], expected, gate)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    return types | {t.name: t.data_type for t in graph.initializer}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stem", SMALL)
def test_graphs_are_valid_and_typed(stem, precision, layout):
    """The products of the layers have the type that was asked for; opset 23's checker agrees."""
    weights = golden_weights(stem)
    spec, form = weights.spec, Form(precision, layout)
    every = {f"{n}": 1.0 for n in linears(spec)}
    made = graphs(weights, form, every if form.quantized else None)
    wanted = DTYPES[form.compute]
    for part, model in made.items():
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]
        types = element_types(model)
        products = [n for n in model.graph.node if n.op_type == "MatMul"]
        narrow = [n for n in products if types[n.output[0]] == wanted]
        exact = [n for n in products if types[n.output[0]] == DTYPES["fp32"]]
        assert len(narrow if form.compute != "fp32" else exact) >= spec.num_layers or part == "head"
        assert len({n.name for n in (*narrow, *exact)}) == len(products)
        if part == "head":
            continue
        fused = [n for n in model.graph.node if n.op_type == "Attention"]
        assert len(fused) == (spec.num_layers if form.standard_attention(spec) else 0)
        coded = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
        # of every layer linear1, linear2 and the input's projection, but for post-norm's first
        projections = 3 if spec.qk_norm else 1
        quantized = spec.num_layers * (2 + projections) - (0 if spec.pre_norm else projections)
        assert len(coded) == (quantized if form.quantized else 0)
        for node in coded:
            assert types[node.output[0]] == DTYPES[form.quantized]


def linears(spec) -> list[str]:
    """Names of every linear of the encoder layers."""
    names = [n for n in spec.parameter_shapes() if "transformer_encoder" in n]
    return [n.removesuffix(".weight").removesuffix("_weight") for n in names if "weight" in n]


def test_weights_have_a_scale_per_output_channel():
    weights = golden_weights("v2_nano")
    ranges = synthetic_calibration(weights, "int8").ranges
    model = graphs(weights, Form("int8"), ranges)["s2"]
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    name = "s2_backbone.transformer_encoder.layers.0.linear1.weight"
    codes, scales = tensors[f"{name}.codes"], tensors[f"{name}.scales"]
    original = weights.tensors[name].T
    assert codes.dtype == np.int8 and scales.shape == (original.shape[1],)
    assert (np.abs(codes).max(axis=0) == 127).all()
    assert (np.abs(codes * scales - original) <= scales * np.float32(0.5001)).all()


def test_a_parameter_beyond_float16_is_refused():
    weights = golden_weights("v2_qknorm")
    name = "s1_backbone.transformer_encoder.0.linear1.weight"
    tensors = {**weights.tensors, name: weights.tensors[name] * np.float32(1e6)}
    wide = replace(weights, tensors=tensors)
    with pytest.raises(InputError, match=r"linear1.weight has a value of .* export bf16"):
        graphs(wide, Form("fp16"))
    graphs(wide, Form("bf16"))


def test_a_missing_range_is_refused():
    with pytest.raises(InputError, match=r"int8: no calibrated range for s2_backbone.*linear1"):
        graphs(golden_weights("v2_qknorm"), Form("int8"), {})
