"""Float to int8 and back: the rule, and the native op bit for bit."""

import numpy as np
import pytest

import tessera_fast as tf
from golden_cases import CASES
from isas import every_isa
from tessera_fast import _cpu
from tessera_fast.errors import InputError
from tessera_fast.spec import RELEASED

FLOORS = [(1e-12, 0.0), (0.0, 1e-8)]  # of v2 and of v1.x
NO_DATA = np.float32(np.inf)


def test_the_floors_are_those_of_the_models():
    assert {(s.absmax_floor, s.scale_floor) for s in RELEASED.values()} == set(FLOORS)


def test_halves_round_to_even():
    codes, scales = tf.quantize(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127]]))
    assert codes.dtype == np.int8 and scales.dtype == np.float32
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]] and scales.tolist() == [1]


def test_floors():
    """v2 floors the largest value, v1.x the scale."""
    for absmax, code in ((1e-12, 127), (5e-13, 64), (1e-14, 1), (0.0, 0)):
        codes, scales = tf.quantize(np.full((1, 3), absmax))
        assert codes.tolist() == [[code] * 3]
        assert scales[0] == np.float32(1e-12) / np.float32(127)
    for absmax, code in ((1.27e-6, 127), (1e-8, 1), (6e-9, 1), (1e-9, 0)):
        codes, scales = tf.quantize(np.full((1, 3), absmax), absmax_floor=0, scale_floor=1e-8)
        assert codes.tolist() == [[code] * 3] and scales[0] == np.float32(1e-8)
    codes, scales = tf.quantize(np.full((1, 3), 2e-6), absmax_floor=0, scale_floor=1e-8)
    assert codes.tolist() == [[127] * 3] and scales[0] == np.float32(2e-6) / np.float32(127)


def test_no_data_is_code_0_and_scale_infinity_and_comes_back_as_nan():
    e = np.ones((2, 3, 4), np.float32)
    e[0, 1, 2] = np.nan
    e[1, 2] = np.nan
    got = tf.quantize(e)
    missing = np.isnan(e).any(-1)
    assert missing.sum() == 2
    assert (got.scales == NO_DATA).tolist() == missing.tolist() and not got.codes[missing].any()
    back = tf.dequantize(*got)
    assert np.isnan(back[missing]).all() and np.isfinite(back[~missing]).all()


def test_dequantize_is_the_product():
    e = np.random.default_rng(0).standard_normal((5, 7, 16)).astype(np.float32)
    codes, scales = tf.quantize(e)
    back = tf.dequantize(codes, scales)
    assert back.dtype == np.float32 and back.shape == e.shape
    assert np.array_equal(back, codes * scales[..., None])
    assert (np.abs(back - e) <= scales[..., None]).all()
    assert (np.abs(codes).max(-1) == 127).all()
    again = tf.quantize(back)
    assert np.array_equal(again.codes, codes)


def test_prefix_of_codes_with_the_same_scales_is_a_prefix_of_the_values():
    codes, scales = tf.quantize(np.random.default_rng(1).standard_normal((9, 128)))
    whole = tf.dequantize(codes, scales)
    assert np.array_equal(tf.dequantize(codes[:, :16], scales), whole[:, :16])


@pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 0, 4), (1, 1, 1, 4)])
def test_any_leading_shape(shape):
    codes, scales = tf.quantize(np.ones(shape))
    assert codes.shape == shape and scales.shape == shape[:-1]
    assert tf.dequantize(codes, scales).shape == shape


@pytest.mark.parametrize("bad", [np.float32(1), np.ones((3, 0))])
def test_quantize_refuses_an_array_without_dimensions(bad):
    with pytest.raises(InputError, match=r"embeddings: expected \(\.\.\., E\)"):
        tf.quantize(bad)


@pytest.mark.parametrize(
    ("codes", "scales"),
    [
        (np.ones((2, 3)), np.ones(2)),
        (np.ones((2, 3), np.uint8), np.ones(2)),
        (np.ones((2, 3), np.int8), np.ones(3)),
        (np.ones((2, 3), np.int8), np.ones((2, 1))),
        (np.int8(3), np.float32(1)),
    ],
)
def test_dequantize_refuses_what_does_not_belong_together(codes, scales):
    with pytest.raises(InputError, match="dequantize: expected int8 codes"):
        tf.dequantize(codes, scales)


# ---- the native op


def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    normal = rng.standard_normal((400, 128)).astype(np.float32)
    sizes = np.geomspace(1e-44, 3e38, 400).astype(np.float32)[:, None]
    # every code + 1/2 with a scale of exactly 1, 2^-20 and 2^20, and its neighbours in float32
    half = np.arange(-127, 127).astype(np.float32) + np.float32(0.5)
    half = np.concatenate([[127], half, np.nextafter(half, NO_DATA), np.nextafter(half, -NO_DATA)])
    powers = np.array([[1], [2**-20], [2**20]], np.float32)
    # the same next to the ties of any scale: multiplying by 1 / scale would take other sides
    absmax = rng.uniform(0.5, 2, (200, 1)).astype(np.float32)
    ties = (np.arange(-127, 127) + 0.5) * (absmax / np.float32(127)).astype(np.float64)
    near = ties.astype(np.float32)
    near = np.hstack([absmax, near, np.nextafter(near, NO_DATA), np.nextafter(near, -NO_DATA)])
    holes = normal[:50].copy()
    holes[rng.random(holes.shape) < 1 / 256] = np.nan
    return {
        "random": normal,
        "every magnitude": normal / np.abs(normal).max() * sizes,
        "denormals": (normal[:50] * np.float32(1e-42)).astype(np.float32),
        "exact ties": half.astype(np.float32) * powers,
        "near ties": near,
        "missing": holes,
        "zeros": np.array([[0.0, -0.0, 0.0]], np.float32),
        "largest numbers": np.array([[3.4028235e38, -3.4028235e38, 1]], np.float32),
        "no rows": np.zeros((0, 5), np.float32),
    }


@every_isa
@pytest.mark.parametrize("floors", FLOORS)
@pytest.mark.parametrize("kind", rows())
def test_native_equals_numpy_bit_for_bit(isa, floors, kind):
    values = rows()[kind]
    for width in (1, 2, 3, 7, 15, 16, 17, 33, 64, None):
        e = np.ascontiguousarray(values[:, :width])
        expected = tf.quantize(e, absmax_floor=floors[0], scale_floor=floors[1])
        codes, scales = _cpu.quantize(e, *floors, isa)
        assert codes.dtype == np.int8 and np.array_equal(codes, expected.codes)
        assert scales.dtype == np.float32
        assert np.array_equal(scales.view(np.uint32), expected.scales.view(np.uint32))


@every_isa
def test_native_refuses_other_arrays(isa):
    for bad in (np.zeros((2, 3)), np.zeros(3, np.float32), np.zeros((3, 2), np.float32).T, [[1.0]]):
        with pytest.raises(InputError, match="embeddings: expected"):
            _cpu.quantize(bad, 0.0, 0.0, isa)


# ---- the published format


OFFICIAL = [case for case in CASES if case.stem.startswith("v1_1")]


@pytest.mark.parametrize("case", OFFICIAL, ids=str)
def test_official_codes_and_scales_are_reproduced_exactly(case):
    floors = {"absmax_floor": case.spec.absmax_floor, "scale_floor": case.spec.scale_floor}
    for precision in ("f32", "f64"):
        got = tf.quantize(case.expected(precision), **floors)
        codes, scales = case.expected_int8(precision)
        assert np.array_equal(got.codes, codes) and np.array_equal(got.scales, scales)
