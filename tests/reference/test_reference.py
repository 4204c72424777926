"""The reference back end: against the official code's outputs, and at its seam."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from golden_cases import CASES, MODEL_INPUT, MODELS, REAL_CROPS, GoldenCase, golden_weights
from oracle import GOLDEN_ATOL, assert_same_codes
from tessera_fast.backends.base import RunOptions
from tessera_fast.backends.reference import reference
from tessera_fast.errors import BackendUnavailable, InputError
from tessera_fast.packing import Observations, Orbit
from tessera_fast.reference import packing
from tessera_fast.spec import released
from windows import small_window

torch = pytest.importorskip("torch")
ops = pytest.importorskip("tessera_fast.reference.ops")

WIDE = 200  # from this width on, fewer pixels of an input keep the suite short


def golden_window(case: GoldenCase, precision: str) -> tuple[slice, slice]:
    """Rows and columns that are compared: all of them, but thinned for wide models."""
    if case.spec.d_model < WIDE:
        return slice(None), slice(None)
    if case.input in REAL_CROPS:
        every = slice(None, None, 2 if precision == "fp32" else 3)
        return every, every
    # the first row of the synthetic tile has its hard pixels
    return slice(2 if precision == "fp64" and case.input == "tile" else None), slice(None)


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden(case, precision):
    def cut(rows_of_pixels):
        if case.input == MODEL_INPUT:
            return rows_of_pixels
        grid = rows_of_pixels.reshape(*case.observations().shape, *rows_of_pixels.shape[1:])
        kept = grid[golden_window(case, precision)]
        return kept.reshape(-1, *rows_of_pixels.shape[1:])

    spec = case.spec
    if case.input == MODEL_INPUT:
        s2, s1 = case.model_input()
    else:
        window = case.observations().window(*golden_window(case, precision))
        s2, s1 = packing.pack(window, spec)
    encoder = reference.load(spec, case.weights(), RunOptions(precision))
    out = np.zeros((s2.pixels, spec.saved_dim))
    encoder.encode(s2, s1, out)
    compared = cut(case.compared())
    assert np.isnan(out[~compared]).all()

    codes, scales = (t.numpy() for t in ops.quantize(torch.from_numpy(out), spec))
    assert (codes[~compared] == 0).all() and np.isinf(scales[~compared]).all()
    for official in ("f32", "f64"):
        expected = cut(case.expected(official))
        assert np.abs(out - expected)[compared].max() <= GOLDEN_ATOL
        official_int8 = case.expected_int8(official)
        if official_int8 is None:
            expected_codes = ops.quantize(torch.from_numpy(expected), spec)[0].numpy()
        else:
            expected_codes = cut(official_int8[0])
            again = ops.quantize(torch.from_numpy(expected), spec)
            assert np.array_equal(again[0].numpy(), expected_codes)
            assert np.array_equal(again[1].numpy(), cut(official_int8[1]))
        assert_same_codes(codes[compared], expected_codes[compared])


def test_pixel_without_a_stream_reads_the_zero_sequence():
    """An absent stream equals tokens that standardise to zero, on day 0, explicitly given."""
    for stem in ("v2_qknorm", "v1_1_mini_aws"):
        spec, weights = MODELS[stem], golden_weights(stem)
        window = small_window(np.float32)
        no_s1 = Observations(window.s2_bands, None, window.s2_doys, (), standardized=True)
        zeros = np.zeros((spec.empty_steps, 1, 2, 2), np.float32)
        zeros[..., 0] = np.finfo(np.float32).tiny  # counts as observed, is zero to the model
        day_0 = (Orbit(0, zeros, np.zeros(spec.empty_steps, np.int32)),)
        with_zeros = Observations(window.s2_bands, None, window.s2_doys, day_0, standardized=True)
        encoder = reference.load(spec, weights, RunOptions("fp64"))
        got = np.zeros((2, 2, spec.saved_dim))
        for out, observations in zip(got, (no_s1, with_zeros), strict=True):
            encoder.encode(*packing.pack(observations, spec), out)
        assert np.isfinite(got).all()
        torch.testing.assert_close(torch.from_numpy(got[0]), torch.from_numpy(got[1]))


def test_prefix_and_output_dtype():
    spec, weights = MODELS["v2_qknorm"], golden_weights("v2_qknorm")
    packed = packing.pack(small_window(), spec)
    encoder = reference.load(spec, weights, RunOptions())
    assert encoder.precision == "fp32"
    full, prefix = np.zeros((2, 128), np.float32), np.zeros((2, 16), np.float32)
    encoder.encode(*packed, full)
    encoder.encode(*packed, prefix)
    assert np.array_equal(prefix, full[:, :16], equal_nan=True)
    assert np.isfinite(full[0]).all() and np.isnan(full[1]).all()
    encoder.close()


@pytest.mark.parametrize(
    "out", [np.zeros((3, 16)), np.zeros((2, 129)), np.zeros((2, 16), np.float16)]
)
def test_encode_refuses_a_wrong_output(out):
    spec = MODELS["v2_qknorm"]
    encoder = reference.load(spec, golden_weights("v2_qknorm"), RunOptions())
    with pytest.raises(InputError, match="out: expected"):
        encoder.encode(*packing.pack(small_window(), spec), out)


def test_encode_refuses_tokens_without_steps_and_streams_that_disagree():
    spec = MODELS["v1_1_mini_aws"]
    encoder = reference.load(spec, golden_weights("v1_1_mini_aws"), RunOptions())
    s2, s1 = packing.pack(small_window(), released("v2-nano"))
    with pytest.raises(InputError, match="steps"):
        encoder.encode(s2, s1, np.zeros((2, 16)))
    one_pixel = packing.pack(small_window().window(slice(1), slice(1)), spec)[1]
    with pytest.raises(InputError, match="pixels"):
        encoder.encode(s2, one_pixel, np.zeros((2, 16)))


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (RunOptions("bf16"), "precision bf16"),
        (RunOptions(device="tpu"), "device tpu"),
        (RunOptions(device="cuda:99"), "device cuda:99"),
    ],
)
def test_why_not(plan, reason):
    spec = MODELS["v2_qknorm"]
    assert reason in reference.why_not(spec, plan)
    with pytest.raises(BackendUnavailable, match=reason):
        reference.load(spec, golden_weights("v2_qknorm"), plan)


def test_why_not_without_torch(monkeypatch):
    spec = MODELS["v2_qknorm"]
    assert reference.why_not(spec, RunOptions("fp64", "cpu")) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "tessera_fast[torch]" in reference.why_not(spec, RunOptions())


def test_threads_are_given_back():
    before = torch.get_num_threads()
    encoder = reference.load(
        MODELS["v2_qknorm"], golden_weights("v2_qknorm"), RunOptions(threads=before + 1)
    )
    encoder.encode(*packing.pack(small_window(), MODELS["v2_qknorm"]), np.zeros((2, 16)))
    assert torch.get_num_threads() == before


def test_the_oracle_imports_nothing_that_it_judges():
    allowed = {
        "errors": {"InputError"},
        "packing": {"Observations", "Orbit", "PackedTokens"},
        "spec": None,
        "": {"ops"},
    }
    for path in Path(packing.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = allowed[node.module or ""]
                assert names is None or {alias.name for alias in node.names} <= names
            elif isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("tessera_fast")
