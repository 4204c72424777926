"""Ops on bfloat16 and int8 of every instruction set against exact arithmetic on the same values.

What is rounded is rounded here in numpy; what is left are the float32 sums.
"""

import itertools

import numpy as np
import pytest

from cpu_arrays import DATES, SIZES, Fenced, attention, attention_input, normal, placed, wide
from isas import every_isa
from oracle import INT8_RTOL, assert_op, assert_reduced_op, assert_rounded
from tessera_fast import _cpu
from tessera_fast.errors import InputError

ops = _cpu.ops
ELEMENTS = ("bf16", "int8")
every_element = pytest.mark.parametrize("element", ELEMENTS)


def bf16(x: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, half to even, as float32."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def int8_weight(weight: np.ndarray) -> np.ndarray:
    """Rows as codes times the row's scale: codes in float32, as they are made at load."""
    scale = (np.abs(weight) / np.float32(127)).max(-1, keepdims=True)
    return np.rint(weight / scale).astype(np.float64) * scale


def int8_input(isa: str, x: np.ndarray, nonnegative: bool) -> np.ndarray:
    """What an int8 linear reads of x; test_convert_to_int8 judges it."""
    stored, scales = ops.convert(isa, x, "int8", nonnegative)
    return codes_of(isa, stored, x.shape[1], nonnegative) * scales[:, None].astype(np.float64)


class FencedBf16:
    """Like Fenced, of (M, N) bfloat16 rows of whole words: an odd N has one element of padding."""

    def __init__(self, M: int, N: int) -> None:
        self.odd = N % 2
        self._bits = np.full((M + 2, N + self.odd + 20), 0x7FC1, np.uint16)
        self.view = self._bits[1:-1, 4 : 4 + N]
        self._inside = np.zeros(self._bits.shape, bool)
        self._inside[1:-1, 4 : 4 + N + self.odd] = True

    def result(self) -> np.ndarray:
        assert (self._bits[~self._inside] == 0x7FC1).all(), "written outside the output"
        if self.odd:
            assert not self._bits[1:-1, 4 + self.view.shape[1]].any(), "padding is not 0"
        return (self.view.astype(np.uint32) << 16).view(np.float32)


# ---- convert


@every_isa
@pytest.mark.parametrize("K", [*SIZES, 33, 64, 257])
def test_convert_to_bf16(isa, K):
    rng = np.random.default_rng(K)
    x = normal(rng, 5, K) * np.array([[0], [1], [1e30], [1e-30], [3e38 / 8]], np.float32)
    halfway = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32)
    x.reshape(-1)[:4] = halfway.view(np.float32)[: x.size]
    stored, scale = ops.convert(isa, placed(x), "bf16")
    assert scale is None
    stored = stored.view(np.uint16)
    assert np.array_equal(stored[:, :K], bf16(x).view(np.uint32) >> 16)
    assert not stored[:, K:].any() and stored.shape[1] == K + K % 2


@every_isa
def test_convert_keeps_nan_and_infinity(isa):
    bits = np.array([[0x7FFFFFFF, 0xFFC00000, 0x7F800000, 0xFF800000]], np.uint32)
    stored, _ = ops.convert(isa, bits.view(np.float32), "bf16")
    values = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(values[0, :2]).all() and np.isposinf(values[0, 2]) and np.isneginf(values[0, 3])
    for bad in (np.nan, np.inf):
        x = np.ones((2, 9), np.float32)
        x[1, 7] = bad
        _, scales = ops.convert(isa, x, "int8")
        assert np.isfinite(scales[0]) and np.isnan(scales[1])


def codes_of(isa: str, stored: np.ndarray, K: int, nonnegative: bool) -> np.ndarray:
    """Stored int8 rows as integers: bytes with 128 added, or int16 (kernel_table.h)."""
    if ops.int8_group(isa) == 2:
        return stored.view(np.int16)[:, :K].astype(int)
    return stored[:, :K].astype(int) - (0 if nonnegative else 128)


@every_isa
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("K", [*SIZES[1:], 33, 64, 257])
def test_convert_to_int8(isa, K, nonnegative):
    rng = np.random.default_rng(K)
    x = normal(rng, 6, K) * np.array([[0], [1], [1e20], [1e-20], [7], [0.1]], np.float32)
    if nonnegative:
        x = np.maximum(x, 0)
    stored, scales = ops.convert(isa, placed(x), "int8", nonnegative)
    codes = codes_of(isa, stored, K, nonnegative)
    largest = 255 if nonnegative else 127
    assert codes.min() >= (0 if nonnegative else -127) and codes.max() <= largest
    rows = np.abs(x).max(-1) > 0
    assert (np.abs(codes[rows]).max(-1) == largest).all() and not codes[~rows].any()
    exact = x.astype(np.float64)
    top = np.abs(exact).max(-1, keepdims=True)
    error = np.abs(codes * scales[:, None].astype(np.float64) - exact)
    # a hair more than half a code: the scale and its inverse are float32
    assert (error <= (1 + INT8_RTOL) * 127 / largest * INT8_RTOL * top).all()


# ---- linear


def check_linear(
    isa,
    element,
    rng,
    M,
    K,
    N,
    *,
    bias=True,
    residual=False,
    relu=False,
    nonnegative=False,
    half=False,
):
    x, weight, b, r = normal(rng, M, K), normal(rng, N, K), normal(rng, N), normal(rng, M, N)
    if nonnegative:
        x = np.maximum(x, 0)
    out = FencedBf16(M, N) if half else Fenced(M, N, r if residual else None)
    ops.linear(
        isa,
        placed(x),
        weight,
        b if bias else None,
        out.view if residual else None,
        relu,
        out.view,
        element,
        nonnegative,
    )
    if element == "bf16":
        x, weight = wide(bf16(x), bf16(weight))
    else:
        x, weight = int8_input(isa, x, nonnegative), int8_weight(weight)
    expected, terms = x @ weight.T, np.abs(x) @ np.abs(weight.T)
    expected, terms = expected + b * bias + r * residual, terms + np.abs(b) + np.abs(r)
    expected = np.maximum(expected, 0) if relu else expected
    if half:
        assert_rounded(out.result(), expected, float(terms.max()))
    else:
        assert_op(out.result(), expected, float(terms.max()))


@every_isa
@every_element
def test_linear_shapes(isa, element):
    rng = np.random.default_rng(0)
    rows = itertools.cycle(SIZES)
    for K, N in itertools.product((*SIZES, 64), (*SIZES, 33)):
        check_linear(isa, element, rng, next(rows), K, N)


@every_isa
@every_element
@pytest.mark.parametrize("M", [1, 15, 16, 17, 31, 32, 33, 63, 64, 100])
def test_linear_rows_and_depths_about_a_tile(isa, element, M):
    rng = np.random.default_rng(M)
    for K in (31, 32, 33, 34, 62, 63, 64, 65, 127, 128, 129):
        check_linear(isa, element, rng, M, K, 40)


@every_isa
@every_element
@pytest.mark.parametrize("N", [1, 7, 16, 33, 144])
def test_linear_options(isa, element, N):
    rng = np.random.default_rng(1)
    for M, bias, relu, nonnegative in itertools.product(
        (1, 2, 5, 13, 25), (True, False), (True, False), (True, False)
    ):
        for half, residual in ((False, False), (False, True), (True, False)):
            check_linear(
                isa,
                element,
                rng,
                M,
                36,
                N,
                bias=bias,
                relu=relu,
                residual=residual,
                nonnegative=nonnegative,
                half=half,
            )


@every_isa
@every_element
@pytest.mark.parametrize("K", [44, 110])
def test_linear_rows_do_not_depend_on_their_neighbours(isa, element, K):
    rng = np.random.default_rng(2)
    x, weight, bias = normal(rng, 70, K), normal(rng, 45, K), normal(rng, 45)
    together = np.empty((70, 45), np.float32)
    ops.linear(isa, x, weight, bias, None, False, together, element)
    for first in range(70):
        for last in (first + 1, min(first + 20, 70), 70):
            part = np.empty((last - first, 45), np.float32)
            ops.linear(isa, x[first:last], weight, bias, None, False, part, element)
            assert np.array_equal(part, together[first:last])


@every_isa
def test_int8_sums_are_exact(isa):
    """Codes of 127 (255) everywhere, to the widest feed-forward layer: no sum saturates."""
    for nonnegative, sign in itertools.product((True, False), (1, -1)):
        x = np.full((2, 16384), 1 if nonnegative else sign, np.float32)
        weight = np.full((3, 16384), -1, np.float32)
        y = np.empty((2, 3), np.float32)
        ops.linear(isa, x, weight, None, None, False, y, "int8", nonnegative)
        assert_op(y, x.astype(np.float64) @ weight.T)


@every_isa
def test_int8_rows_of_zeros(isa):
    x, weight = np.zeros((2, 7), np.float32), np.ones((3, 7), np.float32)
    weight[1] = 0
    x[1] = 2
    y = np.full((2, 3), 9, np.float32)
    ops.linear(isa, x, weight, np.float32([1, 2, 3]), None, False, y, "int8")
    assert np.array_equal(y[0], [1, 2, 3]) and y[1, 1] == 2


def test_elements_are_refused_by_name():
    x = np.zeros((1, 1), np.float32)
    with pytest.raises(InputError, match="fp32, bf16 or int8, got fp8"):
        ops.linear("portable", x, x, None, None, False, x, "fp8")


# ---- attention


@every_isa
@pytest.mark.parametrize("T", DATES)
@pytest.mark.parametrize(
    ("heads", "head_dim"), [(1, 1), (3, 5), (4, 36), (2, 64), (2, 110), (1, 160), (8, 14)]
)
def test_bf16_attention(isa, T, heads, head_dim):
    qkv, multiplicities = attention_input(T, heads, head_dim)
    D = heads * head_dim
    for multiplicity in multiplicities:
        out = Fenced(T, D)
        ops.attention(
            isa, placed(qkv), heads, np.log(multiplicity.astype(np.float32)), out.view, "bf16"
        )
        values = float(np.abs(qkv[:, 2 * D :]).max())
        assert_reduced_op(out.result(), attention(bf16(qkv), heads, multiplicity), values)


@every_isa
def test_bf16_attention_of_very_peaked_logits(isa):
    rng = np.random.default_rng(5)
    qkv = normal(rng, 63, 3 * 64)
    qkv[:, :128] = rng.integers(-40, 41, (63, 128))
    qkv[0, :64], qkv[0, 64:128] = 40, 40
    qkv[1, 64:128] = -40
    out = Fenced(63, 64)
    ops.attention(isa, placed(qkv), 1, np.zeros(63, np.float32), out.view, "bf16")
    values = float(np.abs(qkv[:, 128:]).max())
    assert_reduced_op(out.result(), attention(bf16(qkv), 1, np.ones(63, int)), values)


# ---- the measurement of the peak


@every_isa
@pytest.mark.parametrize("element", ["fp32", *ELEMENTS])
def test_spin_counts_whole_rounds(isa, element):
    one, many = ops.spin(isa, element, 1), ops.spin(isa, element, 50)
    assert many == 50 * one > 0
