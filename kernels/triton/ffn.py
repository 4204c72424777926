"""y = LayerNorm(x + W2 relu(W1 x + b1) + b2): a post-norm feed-forward block in one kernel.

x, y [M, D] in the element's storage type, rows at any stride; W1 [F, D] and W2 [D, F] with biases
and scales as in elements.Linear, of one element; gamma and beta [D] float32.
A program owns BM whole rows, as at most two blocks P0 + P1 of columns (144 = 128 + 16) that are
both the inputs of W1 and the sums of W2. It walks over F in chunks of BF: the hidden chunk goes
from one product's sums to the other's operand, and never to memory.
Scaled elements: x is quantised once per row, the hidden chunk per row and chunk, and each chunk's
product is rescaled into float32 sums.
FLOPs per row 4 D F. Bytes per row from memory: x (D), y (D), 4 D in 16 bit; from L2 W1 and W2 once
per program: 4 D F / BM, hence BM FLOP per byte from L2, and as many rows as registers allow.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .blocks import (
    largest_of_rows,
    narrow,
    normalize,
    parts,
    product,
    quantize,
    row_scale,
    row_sum,
    square_deviation,
)
from .device import Capability, capability, shared_memory
from .elements import ELEMENTS, LARGEST, Linear

EPS = 1e-5
WIDEST = 512
_WORTH = 256


class Tile(NamedTuple):
    """The shape of one program; sizes in elements."""

    rows: int  # BM
    columns: int  # P0
    more_columns: int  # P1, 0: none
    hidden: int  # BF
    warps: int
    stages: int


@triton.jit
def _rows_of_x(x, cols, D: tl.constexpr, MASKED: tl.constexpr):
    """x [BM, len(cols)], zero past D."""
    if MASKED:
        return tl.load(x + cols[None, :], mask=(cols < D)[None, :], other=0.0)
    else:
        return tl.load(x + cols[None, :])


@triton.jit
def _w1_block(w1, f, cols, D: tl.constexpr, F: tl.constexpr, MASKED: tl.constexpr):
    """W1^T [len(cols), len(f)], zero past D; past F the last row again."""
    p = w1 + tl.minimum(f, F - 1)[None, :] * D + cols[:, None]
    if MASKED:
        return tl.load(p, mask=(cols < D)[:, None], other=0.0)
    else:
        return tl.load(p)


@triton.jit
def _w2_block(w2, cols, f, D: tl.constexpr, F: tl.constexpr, MASKED: tl.constexpr):
    """W2^T [len(f), len(cols)], zero past F; past D the last row again."""
    p = w2 + tl.minimum(cols, D - 1)[None, :] * F + f[:, None]
    if MASKED:
        return tl.load(p, mask=(f < F)[:, None], other=0.0)
    else:
        return tl.load(p)


@triton.jit
def _residual(x, b2, cols, D: tl.constexpr):
    """x + b2, float32, of a block x of the rows."""
    y = x.to(tl.float32)
    if b2 is not None:
        y += tl.load(b2 + cols, mask=cols < D, other=0.0)[None, :]
    return y


@triton.jit(do_not_specialize=["M"])
def _ffn(
    x, w1, w1_scale, b1, w2, w2_scale, b2, gamma, beta, out, M,
    D: tl.constexpr, F: tl.constexpr, X_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    BM: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, BF: tl.constexpr,
    TOP: tl.constexpr, PRECISION: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    MASKED0: tl.constexpr = P0 > D
    MASKED1: tl.constexpr = P0 + P1 > D
    MASKED_F: tl.constexpr = F % BF > 0
    OPERAND: tl.constexpr = w1.dtype.element_ty
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    ok = row < M
    row = tl.minimum(row, M - 1).to(tl.int64)
    x += row[:, None] * X_ROW
    cols = tl.arange(0, P0)
    more = P0 + tl.arange(0, P1 if P1 > 0 else 1)

    a = _rows_of_x(x, cols, D, MASKED0)
    if P1 > 0:
        a1 = _rows_of_x(x, more, D, MASKED1)
    if w1_scale is not None:
        largest = largest_of_rows(a)
        if P1 > 0:
            largest = tl.maximum(largest, largest_of_rows(a1))
        scale, inverse = row_scale(largest, TOP)
        a = quantize(a.to(tl.float32), inverse, OPERAND)
        if P1 > 0:
            a1 = quantize(a1.to(tl.float32), inverse, OPERAND)

    if w1_scale is not None:
        acc = tl.zeros([BM, P0], tl.float32)
        if P1 > 0:
            acc1 = tl.zeros([BM, P1], tl.float32)
    else:  # from the residual, which is at hand now, and later would have to be read again
        acc = _residual(a, b2, cols, D)
        if P1 > 0:
            acc1 = _residual(a1, b2, more, D)
    for start in tl.range(0, F, BF):
        f = start + tl.arange(0, BF)
        f_row = tl.minimum(f, F - 1)
        sums = product(a, _w1_block(w1, f, cols, D, F, MASKED0), None, PRECISION)
        if P1 > 0:
            sums = product(a1, _w1_block(w1, f, more, D, F, MASKED1), sums, PRECISION)
        hidden = sums.to(tl.float32)
        if w1_scale is not None:
            hidden *= scale[:, None] * tl.load(w1_scale + f_row)[None, :]
        if b1 is not None:
            hidden += tl.load(b1 + f_row)[None, :]
        hidden = tl.maximum(hidden, 0.0)
        if w1_scale is not None:
            if MASKED_F:  # the last row of W1 once more is no part of the maximum
                hidden = tl.where((f < F)[None, :], hidden, 0.0)
            chunk_scale, chunk_inverse = row_scale(tl.max(hidden, axis=1), TOP)
            h = quantize(hidden, chunk_inverse, OPERAND)
            sums = product(h, _w2_block(w2, cols, f, D, F, MASKED_F), None, PRECISION)
            acc += sums.to(tl.float32) * chunk_scale[:, None]
            if P1 > 0:
                sums = product(h, _w2_block(w2, more, f, D, F, MASKED_F), None, PRECISION)
                acc1 += sums.to(tl.float32) * chunk_scale[:, None]
        else:
            h = narrow(hidden, OPERAND)
            acc = product(h, _w2_block(w2, cols, f, D, F, MASKED_F), acc, PRECISION)
            if P1 > 0:
                acc1 = product(h, _w2_block(w2, more, f, D, F, MASKED_F), acc1, PRECISION)

    if w2_scale is not None:
        acc *= tl.load(w2_scale + cols, mask=cols < D, other=0.0)[None, :]
        acc += _residual(_rows_of_x(x, cols, D, MASKED0), b2, cols, D)
        if P1 > 0:
            acc1 *= tl.load(w2_scale + more, mask=more < D, other=0.0)[None, :]
            acc1 += _residual(_rows_of_x(x, more, D, MASKED1), b2, more, D)
    total = row_sum(acc, cols, D)
    if P1 > 0:
        total += row_sum(acc1, more, D)
    mean = total / D
    squares = square_deviation(acc, mean, cols, D)
    if P1 > 0:
        squares += square_deviation(acc1, mean, more, D)
    rstd = 1.0 / tl.sqrt(squares / D + EPSILON)
    DTYPE: tl.constexpr = out.dtype.element_ty
    out += row[:, None] * OUT_ROW
    y = narrow(normalize(acc, mean, rstd, gamma, beta, cols, D), DTYPE)
    tl.store(out + cols[None, :], y, mask=ok[:, None] & (cols < D)[None, :])
    if P1 > 0:
        y = narrow(normalize(acc1, mean, rstd, gamma, beta, more, D), DTYPE)
        tl.store(out + more[None, :], y, mask=ok[:, None] & (more < D)[None, :])


def fits(d: int) -> bool:
    """Whether ffn is the way to rows of d; up to WIDEST it gives the right result.

    Beyond 256 columns a program holds 64 rows, or 32 where shared memory is small: at 440 the
    weights it reads from L2, 53 KB per row, cost what two launches of linear cost (an estimate).
    """
    return d <= _WORTH


def config(d: int, element: str, of: Capability) -> Tile:
    """The tile for width d; it does not depend on the number of rows, so neither do the bits.

    In bf16 these compile without spills; wgmma reads both stages from shared memory, elsewhere one
    of the stages is in registers.
    """
    kind = ELEMENTS[element]
    p0, p1 = parts(d, 32 if kind.scaled else 16)
    width = p0 + p1
    roomy = shared_memory(of) > 100 * 1024
    wgmma = shared_memory(of) > 200 * 1024
    if width <= 160 or (width <= 256 and roomy):
        rows, hidden, stages = (128, 64, 2) if wgmma else (128, 32, 3)
    elif width <= 256:
        rows, hidden, stages = 64, 32, 2
    else:
        rows, hidden, stages = (64, 32, 2) if roomy else (32, 16, 2)
    if kind.operand.itemsize == 4:
        rows, hidden, stages = rows // 2, max(16, hidden // 2), 2
    if kind.scaled:  # a chunk's own sums lie beside those of all chunks
        rows, hidden = max(32, rows // 2), max(32, hidden)
    return Tile(rows, p0, p1, hidden, 8, stages)


def ffn(
    x: torch.Tensor,
    w1: Linear,
    w2: Linear,
    out: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
) -> None:
    """out = LayerNorm(x + W2 relu(W1 x + b1) + b2), D up to WIDEST.

    ``out`` may be ``x``: a program reads its own rows, and for the last time before it writes.
    """
    m, d = x.shape
    assert d <= WIDEST
    if m == 0:
        return
    kind = ELEMENTS[w1.element]
    tile = config(d, w1.element, capability(x.device))
    _ffn[(triton.cdiv(m, tile.rows),)](
        x, w1.weight, w1.scale, w1.bias, w2.weight, w2.scale, w2.bias, gamma, beta, out, m,
        d, w1.weight.shape[0], x.stride(0), out.stride(0),
        tile.rows, tile.columns, tile.more_columns, tile.hidden,
        LARGEST.get(kind.operand, 0.0), kind.input_precision, EPS,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
