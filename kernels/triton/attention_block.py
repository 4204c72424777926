"""out = LN(x + Wout attention(Wqkv x + bqkv) + bout), x read and out written, nothing between.

x and out [N, D] in the element's storage type; wqkv Linear [3D, D] (q | k | v) and wout Linear
[D, D] of an element without scales, with biases; gamma, beta [D] float32; offsets int32 [P+1];
multiplicity int16 [N] or None. attention.py has the formula, and n <= 256. q, k, v, p and o are
rounded to the element as the unfused kernels round them. Widths go as two powers of two where that
pads less (144 = 128 + 16, 36 = 32 + 16).
A program owns a pixel of up to 64 tokens, in a tile of 16, 32 or 64 by its own n: per head it
projects q, k, v, attends, and adds o_h Wout_h to float32 sums [tile, D] in registers. A longer
pixel has a program per 64 or 128 queries, which projects k and v of 64 keys at a time, under a
running maximum of the scores (all 256 keys at once spill); so k and v are projected up to four
times. Weights are read once per program: 8 D^2 bytes in 16 bit (166 KB at D = 144, 524 KB at 256)
from L2, which bounds it: 64 tokens do 8 D^2 + 4 n D FLOP each, 64 to 80 FLOP per byte of L2.
Per token 8 D^2 + 4 n D FLOP and 2 D elements of device memory, where unfused it is 11 D.
"""

import math

import torch
import triton
import triton.language as tl

from .attention import LONGEST, SHORT, Plan, log2_multiplicity
from .blocks import narrow, normalize, parts, product, row_sum, square_deviation
from .device import Capability, capability
from .elements import ELEMENTS, Linear

EPS = 1e-5
WIDEST = 256


@triton.jit
def _w(w, row, first, last, column, WIDTH: tl.constexpr, DEPTH: tl.constexpr, D: tl.constexpr,
       EVEN: tl.constexpr):  # fmt: skip
    """W[row + first .. + WIDTH, column .. + DEPTH]^T, zero from row + last on and from column D on.

    EVEN: nothing is beyond."""
    j = first + tl.arange(0, WIDTH)
    c = column + tl.arange(0, DEPTH)
    pointers = w + row * D + (j[None, :].to(tl.int64) * D + c[:, None])
    if EVEN:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(j < last)[None, :] & (c < D)[:, None], other=0.0)


@triton.jit
def _project(a, w, y0, y1, row, column, DEPTH: tl.constexpr, K: tl.constexpr, K0: tl.constexpr,
             K1: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """y0 | y1 + a W[row .. row + K, column ..]^T. WHOLE: no column is beyond D."""
    y0 = product(a, _w(w, row, 0, K, column, K0, DEPTH, D, WHOLE and K0 <= K), y0, PRECISION)
    if K1 > 0:
        EVEN: tl.constexpr = WHOLE and K0 + K1 == K
        y1 = product(a, _w(w, row, K0, K, column, K1, DEPTH, D, EVEN), y1, PRECISION)
    return y0, y1


@triton.jit
def _biased(y, bias, row, first, WIDTH: tl.constexpr, K: tl.constexpr, DTYPE: tl.constexpr):
    j = first + tl.arange(0, WIDTH)
    return narrow(y + tl.load(bias + row + j, mask=j < K, other=0.0)[None, :], DTYPE)


@triton.jit
def _x(x, rows, there, column, DEPTH: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr):
    c = column + tl.arange(0, DEPTH)
    mask = there[:, None]
    if not WHOLE:
        mask = mask & (c < D)[None, :]
    return tl.load(x + rows[:, None] * D + c[None, :], mask=mask, other=0.0)


@triton.jit
def _qkv(x, w, bias, rows, there, head, H: tl.constexpr, K: tl.constexpr, K0: tl.constexpr,
         K1: tl.constexpr, DEPTH: tl.constexpr, REST: tl.constexpr,
         PRECISION: tl.constexpr):  # fmt: skip
    """q, k, v of one head for rows of x, each as two blocks of columns, in one pass over x."""
    D: tl.constexpr = H * K
    R: tl.constexpr = rows.shape[0]
    SPARE: tl.constexpr = K1 if K1 > 0 else 16
    DTYPE: tl.constexpr = x.dtype.element_ty
    q0 = tl.zeros([R, K0], tl.float32)
    q1 = tl.zeros([R, SPARE], tl.float32)
    k0 = tl.zeros([R, K0], tl.float32)
    k1 = tl.zeros([R, SPARE], tl.float32)
    v0 = tl.zeros([R, K0], tl.float32)
    v1 = tl.zeros([R, SPARE], tl.float32)
    q = head * K
    k = D + q
    v = D + k
    for column in range(0, D // DEPTH * DEPTH, DEPTH):
        a = _x(x, rows, there, column, DEPTH, D, True)
        q0, q1 = _project(a, w, q0, q1, q, column, DEPTH, K, K0, K1, D, True, PRECISION)
        k0, k1 = _project(a, w, k0, k1, k, column, DEPTH, K, K0, K1, D, True, PRECISION)
        v0, v1 = _project(a, w, v0, v1, v, column, DEPTH, K, K0, K1, D, True, PRECISION)
    if REST > 0:
        LAST: tl.constexpr = D // DEPTH * DEPTH
        WHOLE: tl.constexpr = LAST + REST == D
        a = _x(x, rows, there, LAST, REST, D, WHOLE)
        q0, q1 = _project(a, w, q0, q1, q, LAST, REST, K, K0, K1, D, WHOLE, PRECISION)
        k0, k1 = _project(a, w, k0, k1, k, LAST, REST, K, K0, K1, D, WHOLE, PRECISION)
        v0, v1 = _project(a, w, v0, v1, v, LAST, REST, K, K0, K1, D, WHOLE, PRECISION)
    return (
        _biased(q0, bias, q, 0, K0, K, DTYPE), _biased(q1, bias, q, K0, SPARE, K, DTYPE),
        _biased(k0, bias, k, 0, K0, K, DTYPE), _biased(k1, bias, k, K0, SPARE, K, DTYPE),
        _biased(v0, bias, v, 0, K0, K, DTYPE), _biased(v1, bias, v, K0, SPARE, K, DTYPE),
    )  # fmt: skip


@triton.jit
def _one(x, w, bias, rows, there, row, D: tl.constexpr, K: tl.constexpr, K0: tl.constexpr,
         K1: tl.constexpr, DEPTH: tl.constexpr, REST: tl.constexpr,
         PRECISION: tl.constexpr):  # fmt: skip
    """One of q, k, v, whose rows of W begin at ``row``: a third of the registers of _qkv."""
    R: tl.constexpr = rows.shape[0]
    SPARE: tl.constexpr = K1 if K1 > 0 else 16
    DTYPE: tl.constexpr = x.dtype.element_ty
    y0 = tl.zeros([R, K0], tl.float32)
    y1 = tl.zeros([R, SPARE], tl.float32)
    for column in range(0, D // DEPTH * DEPTH, DEPTH):
        a = _x(x, rows, there, column, DEPTH, D, True)
        y0, y1 = _project(a, w, y0, y1, row, column, DEPTH, K, K0, K1, D, True, PRECISION)
    if REST > 0:
        LAST: tl.constexpr = D // DEPTH * DEPTH
        WHOLE: tl.constexpr = LAST + REST == D
        a = _x(x, rows, there, LAST, REST, D, WHOLE)
        y0, y1 = _project(a, w, y0, y1, row, LAST, REST, K, K0, K1, D, WHOLE, PRECISION)
    return _biased(y0, bias, row, 0, K0, K, DTYPE), _biased(y1, bias, row, K0, SPARE, K, DTYPE)


@triton.jit
def _add_x(acc, x, bias, rows, there, first, WIDTH: tl.constexpr, D: tl.constexpr):
    """acc + x + bias over the columns first .. first + WIDTH."""
    c = first + tl.arange(0, WIDTH)
    block = _x(x, rows, there, first, WIDTH, D, first + WIDTH <= D)
    return acc + (block.to(tl.float32) + tl.load(bias + c, mask=c < D, other=0.0)[None, :])


@triton.jit
def _wout(w, column, first, WIDTH: tl.constexpr, row: tl.constexpr, ROWS: tl.constexpr,
          K: tl.constexpr, D: tl.constexpr, EVEN: tl.constexpr):  # fmt: skip
    """Wout[row .. + ROWS, column + first .. + WIDTH]^T, zero beyond the head and beyond D."""
    j = first + tl.arange(0, WIDTH)
    r = row + tl.arange(0, ROWS)
    pointers = w + column + (r[None, :].to(tl.int64) * D + j[:, None])
    if EVEN:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(j < K)[:, None] & (r < D)[None, :], other=0.0)


@triton.jit
def _scores(q0, q1, k0, k1, log2_m, K1: tl.constexpr, SCALE: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    s = product(q0, tl.trans(k0), None, PRECISION)
    if K1 > 0:
        s = product(q1, tl.trans(k1), s, PRECISION)
    return s * SCALE + log2_m[None, :]


@triton.jit
def _attend(x, w, bias, multiplicity, row, rows, n, head, H: tl.constexpr, K: tl.constexpr,
            SCALE: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, DEPTH: tl.constexpr,
            REST: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """o of one head for a pixel whose tokens are the rows: two blocks of columns."""
    TILE: tl.constexpr = rows.shape[0]
    DTYPE: tl.constexpr = x.dtype.element_ty
    q0, q1, k0, k1, v0, v1 = _qkv(x, w, bias, rows, rows < n, head, H, K, K0, K1, DEPTH, REST,
                                  PRECISION)  # fmt: skip
    log2_m = log2_multiplicity(multiplicity, row, n, TILE, WEIGHTED)
    s = _scores(q0, q1, k0, k1, log2_m, K1, SCALE, PRECISION)
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    total = tl.sum(p, 1)
    p = narrow(p, DTYPE)
    o1 = q1
    if K1 > 0:
        o1 = narrow(product(p, v1, None, PRECISION) / total[:, None], DTYPE)
    return narrow(product(p, v0, None, PRECISION) / total[:, None], DTYPE), o1


@triton.jit
def _attend_long(x, w, bias, multiplicity, row, rows, n, head, H: tl.constexpr, K: tl.constexpr,
                 SCALE: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr, DEPTH: tl.constexpr,
                 REST: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The same for some rows of a pixel, its keys in blocks under a running maximum."""
    D: tl.constexpr = H * K
    ROWS: tl.constexpr = rows.shape[0]
    SPARE: tl.constexpr = K1 if K1 > 0 else 16
    DTYPE: tl.constexpr = x.dtype.element_ty
    q0, q1 = _one(x, w, bias, rows, rows < n, head * K, D, K, K0, K1, DEPTH, REST, PRECISION)
    o0 = tl.zeros([ROWS, K0], tl.float32)
    o1 = tl.zeros([ROWS, SPARE], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    first = 0
    while first < n:
        keys = first + tl.arange(0, 64)
        k0, k1 = _one(x, w, bias, keys, keys < n, D + head * K, D, K, K0, K1, DEPTH, REST,
                      PRECISION)  # fmt: skip
        log2_m = log2_multiplicity(multiplicity, row + first, n - first, 64, WEIGHTED)
        s = _scores(q0, q1, k0, k1, log2_m, K1, SCALE, PRECISION)
        new_top = tl.maximum(top, tl.max(s, 1))
        shrink = tl.exp2(top - new_top)
        p = tl.exp2(s - new_top[:, None])
        total = total * shrink + tl.sum(p, 1)
        top = new_top
        p = narrow(p, DTYPE)
        v0, v1 = _one(x, w, bias, keys, keys < n, 2 * D + head * K, D, K, K0, K1, DEPTH, REST,
                      PRECISION)  # fmt: skip
        o0 = product(p, v0, o0 * shrink[:, None], PRECISION)
        if K1 > 0:
            o1 = product(p, v1, o1 * shrink[:, None], PRECISION)
        first += 64
    return narrow(o0 / total[:, None], DTYPE), narrow(o1 / total[:, None], DTYPE)


@triton.jit
def _queries(x, wqkv, bqkv, wout, bout, gamma, beta, multiplicity, out, row, start, n,
             H: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr, EPSILON: tl.constexpr,
             K0: tl.constexpr, K1: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
             DEPTH: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr, ALL: tl.constexpr,
             WEIGHTED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The rows start .. + ROWS of a pixel; x and out point to its first. ALL: it has no more."""
    D: tl.constexpr = H * K
    DTYPE: tl.constexpr = x.dtype.element_ty
    SPARE: tl.constexpr = D1 if D1 > 0 else 16
    queries = start + tl.arange(0, ROWS)
    asked = queries < n
    acc0 = tl.zeros([ROWS, D0], tl.float32)
    acc1 = tl.zeros([ROWS, SPARE], tl.float32)
    for head in range(0, H):
        if ALL:
            o0, o1 = _attend(x, wqkv, bqkv, multiplicity, row, queries, n, head, H, K, SCALE, K0,
                             K1, DEPTH, REST, WEIGHTED, PRECISION)  # fmt: skip
        else:
            o0, o1 = _attend_long(x, wqkv, bqkv, multiplicity, row, queries, n, head, H, K, SCALE,
                                  K0, K1, DEPTH, REST, WEIGHTED, PRECISION)  # fmt: skip
        EVEN: tl.constexpr = K0 <= K and D0 <= D
        acc0 = product(o0, _wout(wout, head * K, 0, K0, 0, D0, K, D, EVEN), acc0, PRECISION)
        if D1 > 0:
            acc1 = product(o0, _wout(wout, head * K, 0, K0, D0, D1, K, D, False), acc1, PRECISION)
        if K1 > 0:
            acc0 = product(o1, _wout(wout, head * K, K0, K1, 0, D0, K, D, False), acc0, PRECISION)
            if D1 > 0:
                b = _wout(wout, head * K, K0, K1, D0, D1, K, D, False)
                acc1 = product(o1, b, acc1, PRECISION)

    c0 = tl.arange(0, D0)
    c1 = D0 + tl.arange(0, SPARE)
    acc0 = _add_x(acc0, x, bout, queries, asked, 0, D0, D)
    mean = row_sum(acc0, c0, D)
    if D1 > 0:
        acc1 = _add_x(acc1, x, bout, queries, asked, D0, D1, D)
        mean += row_sum(acc1, c1, D)
    mean = mean / D
    squares = square_deviation(acc0, mean, c0, D)
    if D1 > 0:
        squares += square_deviation(acc1, mean, c1, D)
    rstd = 1.0 / tl.sqrt(squares / D + EPSILON)
    out += queries[:, None] * D
    y = narrow(normalize(acc0, mean, rstd, gamma, beta, c0, D), DTYPE)
    tl.store(out + c0[None, :], y, mask=asked[:, None] & (c0 < D)[None, :])
    if D1 > 0:
        y = narrow(normalize(acc1, mean, rstd, gamma, beta, c1, D), DTYPE)
        tl.store(out + c1[None, :], y, mask=asked[:, None] & (c1 < D)[None, :])


@triton.jit
def _pixel(x, wqkv, bqkv, wout, bout, gamma, beta, multiplicity, out, row, n,
           H: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr, EPSILON: tl.constexpr,
           K0: tl.constexpr, K1: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
           DEPTH: tl.constexpr, REST: tl.constexpr, TILE: tl.constexpr, WEIGHTED: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """A pixel of at most TILE tokens."""
    _queries(x, wqkv, bqkv, wout, bout, gamma, beta, multiplicity, out, row, 0, n, H, K, SCALE,
             EPSILON, K0, K1, D0, D1, DEPTH, REST, TILE, True, WEIGHTED, PRECISION)  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["multiplicity"])
def attention_block_kernel(x, wqkv, bqkv, wout, bout, gamma, beta, offsets, multiplicity, out,
                           H: tl.constexpr, K: tl.constexpr, SCALE: tl.constexpr,
                           EPSILON: tl.constexpr, K0: tl.constexpr, K1: tl.constexpr,
                           D0: tl.constexpr, D1: tl.constexpr, DEPTH: tl.constexpr,
                           REST: tl.constexpr, ROWS: tl.constexpr, SHORT_ONES: tl.constexpr,
                           WEIGHTED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """SHORT_ONES: pixels of 1 .. 64 tokens, grid [P]; else of 65 .. 256, grid [P, 256 / ROWS]."""
    start = tl.load(offsets + tl.program_id(0))
    n = tl.load(offsets + tl.program_id(0) + 1) - start
    row = start.to(tl.int64)
    x += row * (H * K)
    out += row * (H * K)
    if SHORT_ONES:
        if n > 0:
            if n <= 16:
                _pixel(x, wqkv, bqkv, wout, bout, gamma, beta, multiplicity, out, row, n, H, K,
                       SCALE, EPSILON, K0, K1, D0, D1, DEPTH, REST, 16, WEIGHTED,
                       PRECISION)  # fmt: skip
            elif n <= 32:
                _pixel(x, wqkv, bqkv, wout, bout, gamma, beta, multiplicity, out, row, n, H, K,
                       SCALE, EPSILON, K0, K1, D0, D1, DEPTH, REST, 32, WEIGHTED,
                       PRECISION)  # fmt: skip
            elif n <= 64:
                _pixel(x, wqkv, bqkv, wout, bout, gamma, beta, multiplicity, out, row, n, H, K,
                       SCALE, EPSILON, K0, K1, D0, D1, DEPTH, REST, 64, WEIGHTED,
                       PRECISION)  # fmt: skip
    elif n > 64:
        first = tl.program_id(1) * ROWS
        if first < n:
            _queries(x, wqkv, bqkv, wout, bout, gamma, beta, multiplicity, out, row, first, n, H,
                     K, SCALE, EPSILON, K0, K1, D0, D1, DEPTH, REST, ROWS, False, WEIGHTED,
                     PRECISION)  # fmt: skip


def fits_block(width: int, element: str) -> bool:
    """Whether attention_block is meant for a model: its sums fit registers without spills.

    In float32 and at other widths it is right too, but linear, attention, linear_norm are faster.
    """
    kind = ELEMENTS[element]
    return width <= WIDEST and not kind.scaled and kind.storage != torch.float32


def plan(
    heads: int, head_width: int, element: str, weighted: bool, short: bool, of: Capability
) -> Plan:
    """Sizes of a launch, from the model's shape and the device alone.

    Found by compiling: the widest steps over D, and the most queries, that spill nothing.
    """
    kind = ELEMENTS[element]
    width = heads * head_width
    k0, k1 = parts(head_width)
    d0, d1 = parts(width)
    tight = short and of not in ((8, 0), (9, 0), (10, 0))
    depth = 16 if width % 32 or tight else 32
    constants = {
        "H": heads,
        "K": head_width,
        "SCALE": math.log2(math.e) / math.sqrt(head_width),  # logits in base 2
        "EPSILON": EPS,
        "K0": k0,
        "K1": k1,
        "D0": d0,
        "D1": d1,
        "DEPTH": depth,
        "REST": 16 if width % depth else 0,
        "ROWS": 128 if width <= 160 else 64,
        "SHORT_ONES": short,
        "WEIGHTED": weighted,
        "PRECISION": kind.input_precision,
    }
    # 144 columns of sums in 72 registers of a thread, 256 in 64
    warps = 4 if short and width <= 160 else 8
    return Plan(
        constants, {"num_warps": warps, "num_stages": 3 if warps == 8 and width <= 160 else 2}
    )


def attention_block(
    x: torch.Tensor,
    wqkv: Linear,
    wout: Linear,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    offsets: torch.Tensor,
    multiplicity: torch.Tensor | None,
    out: torch.Tensor,
    heads: int,
    longest: int = LONGEST,
) -> None:
    """Fill out [N, D], which is not x. ``longest``: no pixel has more tokens; spares a launch."""
    pixels, width = offsets.numel() - 1, x.shape[1]
    if pixels == 0:
        return
    for short in (True, False):
        if not short and longest <= SHORT:
            continue
        weighted = multiplicity is not None
        of = capability(x.device)
        constants, options = plan(heads, width // heads, wqkv.element, weighted, short, of)
        blocks = 1 if short else triton.cdiv(longest, constants["ROWS"])
        attention_block_kernel[(pixels, blocks)](
            x, wqkv.weight, wqkv.bias, wout.weight, wout.bias, gamma, beta, offsets, multiplicity,
            out, **constants, **options,
        )  # fmt: skip
