"""y = relu(x W^T + b + residual), or y = relu(LayerNorm(x W^T + b + residual)) over whole rows.

x [M, K] in the element's storage type, rows at any stride; W [N, K], bias [N] and scale [N] as in
elements.Linear; residual and y [M, N] of any float type at any stride; gamma and beta [N] float32.
A program owns a tile: BM rows and, of N, one block of P0 columns, or with a LayerNorm all columns
as at most two blocks P0 + P1 (144 = 128 + 16). Programs run down GROUP row tiles before the next
column block, so W and a group's rows stay in L2. K, N and the strides are compile-time constants:
440 is no multiple of 16, and only a known stride gives 16-byte loads. Past K / BK whole steps the
rest of K is one block of its own (144 = 2 * 64 + 16), not a masked step.
Scaled elements: a first pass over the row finds its largest absolute value, the second quantises
what it loads. FLOPs per row 2 N K. Bytes per row: x once from memory (K), y (N), residual (N), and
W from L2 once per row tile: 2 N K / BM in 16 bit. No sum depends on M or on the row's place.
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
    power_of_two,
    product,
    quantize,
    row_scale,
    row_sum,
    square_deviation,
)
from .device import Capability, capability, shared_memory
from .elements import ELEMENTS, LARGEST, Linear

EPS = 1e-5
WIDEST_ROW = 1024  # columns whose float32 sums one program can hold
_WORTH_ROW = 512
_GROUP = 8


class Tile(NamedTuple):
    """The shape of one program; sizes in elements."""

    rows: int  # BM
    columns: int  # P0
    more_columns: int  # P1, 0: none
    depth: int  # BK
    warps: int
    stages: int


def fits_row(n: int) -> bool:
    """Whether linear_norm is the way to rows of n; up to WIDEST_ROW it gives the right result.

    Beyond 512 columns a program holds 32 rows, and W from L2 (2 N K / 32 bytes per row) costs more
    than linear and layer_norm, which move y twice more. An estimate: 4.6 against 3.2 ns per row of
    640 from 640 at 5.5 TB/s of L2 and 3 TB/s of memory.
    """
    return n <= _WORTH_ROW


@triton.jit
def _x_block(x, k, K: tl.constexpr, MASKED: tl.constexpr):
    """x [BM, len(k)] at pointers to rows, zero past K."""
    if MASKED:
        return tl.load(x + k[None, :], mask=(k < K)[None, :], other=0.0)
    else:
        return tl.load(x + k[None, :])


@triton.jit
def _w_block(w, cols, k, K: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr):
    """W^T [len(k), len(cols)], zero past K; past N the last row again."""
    p = w + tl.minimum(cols, N - 1)[None, :] * K + k[:, None]
    if MASKED:
        return tl.load(p, mask=(k < K)[:, None], other=0.0)
    else:
        return tl.load(p)


@triton.jit
def _start(bias, residual, cols, N: tl.constexpr, R: tl.constexpr):
    """bias + residual of one block, float32 [R, len(cols)]: what the sums start from.

    Before the products, because a LayerNorm behind them leaves no registers for it.
    """
    y = tl.zeros([R, cols.shape[0]], tl.float32)
    in_row = cols < N
    if residual is not None:
        block = tl.load(residual + cols[None, :], mask=in_row[None, :], other=0.0)
        y += block.to(tl.float32)
    if bias is not None:
        y += tl.load(bias + cols, mask=in_row, other=0.0)[None, :]
    return y


@triton.jit
def _rescale(acc, scale, w_scale, cols, N: tl.constexpr):
    """Sums of codes to float32."""
    by_column = tl.load(w_scale + cols, mask=cols < N, other=0.0)
    return acc.to(tl.float32) * (scale[:, None] * by_column[None, :])


@triton.jit
def _store(out, y, ok, cols, N: tl.constexpr, RELU: tl.constexpr, DTYPE: tl.constexpr):
    if RELU:
        y = tl.maximum(y, 0.0)
    mask = ok[:, None] & (cols < N)[None, :]
    tl.store(out + cols[None, :], narrow(y, DTYPE), mask=mask)


@triton.jit(do_not_specialize=["M"])
def _linear(
    x, w, w_scale, bias, residual, gamma, beta, out, M,
    N: tl.constexpr, K: tl.constexpr,
    X_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    BM: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, BK: tl.constexpr, REST: tl.constexpr,
    TOP: tl.constexpr, PRECISION: tl.constexpr, NORM: tl.constexpr, EPSILON: tl.constexpr,
    RELU: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """REST: the power of two over K's last partial step; 0: steps are masked, or K is even."""
    COLUMN_TILES: tl.constexpr = 1 if NORM else (N + P0 - 1) // P0
    STEPS: tl.constexpr = K // BK if REST > 0 else (K + BK - 1) // BK
    MASKED: tl.constexpr = REST == 0 and K % BK > 0
    program = tl.program_id(0)
    first_row_tile = program // (GROUP * COLUMN_TILES) * GROUP
    group = tl.minimum(tl.cdiv(M, BM) - first_row_tile, GROUP)
    in_group = program % (GROUP * COLUMN_TILES)
    row = (first_row_tile + in_group % group) * BM + tl.arange(0, BM)
    cols = in_group // group * P0 + tl.arange(0, P0)
    ok = row < M
    row = tl.minimum(row, M - 1).to(tl.int64)
    x += row[:, None] * X_ROW
    k = tl.arange(0, BK)

    scale = None
    inverse = None
    if w_scale is not None:
        largest = tl.zeros([BM], tl.float32)
        for step in tl.range(0, STEPS):
            block = _x_block(x, step * BK + k, K, MASKED)
            largest = tl.maximum(largest, largest_of_rows(block))
        if REST > 0:
            block = _x_block(x, STEPS * BK + tl.arange(0, REST), K, True)
            largest = tl.maximum(largest, largest_of_rows(block))
        scale, inverse = row_scale(largest, TOP)

    DTYPE: tl.constexpr = out.dtype.element_ty
    out += row[:, None] * OUT_ROW
    if residual is not None:
        residual += row[:, None] * RESIDUAL_ROW
    more = P0 + tl.arange(0, P1 if P1 > 0 else 1)
    if w_scale is not None:
        SUMS: tl.constexpr = tl.int32 if w.dtype.element_ty == tl.int8 else tl.float32
        acc = tl.zeros([BM, P0], SUMS)
        if P1 > 0:
            acc1 = tl.zeros([BM, P1], SUMS)
    else:
        acc = _start(bias, residual, cols, N, BM)
        if P1 > 0:
            acc1 = _start(bias, residual, more, N, BM)
    for step in tl.range(0, STEPS):
        a = _x_block(x, step * BK + k, K, MASKED)
        if w_scale is not None:
            a = quantize(a.to(tl.float32), inverse, w.dtype.element_ty)
        acc = product(a, _w_block(w, cols, step * BK + k, K, N, MASKED), acc, PRECISION)
        if P1 > 0:
            acc1 = product(a, _w_block(w, more, step * BK + k, K, N, MASKED), acc1, PRECISION)
    if REST > 0:
        kr = STEPS * BK + tl.arange(0, REST)
        a = _x_block(x, kr, K, (K - STEPS * BK) % REST > 0)
        if w_scale is not None:
            a = quantize(a.to(tl.float32), inverse, w.dtype.element_ty)
        acc = product(a, _w_block(w, cols, kr, K, N, (K - STEPS * BK) % REST > 0), acc, PRECISION)
        if P1 > 0:
            b = _w_block(w, more, kr, K, N, (K - STEPS * BK) % REST > 0)
            acc1 = product(a, b, acc1, PRECISION)

    if w_scale is not None:
        acc = _rescale(acc, scale, w_scale, cols, N) + _start(bias, residual, cols, N, BM)
        if P1 > 0:
            acc1 = _rescale(acc1, scale, w_scale, more, N)
            acc1 += _start(bias, residual, more, N, BM)
    if NORM:
        total = row_sum(acc, cols, N)
        if P1 > 0:
            total += row_sum(acc1, more, N)
        mean = total / N
        squares = square_deviation(acc, mean, cols, N)
        if P1 > 0:
            squares += square_deviation(acc1, mean, more, N)
        rstd = 1.0 / tl.sqrt(squares / N + EPSILON)
        acc = normalize(acc, mean, rstd, gamma, beta, cols, N)
        if P1 > 0:
            acc1 = normalize(acc1, mean, rstd, gamma, beta, more, N)
    _store(out, acc, ok, cols, N, RELU, DTYPE)
    if P1 > 0:
        _store(out, acc1, ok, more, N, RELU, DTYPE)


def _norm_rows(width: int, of: Capability) -> tuple[int, int]:
    """(rows, warps) of a program that holds ``width`` columns of sums."""
    if width <= 256:
        return 64, 4 if width <= 160 else 8
    if width <= 512 and of in ((8, 0), (9, 0)):
        return 64, 8
    return 32 if width <= 768 else 16, 8


def config(n: int, k: int, element: str, of: Capability, *, norm: bool = False) -> Tile:
    """The tile for W [n, k]; it does not depend on the number of rows, so neither do the bits.

    With a LayerNorm the rows and warps are those that compile without spills in bf16.
    """
    kind = ELEMENTS[element]
    large = shared_memory(of) > 200 * 1024
    wide = kind.operand.itemsize == 4
    if norm:
        p0, p1 = parts(n)
        rows, warps = _norm_rows(p0 + p1, of)
        rows = max(16, rows // 2) if wide or kind.scaled else rows
    else:
        cost = {16: 2.0, 32: 1.5, 64: 1.15, 128: 1.0}
        if large and not wide and k > 256:
            cost[256] = 0.95  # 85 FLOP per byte from L2 instead of 64; too few programs for short k
        p0 = min(cost, key=lambda block: -(-n // block) * block * cost[block])
        p0, p1, rows = (min(p0, 64), 0, 64) if wide else (p0, 0, 128)
        warps = 8 if rows * p0 >= 16384 else 4
    size = kind.operand.itemsize
    depth = 32 if wide else 64
    if p0 + p1 > 256:
        depth = min(depth, 32)
    smallest = 32 if kind.scaled else 16
    depth = max(smallest, min(depth, power_of_two(k)))
    staged = rows * kind.storage.itemsize + (p0 + p1) * size  # bytes per step of K
    budget = shared_memory(of) * 7 // 8
    while depth > smallest and 2 * staged * depth > budget:
        depth //= 2
    steps = max(1, min(k // depth, 4 if large else 3, budget // (staged * depth)))
    # wgmma reads all stages from shared memory; elsewhere one of them is in registers
    return Tile(rows, p0, p1, depth, warps, steps if large else steps + 1)


def _launch(
    x: torch.Tensor,
    w: Linear,
    out: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    residual: torch.Tensor | None,
    relu: bool,
    norm: bool,
) -> None:
    (m, k), n = x.shape, w.weight.shape[0]
    if m == 0:
        return
    kind = ELEMENTS[w.element]
    tile = config(n, k, w.element, capability(x.device), norm=norm)
    rest = 0
    if k % tile.depth:
        rest = max(power_of_two(k % tile.depth), 32 if kind.scaled else 16)
        rest = 0 if rest >= tile.depth else rest
    columns = 1 if norm else triton.cdiv(n, tile.columns)
    _linear[(triton.cdiv(m, tile.rows) * columns,)](
        x, w.weight, w.scale, w.bias, residual, gamma, beta, out, m, n, k,
        x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        tile.rows, tile.columns, tile.more_columns, tile.depth, rest,
        LARGEST.get(kind.operand, 0.0), kind.input_precision, norm, EPS, relu, _GROUP,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def linear(
    x: torch.Tensor,
    w: Linear,
    out: torch.Tensor,
    *,
    relu: bool = False,
    residual: torch.Tensor | None = None,
) -> None:
    """out = relu(x W^T + b + residual).

    ``out`` may be ``residual``, whose tile a program reads before it writes; never ``x``, which
    other programs read.
    """
    _launch(x, w, out, None, None, residual, relu, False)


def linear_norm(
    x: torch.Tensor,
    w: Linear,
    out: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    *,
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> None:
    """out = relu(LayerNorm(x W^T + b + residual)), n up to WIDEST_ROW.

    ``out`` may be ``residual``, and ``x`` too if it has the same rows: a program owns whole rows,
    and reads all it needs of them before it writes.
    """
    assert w.weight.shape[0] <= WIDEST_ROW
    _launch(x, w, out, gamma, beta, residual, relu, True)
