"""Pooling: out[p] = sum_t a_t x_t over one pixel's tokens, a = softmax of logits.

pool:       logits query . x_t + query_bias + log m_t; one pass over x with a running maximum, the
            block of tokens held in registers for both the logit and the sum.
pool_steps: logits given per step of the padded sequence (recurrent models); x_t is the pixel's
            token steps[s], which may come several times.
x [N, D] in a storage type; query [D], query_bias [1], constant [D] float32; offsets, step_offsets
int32 [P+1]; multiplicity int16 [N] or None; logits float32 [S], steps int32 [S]; out [P, D] of any
float type at any row stride: it is half of the [P, 2D] that the reducer reads. A pixel without
tokens gets ``constant``. A program owns a pixel; blocks of tokens begin at its first.

Per token: 4 D FLOP, D elements read, D / n written (bf16: 2 FLOP/byte, bound by memory).
"""

import torch
import triton
import triton.language as tl

from .blocks import narrow, power_of_two

_LOG2E = tl.constexpr(1.4426950408889634)
_BLOCK = 2048  # elements of x a program holds: 16 registers of each of 128 threads


@triton.jit(do_not_specialize_on_alignment=["multiplicity"])
def pool_kernel(x, query, query_bias, offsets, multiplicity, constant, out,
                D: tl.constexpr, OUT_ROW: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
                WEIGHTED: tl.constexpr):  # fmt: skip
    """Grid [P]."""
    pixel = tl.program_id(0)
    start = tl.load(offsets + pixel)
    n = tl.load(offsets + pixel + 1) - start
    row = start.to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < D
    out += pixel.to(tl.int64) * OUT_ROW + c
    DTYPE: tl.constexpr = out.dtype.element_ty
    if n == 0:
        y = tl.load(constant + c, mask=inside, other=0.0)
        tl.store(out, narrow(y, DTYPE), mask=inside)
    else:
        q = tl.load(query + c, mask=inside, other=0.0)
        added = tl.load(query_bias) * _LOG2E
        t = tl.arange(0, TOKENS)
        y = tl.zeros([BLOCK], tl.float32)
        total = 0.0
        top = float("-inf")
        first = 0
        while first < n:
            there = first + t < n
            tokens = row + first + t
            block = tl.load(x + tokens[:, None] * D + c[None, :],
                            mask=there[:, None] & inside[None, :], other=0.0)  # fmt: skip
            block = block.to(tl.float32)
            logits = tl.sum(block * q[None, :], 1) * _LOG2E + added
            if WEIGHTED:
                m = tl.load(multiplicity + tokens, mask=there, other=1)
                logits += tl.log2(m.to(tl.float32))
            logits = tl.where(there, logits, float("-inf"))
            new_top = tl.maximum(top, tl.max(logits, 0))
            shrink = tl.exp2(top - new_top)
            weights = tl.exp2(logits - new_top)
            total = total * shrink + tl.sum(weights, 0)
            y = y * shrink + tl.sum(block * weights[:, None], 0)
            top = new_top
            first += TOKENS
        tl.store(out, narrow(y / total, DTYPE), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["steps"])
def pool_steps_kernel(x, logits, steps, step_offsets, offsets, constant, out,
                      D: tl.constexpr, OUT_ROW: tl.constexpr, TOKENS: tl.constexpr,
                      BLOCK: tl.constexpr, LONGEST: tl.constexpr):  # fmt: skip
    """Grid [P]. LONGEST: a power of two that no pixel has more steps than."""
    pixel = tl.program_id(0)
    row = tl.load(offsets + pixel).to(tl.int64)
    start = tl.load(step_offsets + pixel)
    n = tl.load(step_offsets + pixel + 1) - start
    c = tl.arange(0, BLOCK)
    inside = c < D
    out += pixel.to(tl.int64) * OUT_ROW + c
    DTYPE: tl.constexpr = out.dtype.element_ty
    if n == 0:
        y = tl.load(constant + c, mask=inside, other=0.0)
        tl.store(out, narrow(y, DTYPE), mask=inside)
    else:
        s = tl.arange(0, LONGEST)
        every = tl.load(logits + start + s, mask=s < n, other=float("-inf"))
        top = tl.max(every, 0)
        total = tl.sum(tl.exp2((every - top) * _LOG2E), 0)
        t = tl.arange(0, TOKENS)
        y = tl.zeros([BLOCK], tl.float32)
        first = 0
        while first < n:
            there = first + t < n
            token = row + tl.load(steps + start + first + t, mask=there, other=0)
            some = tl.load(logits + start + first + t, mask=there, other=float("-inf"))
            block = tl.load(x + token[:, None] * D + c[None, :],
                            mask=there[:, None] & inside[None, :], other=0.0)  # fmt: skip
            weights = tl.exp2((some - top) * _LOG2E)
            y += tl.sum(block.to(tl.float32) * weights[:, None], 0)
            first += TOKENS
        tl.store(out, narrow(y / total, DTYPE), mask=inside)


def _sizes(width: int) -> dict[str, int]:
    block = power_of_two(width)
    tokens = min(16, max(2, _BLOCK // block))
    return {"TOKENS": tokens, "BLOCK": block, "num_warps": 16 if block > _BLOCK else 4}


def pool(
    x: torch.Tensor,
    query: torch.Tensor,
    query_bias: torch.Tensor,
    offsets: torch.Tensor,
    multiplicity: torch.Tensor | None,
    constant: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Fill out [P, D]."""
    pixels, width = out.shape
    if pixels == 0:
        return
    pool_kernel[(pixels,)](
        x, query, query_bias, offsets, multiplicity, constant, out, width, out.stride(0),
        WEIGHTED=multiplicity is not None, **_sizes(width),
    )  # fmt: skip


def pool_steps(
    x: torch.Tensor,
    logits: torch.Tensor,
    steps: torch.Tensor,
    step_offsets: torch.Tensor,
    offsets: torch.Tensor,
    constant: torch.Tensor,
    out: torch.Tensor,
    longest: int = 256,
) -> None:
    """Fill out [P, D]. ``longest``: of the model's rule, no sequence has more steps."""
    pixels, width = out.shape
    if pixels == 0:
        return
    pool_steps_kernel[(pixels,)](
        x, logits, steps, step_offsets, offsets, constant, out, width, out.stride(0),
        LONGEST=power_of_two(longest), **_sizes(width),
    )  # fmt: skip
