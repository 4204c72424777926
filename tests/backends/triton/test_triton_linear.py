"""The Triton kernels linear, linear_norm, layer_norm and rms_norm_heads against float64."""

import pytest
import torch

from oracle import CODE_STEP, OP_RTOL, TF32_RTOL
from tessera_fast.kernels.triton import linear as linears
from tessera_fast.kernels.triton.elements import ELEMENTS
from tessera_fast.kernels.triton.linear import fits_row, linear, linear_norm
from tessera_fast.kernels.triton.norm import layer_norm, rms_norm_heads
from triton_cases import (
    DEVICE,
    NAMES,
    UNSCALED,
    Guarded,
    Random,
    assert_stored,
    operand,
    prepared,
    strided,
    weight,
    wide,
)

STORED = (torch.float32, torch.float16, torch.bfloat16)


def assert_within(
    got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, terms: torch.Tensor | float
) -> None:
    """One rounding to ``dtype``, and OP_RTOL of ``terms``, what the error of the op is of."""
    assert_stored(got, expected, dtype, OP_RTOL * terms)


class Case:
    """A linear op with what the kernel is given, and what it should give."""

    def __init__(self, element: str, m: int, n: int, k: int, *, extra: int = 0) -> None:
        random = Random(m * n + k)
        storage = ELEMENTS[element].storage
        self.x = strided(random.normal(m, k, dtype=storage), extra)
        self.w = prepared(random, n, k, element)
        self.residual = random.normal(m, n, dtype=storage)
        self.gamma, self.beta = random.normal(n), random.normal(n)
        x, w = operand(self.x, element), weight(self.w)
        self.product = x @ w.T + wide(self.w.bias)
        # rounding of the sums, and what this device may round differently in the operands
        self.terms = (x.abs() @ w.abs().T + 1).max().item()
        # (the interpreter multiplies float32 for tf32, and divides exactly for 1 / scale)
        inexact = TF32_RTOL if element == "tf32" and DEVICE == "cuda" else 0.0
        code = CODE_STEP.get(element, 0.0) if DEVICE == "cuda" else 0.0
        step = code * float(x.abs().max() * w.abs().max())
        self.terms += (inexact * self.terms + step) / OP_RTOL

    def normalized(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """LayerNorm, and the terms of its error: those of y over its deviation."""
        std = (y.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        z = (y - y.mean(1, keepdim=True)) / std
        terms = self.terms / std * wide(self.gamma).abs() + 4 * z.abs()
        return z * wide(self.gamma) + wide(self.beta), terms


SHAPES = [(7, 48, 12), (129, 432, 144), (1, 96, 64), (33, 200, 440), (130, 40, 1792)]


@pytest.mark.parametrize("element", NAMES)
@pytest.mark.parametrize("m, n, k", SHAPES)
def test_linear(element: str, m: int, n: int, k: int) -> None:
    case = Case(element, m, n, k, extra=8)
    storage = ELEMENTS[element].storage
    out = Guarded((m, n), storage, pad=5)
    linear(case.x, case.w, out.view, relu=True)
    assert_within(out.values(), case.product.relu(), storage, case.terms)


@pytest.mark.parametrize("element", NAMES)
def test_linear_adds_a_residual_in_place_before_relu(element: str) -> None:
    case = Case(element, 70, 130, 96)
    storage = ELEMENTS[element].storage
    expected = (case.product + wide(case.residual)).relu()
    out = Guarded((70, 130), storage)
    out.view.copy_(case.residual)
    linear(case.x, case.w, out.view, relu=True, residual=out.view)
    assert_within(out.values(), expected, storage, case.terms)


@pytest.mark.parametrize("element", NAMES)
def test_linear_without_bias_to_float32(element: str) -> None:
    case = Case(element, 9, 33, 144)
    out = Guarded((9, 33), torch.float32)
    linear(case.x, case.w._replace(bias=None), out.view)
    assert_within(out.values(), case.product - wide(case.w.bias), torch.float32, case.terms)


@pytest.mark.parametrize("element", NAMES)
@pytest.mark.parametrize("m, n, k", [(7, 12, 48), (129, 144, 144), (1, 96, 384), (40, 440, 440)])
def test_linear_norm(element: str, m: int, n: int, k: int) -> None:
    case = Case(element, m, n, k, extra=8)
    storage = ELEMENTS[element].storage
    expected, terms = case.normalized(case.product + wide(case.residual))
    out = Guarded((m, n), storage, pad=3)
    linear_norm(case.x, case.w, out.view, case.gamma, case.beta, residual=case.residual)
    assert_within(out.values(), expected, storage, terms)


@pytest.mark.parametrize("n", [576, 640, 768, 1024])
def test_linear_norm_of_wide_rows_then_relu_to_float32(n: int) -> None:
    case = Case("fp32", 5, n, 64)
    expected, terms = case.normalized(case.product)
    out = Guarded((5, n), torch.float32)
    linear_norm(case.x, case.w, out.view, case.gamma, case.beta, relu=True)
    assert_within(out.values(), expected.relu(), torch.float32, terms)


@pytest.mark.parametrize("element", UNSCALED)
def test_linear_norm_over_its_own_input(element: str) -> None:
    case = Case(element, 70, 48, 48)
    storage = ELEMENTS[element].storage
    expected, terms = case.normalized(case.product + wide(case.x))
    out = Guarded((70, 48), storage)
    out.view.copy_(case.x)
    linear_norm(out.view, case.w, out.view, case.gamma, case.beta, residual=out.view)
    assert_within(out.values(), expected, storage, terms)


def test_no_rows() -> None:
    case = Case("fp32", 1, 48, 48)
    out = Guarded((0, 48), torch.float32)
    linear(case.x[:0], case.w, out.view)
    linear_norm(case.x[:0], case.w, out.view, None, None)
    layer_norm(case.x[:0], out.view, None, None)
    assert out.values().shape == (0, 48)


@pytest.mark.parametrize("element", NAMES)
def test_a_row_of_zeros_stays_finite(element: str) -> None:
    case = Case(element, 4, 16, 48)
    case.x.zero_()
    out = Guarded((4, 16), torch.float32)
    linear(case.x, case.w, out.view)
    assert torch.equal(out.values(), wide(case.w.bias).expand(4, 16))


@pytest.mark.parametrize("element", NAMES)
@pytest.mark.parametrize("norm", [False, True])
def test_bits_of_a_row_do_not_depend_on_the_others(element: str, norm: bool) -> None:
    case = Case(element, 300, 96, 144)
    whole = torch.full((300, 96), torch.nan, device=DEVICE)
    alone = torch.full((1, 96), torch.nan, device=DEVICE)

    def run(x: torch.Tensor, out: torch.Tensor) -> None:
        if norm:
            linear_norm(x, case.w, out, case.gamma, case.beta)
        else:
            linear(x, case.w, out)

    run(case.x, whole)
    for row in (0, 77, 131, 299):
        run(case.x[row : row + 1], alone)
        assert torch.equal(whole[row], alone[0])


@pytest.mark.parametrize("element", list(ELEMENTS))
@pytest.mark.parametrize("of", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_every_width_has_a_tile(element: str, of: tuple[int, int]) -> None:
    for n in (12, 48, 144, 440, 640, 768, 1024, 4096):
        for k in (12, 144, 440, 16384):
            for norm in (False, True) if n <= linears.WIDEST_ROW else (False,):
                tile = linears.config(n, k, element, of, norm=norm)
                assert min(tile.rows, tile.columns, tile.depth) >= 16 and tile.stages >= 1
                assert tile.columns + tile.more_columns >= n or not norm
    assert fits_row(440) and not fits_row(4096)


@pytest.mark.parametrize("d", [12, 48, 144, 440, 768, 4096, 16384])
@pytest.mark.parametrize("dtype", STORED)
def test_layer_norm(d: int, dtype: torch.dtype) -> None:
    random = Random(d)
    m = 7 if d > 1000 else 300 if d < 20 else 40
    x = strided(random.normal(m, d, dtype=dtype), 4)
    residual = random.normal(m, d, scale=3.0, dtype=dtype)
    gamma, beta = random.normal(d), random.normal(d)
    expected = torch.nn.functional.layer_norm(
        wide(x) + wide(residual), (d,), wide(gamma), wide(beta)
    )
    out = Guarded((m, d), dtype, pad=1)
    layer_norm(x, out.view, gamma, beta, residual=residual, relu=True)
    assert_within(out.values(), expected.relu(), dtype, float(expected.abs().max()))


def test_layer_norm_in_place_without_parameters() -> None:
    x = Random(0).normal(9, 130) * 100 + 5000
    expected = torch.nn.functional.layer_norm(wide(x), (130,))
    out = Guarded((9, 130), torch.float32)
    out.view.copy_(x)
    layer_norm(out.view, out.view, None, None)
    # the mean's rounding, half a unit of 5000, of a deviation of 100
    assert_within(out.values(), expected, torch.float32, 5000 / 100)


@pytest.mark.parametrize("heads, k", [(4, 12), (4, 36), (4, 110), (3, 192), (4, 1024)])
@pytest.mark.parametrize("dtype", STORED)
def test_rms_norm_heads(heads: int, k: int, dtype: torch.dtype) -> None:
    random = Random(heads * k)
    m = 7 if k > 500 else 129
    width = heads * k
    qkv = Guarded((m, 3 * width), dtype)
    qkv.view.copy_(random.normal(m, 3 * width))
    before = qkv.values()
    gain = random.normal(k)
    rms_norm_heads(qkv.view[:, width : 2 * width], gain, heads)
    after = qkv.values()
    x = before[:, width : 2 * width].reshape(m, heads, k)
    eps = torch.finfo(torch.float32).eps
    expected = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * wide(gain)
    expected = expected.reshape(m, width)
    assert_within(after[:, width : 2 * width], expected, dtype, float(expected.abs().max()))
    after[:, width : 2 * width] = before[:, width : 2 * width]
    assert torch.equal(after, before)
