"""The last step: y [P, E'] float32 to embeddings [P, E], float32 or int8 codes with scales [P].

Optionally a LayerNorm without parameters over all E' columns; then the first E of them. int8:
scale = max(max(max|e|, absmax_floor) / 127, scale_floor), code = round-half-even(e / scale) in
-127 .. 127. A pixel whose ``valid`` (uint8 [P]) is 0, or that holds a NaN, has no data: a row of
NaN, or codes 0 and scale +inf. The same floats give the bits of quantization.py: the divisions are
IEEE's (Triton's ``/`` is 2 ulp off, a product with 1 / scale moves codes that lie at a half), and
adding 1.5 * 2^23 to a magnitude below 2^22 rounds half to even.
A program owns ROWS pixels, whole rows; a row's sums do not depend on its place.

Per pixel: 10 E' FLOP, 4 E' bytes read, 4 E or E + 4 written: bound by memory.
"""

import torch
import triton
import triton.language as tl

from .blocks import power_of_two

EPS = 1e-5
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23


@triton.jit(do_not_specialize=["P"], do_not_specialize_on_alignment=["out", "scales"])
def finish_kernel(y, valid, out, scales, P, absmax_floor, scale_floor,
                  WIDTH: tl.constexpr, E: tl.constexpr, Y_ROW: tl.constexpr, ROWS: tl.constexpr,
                  BLOCK: tl.constexpr, NORM: tl.constexpr, EPSILON: tl.constexpr):  # fmt: skip
    """Grid [P / ROWS]. ``scales`` None: out is float32, else int8."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    in_row = (row < P)[:, None]
    at = row.to(tl.int64)[:, None]
    e = tl.load(y + at * Y_ROW + c[None, :], mask=in_row & (c < WIDTH)[None, :], other=0.0)
    data = tl.load(valid + row, mask=row < P, other=0) != 0
    if NORM:
        mean = tl.sum(e, 1) / WIDTH
        e = tl.where((c < WIDTH)[None, :], e - mean[:, None], 0.0)
        e = e * (1.0 / tl.sqrt(tl.sum(e * e, 1) / WIDTH + EPSILON))[:, None]
    kept = (c < E)[None, :]
    out += at * E + c[None, :]
    if scales is None:
        tl.store(out, tl.where(data[:, None], e, float("nan")), mask=in_row & kept)
    else:
        e = tl.where(kept, e, 0.0)
        data = data & (tl.sum((e != e).to(tl.int32), 1) == 0)
        e = tl.where(data[:, None], e, 0.0)
        largest = tl.maximum(tl.max(tl.abs(e), 1), absmax_floor)
        scale = tl.maximum(tl.div_rn(largest, tl.full([ROWS], 127.0, tl.float32)), scale_floor)
        code = (tl.div_rn(e, tl.broadcast_to(scale[:, None], [ROWS, BLOCK])) + _ROUND) - _ROUND
        code = tl.minimum(tl.maximum(code, -127.0), 127.0)
        tl.store(out, code.to(tl.int8), mask=in_row & kept)
        tl.store(scales + row, tl.where(data, scale, float("inf")), mask=row < P)


def finish(
    y: torch.Tensor,
    valid: torch.Tensor,
    out: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
    *,
    final_norm: bool,
    absmax_floor: float = 0.0,
    scale_floor: float = 0.0,
) -> None:
    """Fill ``out``: float32 [P, E], or (codes int8 [P, E], scales float32 [P]); contiguous."""
    values, scales = out if isinstance(out, tuple) else (out, None)
    pixels, width = y.shape
    if pixels == 0:
        return
    block = power_of_two(width)
    rows = max(1, 1024 // block)
    finish_kernel[(triton.cdiv(pixels, rows),)](
        y, valid, values, scales, pixels, absmax_floor, scale_floor, width, values.shape[1],
        y.stride(0), rows, block, final_norm, EPS, num_warps=4,
    )  # fmt: skip
