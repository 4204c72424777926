"""out = softmax(q k^T / sqrt(K) + log m) v per pixel and head, over the pixel's distinct tokens.

qkv [N, 3D] (q | k | v, head h in columns h K .. of each), out [N, D], both of the element's storage
type; offsets int32 [P+1]; multiplicity int16 [N], or None for all ones. n <= 256 tokens a pixel.
A program owns one head of one pixel, so that nothing depends on a pixel's neighbours. It holds a
block of queries against all keys: with n <= 256 a row of scores fits registers, softmax needs one
pass, and every chunk of the output is one product that is stored and forgotten. The tile is the
smallest of 16, 32, 64, 128, 256 that holds the pixel's own n. Pixels over 64 tokens have a launch
of their own, so that their registers and shared memory do not thin out the others; a program of
the wrong launch returns at once. Heads of any width go in chunks of 64, 32 and 16.
p is at most 1, rounded to the element unnormalised; the sum that divides is of the unrounded p.

Per token: 4 n D FLOP, 4 D elements read and written (bf16, n = 64: 32 FLOP/byte, bound by memory).
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .blocks import narrow, product
from .elements import ELEMENTS

LONGEST = 256  # tokens of one pixel
SHORT = 64  # the longest pixel of the first launch


@triton.jit
def _queries(qkv, bias, out, first_row, start, n, head,
             D: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr, CHUNK: tl.constexpr,
             ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The queries start .. start + ROWS of the pixel whose tokens begin at first_row."""
    queries = start + tl.arange(0, ROWS)
    keys = tl.arange(0, TILE)
    base = qkv + first_row * (3 * D) + head * K
    q = base + queries[:, None] * (3 * D)
    k = base + D + keys[None, :] * (3 * D)
    v = base + 2 * D + keys[:, None] * (3 * D)
    o = out + first_row * D + head * K + queries[:, None] * D

    s = tl.zeros([ROWS, TILE], tl.float32)
    for first in range(0, K, CHUNK):
        columns = first + tl.arange(0, CHUNK)
        q_mask = (queries < n)[:, None]
        k_mask = (keys < n)[None, :]
        if K % CHUNK != 0:
            q_mask = q_mask & (columns < K)[None, :]
            k_mask = k_mask & (columns < K)[:, None]
        a = tl.load(q + columns[None, :], mask=q_mask, other=0.0)
        b = tl.load(k + columns[:, None], mask=k_mask, other=0.0)
        s = product(a, b, s, PRECISION)

    s = s * SCALE + bias[None, :]
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    total = tl.sum(p, 1)
    p = narrow(p, qkv.dtype.element_ty)

    for first in range(0, K, CHUNK):
        columns = first + tl.arange(0, CHUNK)
        v_mask = (keys < n)[:, None]
        o_mask = (queries < n)[:, None]
        if K % CHUNK != 0:
            v_mask = v_mask & (columns < K)[None, :]
            o_mask = o_mask & (columns < K)[None, :]
        b = tl.load(v + columns[None, :], mask=v_mask, other=0.0)
        y = product(p, b, None, PRECISION) / total[:, None]
        tl.store(o + columns[None, :], narrow(y, out.dtype.element_ty), mask=o_mask)


@triton.jit
def log2_multiplicity(multiplicity, first_row, n, TILE: tl.constexpr, WEIGHTED: tl.constexpr):
    """log2 m of a pixel's tokens [TILE], minus infinity past its last."""
    keys = tl.arange(0, TILE)
    bias = tl.where(keys < n, 0.0, float("-inf"))
    if WEIGHTED:
        m = tl.load(multiplicity + first_row + keys, mask=keys < n, other=1)
        bias += tl.log2(m.to(tl.float32))
    return bias


@triton.jit
def _pixel(qkv, multiplicity, out, first_row, n, head,
           D: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr, CHUNK: tl.constexpr,
           ROWS: tl.constexpr, TILE: tl.constexpr, WEIGHTED: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    bias = log2_multiplicity(multiplicity, first_row, n, TILE, WEIGHTED)
    if ROWS >= TILE:
        _queries(qkv, bias, out, first_row, 0, n, head, D, K, SCALE, CHUNK, TILE, TILE, PRECISION)
    else:
        for start in range(0, TILE, ROWS):
            if start < n:
                _queries(qkv, bias, out, first_row, start, n, head, D, K, SCALE, CHUNK, ROWS, TILE,
                         PRECISION)  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["multiplicity"])
def attention_kernel(qkv, offsets, multiplicity, out,
                     H: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr, CHUNK: tl.constexpr,
                     ROWS: tl.constexpr, SHORT_ONES: tl.constexpr, WEIGHTED: tl.constexpr,
                     PRECISION: tl.constexpr):  # fmt: skip
    """Grid [P * H]. SHORT_ONES: pixels of 1 .. 64 tokens, else those of 65 .. 256."""
    D: tl.constexpr = H * K
    pixel = tl.program_id(0) // H
    head = tl.program_id(0) % H
    start = tl.load(offsets + pixel)
    n = tl.load(offsets + pixel + 1) - start
    row = start.to(tl.int64)
    if SHORT_ONES:
        if n > 0:
            if n <= 16:
                _pixel(qkv, multiplicity, out, row, n, head, D, K, SCALE, CHUNK, ROWS, 16, WEIGHTED,
                       PRECISION)  # fmt: skip
            elif n <= 32:
                _pixel(qkv, multiplicity, out, row, n, head, D, K, SCALE, CHUNK, ROWS, 32, WEIGHTED,
                       PRECISION)  # fmt: skip
            elif n <= 64:
                _pixel(qkv, multiplicity, out, row, n, head, D, K, SCALE, CHUNK, ROWS, 64, WEIGHTED,
                       PRECISION)  # fmt: skip
    elif n > 64:
        if n <= 128:
            _pixel(qkv, multiplicity, out, row, n, head, D, K, SCALE, CHUNK, ROWS, 128, WEIGHTED,
                   PRECISION)  # fmt: skip
        else:
            _pixel(qkv, multiplicity, out, row, n, head, D, K, SCALE, CHUNK, ROWS, 256, WEIGHTED,
                   PRECISION)  # fmt: skip


class Plan(NamedTuple):
    """A launch's constants and options: what it is compiled from, here and ahead of time."""

    constants: dict[str, Any]
    options: dict[str, int]


def chunk(head_width: int, most: int) -> int:
    """How wide a piece of a head is: the widest that pads it by a sixth at most, else 16."""
    for width in (64, 32):
        if width <= most and -(-head_width // width) * width * 6 <= head_width * 7:
            return width
    return 16


def plan(heads: int, head_width: int, element: str, weighted: bool, short: bool) -> Plan:
    """Sizes of a launch, from the model's shape alone."""
    kind = ELEMENTS[element]
    wide = kind.storage == torch.float32
    rows = (32 if short else 16) if wide else 64
    # At least two pieces of a long pixel's head: the loads of a loop that runs once are moved
    # ahead of the softmax, into registers that it needs. So do addresses of rows that are not
    # aligned to 16 bytes, whose pieces are therefore narrower.
    most = 64 if short else head_width // 2
    if wide or head_width % 8:
        most = min(most, 32 if short else 16)
    constants = {
        "H": heads,
        "K": head_width,
        "SCALE": math.log2(math.e) / math.sqrt(head_width),  # logits in base 2
        "CHUNK": chunk(head_width, most),
        "ROWS": rows,
        "SHORT_ONES": short,
        "WEIGHTED": weighted,
        "PRECISION": kind.input_precision,
    }
    return Plan(constants, {"num_warps": 4 if short else 8, "num_stages": 2})


def attention(
    qkv: torch.Tensor,
    offsets: torch.Tensor,
    multiplicity: torch.Tensor | None,
    out: torch.Tensor,
    heads: int,
    element: str,
    longest: int = LONGEST,
) -> None:
    """Fill out [N, D]. ``element`` says how float32 is multiplied and must store what qkv is.

    ``longest``: no pixel has more tokens; spares a launch that would find nothing to do.
    """
    pixels, head_width = offsets.numel() - 1, out.shape[1] // heads
    if pixels == 0:
        return
    for short in (True, False):
        if not short and longest <= SHORT:
            continue
        constants, options = plan(heads, head_width, element, multiplicity is not None, short)
        attention_kernel[(pixels * heads,)](
            qkv, offsets, multiplicity, out, **constants, **options
        )  # fmt: skip
