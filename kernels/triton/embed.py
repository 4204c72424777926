"""x = W2 relu(W1 s + b1) + b2 + table[doy], s = (bands - mean[orbit]) / (std[orbit] + 1e-9).

bands [N, C] raw, contiguous: int16 (uint16 as its bit pattern) or float32; or already s, float32.
orbit [N] uint8, doy [N] int16; mean, std [2, C], W1 [D, C], b1, table [367, D] float32; W2 [D, D]
in the element's form, not scaled; x [N, D] of any float type, rows at any stride.
A program owns BM tokens and, of D, at most two blocks P0 + P1 of columns, all of them where they
fit. It walks over the hidden layer in chunks of BH. The first layer has C = 10 or 2 inputs, too few
for a tensor core: C multiplications in float32 per hidden value, of values that are never rounded.
A hidden chunk becomes the operand of the second product at once, and never reaches memory; where D
needs several column blocks (beyond 512), each computes it anew.
FLOPs per token 2 D (C + D), bytes 2 C + 3 + 2 D in 16 bit and the table's row from L2.
"""

import torch
import triton
import triton.language as tl

from .blocks import narrow, parts, power_of_two, product
from .device import Capability, capability
from .elements import ELEMENTS, Linear

WIDEST_ROW = 512  # columns of a program


@triton.jit
def _standardized(
    bands, orbit, mean, std, c: tl.constexpr, C: tl.constexpr,
    STANDARDIZED: tl.constexpr, UNSIGNED: tl.constexpr,
):  # fmt: skip
    """Band c of every token of the program, float32."""
    raw = tl.load(bands + c)
    if UNSIGNED:
        raw = raw.to(tl.int32) & 0xFFFF
    value = raw.to(tl.float32)
    if not STANDARDIZED:
        at = orbit * C + c
        value = tl.div_rn(value - tl.load(mean + at), tl.load(std + at) + 1e-9)
    return value


@triton.jit
def _start(table, doy, b2, cols, D: tl.constexpr):
    """table[doy] + b2: what the sums start from."""
    ok = cols < D
    y = tl.load(table + doy.to(tl.int32)[:, None] * D + cols[None, :], mask=ok[None, :], other=0.0)
    if b2 is not None:
        y += tl.load(b2 + cols, mask=ok, other=0.0)[None, :]
    return y


@triton.jit
def _w2_block(w2, cols, h, D: tl.constexpr, MASKED: tl.constexpr):
    """W2^T [len(h), len(cols)], zero past D inputs; past D outputs the last row again."""
    p = w2 + tl.minimum(cols, D - 1)[None, :] * D + h[:, None]
    if MASKED:
        return tl.load(p, mask=(h < D)[:, None], other=0.0)
    else:
        return tl.load(p)


@triton.jit(do_not_specialize=["M"], do_not_specialize_on_alignment=["bands", "orbit", "doy"])
def _embed(
    bands, orbit, doy, mean, std, w1, b1, w2, b2, table, out, M,
    C: tl.constexpr, D: tl.constexpr, OUT_ROW: tl.constexpr,
    BM: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, BH: tl.constexpr,
    STANDARDIZED: tl.constexpr, UNSIGNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    COLUMN_TILES: tl.constexpr = 1 if P1 > 0 else (D + P0 - 1) // P0
    MASKED: tl.constexpr = D % BH > 0
    program = tl.program_id(0)
    row = program // COLUMN_TILES * BM + tl.arange(0, BM)
    cols = program % COLUMN_TILES * P0 + tl.arange(0, P0)
    more = P0 + tl.arange(0, P1 if P1 > 0 else 1)
    ok = row < M
    row = tl.minimum(row, M - 1).to(tl.int64)
    bands += row * C
    statistics = tl.load(orbit + row).to(tl.int32)
    day = tl.load(doy + row)

    acc = _start(table, day, b2, cols, D)
    if P1 > 0:
        acc1 = _start(table, day, b2, more, D)
    s = ()
    for c in tl.static_range(C):
        band = _standardized(bands, statistics, mean, std, c, C, STANDARDIZED, UNSIGNED)
        s = s + (band,)  # type: ignore[assignment]  # noqa: RUF005 (no unpacking in Triton)
    for start in tl.range(0, D, BH):
        h = start + tl.arange(0, BH)
        h_row = tl.minimum(h, D - 1)
        hidden = tl.zeros([BM, BH], tl.float32)
        if b1 is not None:
            hidden += tl.load(b1 + h_row)[None, :]
        for c in tl.static_range(C):
            hidden += s[c][:, None] * tl.load(w1 + h_row * C + c)[None, :]
        a = narrow(tl.maximum(hidden, 0.0), w2.dtype.element_ty)
        acc = product(a, _w2_block(w2, cols, h, D, MASKED), acc, PRECISION)
        if P1 > 0:
            acc1 = product(a, _w2_block(w2, more, h, D, MASKED), acc1, PRECISION)

    DTYPE: tl.constexpr = out.dtype.element_ty
    out += row[:, None] * OUT_ROW
    mask = ok[:, None] & (cols < D)[None, :]
    tl.store(out + cols[None, :], narrow(acc, DTYPE), mask=mask)
    if P1 > 0:
        mask = ok[:, None] & (more < D)[None, :]
        tl.store(out + more[None, :], narrow(acc1, DTYPE), mask=mask)


def config(d: int, element: str, of: Capability) -> tuple[int, int, int, int, int]:
    """(BM, P0, P1, BH, warps) for width d; it does not depend on the number of tokens."""
    p0, p1 = parts(d) if d <= WIDEST_ROW else (256, 0)
    rows = 64 if d <= 256 else 32
    if ELEMENTS[element].operand == torch.float32:
        rows //= 2
    return rows, p0, p1, min(32, max(16, power_of_two(d))), 4 if p0 + p1 <= 160 else 8


def embed(
    bands: torch.Tensor,
    orbit: torch.Tensor,
    doy: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    w1: Linear,
    w2: Linear,
    table: torch.Tensor,
    out: torch.Tensor,
    *,
    standardized: bool = False,
    unsigned: bool = False,
) -> None:
    """Tokens to vectors. ``w1`` is fp32; ``w2`` of an element that is not scaled
    (elements.ACCURATE); ``unsigned``: int16 bands are bit patterns of uint16.
    """
    (n, c), d = bands.shape, out.shape[1]
    assert w1.element in ("fp32", "tf32") and w2.scale is None
    if n == 0:
        return
    rows, p0, p1, depth, warps = config(d, w2.element, capability(bands.device))
    columns = 1 if p1 else triton.cdiv(d, p0)
    _embed[(triton.cdiv(n, rows) * columns,)](
        bands, orbit, doy, mean, std, w1.weight, w1.bias, w2.weight, w2.bias, table, out, n,
        c, d, out.stride(0), rows, p0, p1, depth, standardized, unsigned,
        ELEMENTS[w2.element].input_precision, num_warps=warps, num_stages=2,
    )  # fmt: skip
