"""LayerNorm of rows, y = relu((z - mean) / sqrt(var + 1e-5) gamma + beta) with z = x + residual,
and the RMS norm of heads, x = x / sqrt(mean(x^2) + eps) weight.

layer_norm: x, residual, y [M, D] of any float type, rows at any stride; gamma, beta [D] float32.
A program owns a few whole rows, padded to a power of two, and reads them once: mean and squared
deviations come from registers. 8 FLOPs and 2 + 2 bytes (+ 2 of the residual) per value in 16 bit:
bound by memory.
rms_norm_heads: x [M, H K] in place, any stride: the q or k columns of the QKV matrix; weight [K]
float32. A program owns a few heads of a few rows. 4 FLOPs and 4 bytes per value in 16 bit.
Everything is computed in float32. A row's sum is taken in one order, whatever rows are beside it.
"""

import torch
import triton
import triton.language as tl

from .blocks import narrow, normalize, power_of_two, row_sum, square_deviation

LAYER_EPS = 1e-5
RMS_EPS = torch.finfo(torch.float32).eps
_VALUES = 4096  # of one program, where rows are shorter
_WARPS = 4


@triton.jit(do_not_specialize=["M"])
def _layer_norm(
    x, residual, gamma, beta, out, M, D: tl.constexpr,
    X_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, OUT_ROW: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, EPSILON: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, BLOCK)
    mask = (row < M)[:, None] & (cols < D)[None, :]
    y = tl.load(x + row[:, None] * X_ROW + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        p = residual + row[:, None] * RESIDUAL_ROW + cols[None, :]
        y += tl.load(p, mask=mask, other=0.0).to(tl.float32)
    mean = row_sum(y, cols, D) / D
    rstd = 1.0 / tl.sqrt(square_deviation(y, mean, cols, D) / D + EPSILON)
    y = normalize(y, mean, rstd, gamma, beta, cols, D)
    if RELU:
        y = tl.maximum(y, 0.0)
    p = out + row[:, None] * OUT_ROW + cols[None, :]
    tl.store(p, narrow(y, out.dtype.element_ty), mask=mask)


def layer_norm(
    x: torch.Tensor,
    out: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    *,
    relu: bool = False,
    residual: torch.Tensor | None = None,
) -> None:
    """out = relu(LayerNorm(x + residual)); ``out`` may be ``x`` or ``residual``."""
    m, d = x.shape
    if m == 0:
        return
    block = max(16, power_of_two(d))
    rows = max(1, _VALUES // block)
    _layer_norm[(triton.cdiv(m, rows),)](
        x, residual, gamma, beta, out, m, d,
        x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        rows, block, LAYER_EPS, relu,
        num_warps=min(16, max(_WARPS, block // 512)),
    )  # fmt: skip


@triton.jit(do_not_specialize=["M"])
def _rms_norm_heads(
    x, weight, M, H: tl.constexpr, K: tl.constexpr, X_ROW: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # of all rows' heads
    cols = tl.arange(0, BLOCK)
    mask = (head < M * H)[:, None] & (cols < K)[None, :]
    p = x + (head // H * X_ROW + head % H * K)[:, None] + cols[None, :]
    y = tl.load(p, mask=mask, other=0.0).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(y * y, axis=1) / K + EPSILON)
    y = y * rstd[:, None] * tl.load(weight + cols, mask=cols < K, other=0.0)[None, :]
    tl.store(p, narrow(y, x.dtype.element_ty), mask=mask)


def rms_norm_heads(x: torch.Tensor, weight: torch.Tensor, heads: int) -> None:
    """In place, each of the ``heads`` groups of K columns of x [M, H K] by itself."""
    m, width = x.shape
    if m == 0:
        return
    k = width // heads
    block = max(16, power_of_two(k))
    rows = max(1, _VALUES // block)
    _rms_norm_heads[(triton.cdiv(m * heads, rows),)](
        x, weight, m, heads, k, x.stride(0), rows, block, RMS_EPS, num_warps=_WARPS
    )
