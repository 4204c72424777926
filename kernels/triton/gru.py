"""Recurrent pooling's logits (v1.x): a GRU over every pixel's padded sequence, query . state.

custom: r = s(i_r + Whr h), z = s(i_z + Whz h), c = tanh(i_h + Whh (r h)), h' = (1 - z) h + z c;
        logit = query . LN(h') + query_bias
torch:  r, z alike, c = tanh(i_n + r (Whn h + bhn)), h' = (1 - z) c + z h; logit without LN
inputs [N, 3D] (r | z | candidate) are W_i x + b of every token, from one linear(); a step reads its
token's row. Row i of a state is pixel order[i], longest first: step t works on the first active[t]
rows. The state is float32, and rounded to the element where a product reads it. A product
program owns 64 or 128 rows x 64 columns of all the gates it needs, whatever the number of rows, so
a pixel's result depends neither on its neighbours nor on which of them still run.

Per step and pixel: 6 D^2 FLOP; 3 D inputs, and states of some 16 D bytes that stay in L2.
Launches: three a step (torch: two), so 768 for 256 steps. A CUDA graph for given (pixels, active)
would remove the host's share; one kernel whose programs keep 64 pixels for all steps would remove
all, at 6 D^2 bytes of weights from L2 per program and step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .blocks import narrow, normalize, power_of_two, product, row_sum, square_deviation
from .device import Capability, capability, shared_memory
from .elements import ELEMENTS, Linear

EPS = 1e-5
COLUMNS = 64  # of a product program, of every gate


class Scratch(NamedTuple):
    """What gru() works in, for P pixels; contents do not matter before or after."""

    state: torch.Tensor  # [P, D] float32: h
    read: torch.Tensor  # [2, P, D] storage type: h as products read it, before and after a step
    gated: torch.Tensor  # [P, D] storage type: r h (custom)
    update: torch.Tensor  # [P, D] float32: z (custom)


def scratch_sizes(
    pixels: int, width: int, element: str
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every field of Scratch."""
    storage = ELEMENTS[element].storage
    return {
        "state": ((pixels, width), torch.float32),
        "read": ((2, pixels, width), storage),
        "gated": ((pixels, width), storage),
        "update": ((pixels, width), torch.float32),
    }


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def _tanh(x):
    """1 - 2 / (e^2x + 1): off by an ulp of 1 at most, and right at infinite e^2x."""
    return 1.0 - 2.0 / (tl.exp2(x * 2.8853900817779268) + 1.0)


@triton.jit
def _add_products(h, w, rows, ok, cols, acc0, acc1, acc2, GATES: tl.constexpr, D: tl.constexpr,
                  DEPTH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """acc_g + h[rows] W[g D + cols]^T for the first GATES of three."""
    for first in range(0, D, DEPTH):
        k = first + tl.arange(0, DEPTH)
        a_mask = ok[:, None]
        b_mask = (cols < D)[None, :]
        if D % DEPTH != 0:
            a_mask = a_mask & (k < D)[None, :]
            b_mask = b_mask & (k < D)[:, None]
        a = tl.load(h + rows[:, None] * D + k[None, :], mask=a_mask, other=0.0)
        b = w + cols[None, :] * D + k[:, None]
        acc0 = product(a, tl.load(b, mask=b_mask, other=0.0), acc0, PRECISION)
        if GATES > 1:
            acc1 = product(a, tl.load(b + D * D, mask=b_mask, other=0.0), acc1, PRECISION)
        if GATES > 2:
            acc2 = product(a, tl.load(b + 2 * D * D, mask=b_mask, other=0.0), acc2, PRECISION)
    return acc0, acc1, acc2


@triton.jit
def _bias(bias, cols, gate: tl.constexpr, D: tl.constexpr):
    return tl.load(bias + gate * D + cols, mask=cols < D, other=0.0)[None, :]


@triton.jit
def _tokens(steps, step_offsets, offsets, order, rows, t, active):
    """The row of ``inputs`` that every row of the state reads in step t."""
    pixel = tl.load(order + rows, mask=rows < active, other=0)
    token = tl.load(steps + tl.load(step_offsets + pixel) + t, mask=rows < active, other=0)
    return (tl.load(offsets + pixel) + token).to(tl.int64)


@triton.jit(do_not_specialize=["t", "active"], do_not_specialize_on_alignment=["steps"])
def gates_kernel(inputs, w, bias, h, read, gated, update,
                 steps, step_offsets, offsets, order, t, active,
                 D: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                 DEPTH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """custom: gated = r h, update = z. Grid [columns, rows]. FIRST: t is 0, and h is zero."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    ok = rows < active
    inside = ok[:, None] & (cols < D)[None, :]
    token = _tokens(steps, step_offsets, offsets, order, rows, t, active)
    i = inputs + token[:, None] * (3 * D) + cols[None, :]
    rows = rows.to(tl.int64)
    at = rows[:, None] * D + cols[None, :]
    r = tl.zeros([ROWS, COLS], tl.float32)
    z = tl.zeros([ROWS, COLS], tl.float32)
    if not FIRST:
        r, z, _ = _add_products(read, w, rows, ok, cols, r, z, r, 2, D, DEPTH, PRECISION)
    if bias is not None:
        r += _bias(bias, cols, 0, D)
        z += _bias(bias, cols, 1, D)
    z = _sigmoid(z + tl.load(i + D, mask=inside, other=0.0).to(tl.float32))
    tl.store(update + at, z, mask=inside)
    if not FIRST:
        r = _sigmoid(r + tl.load(i, mask=inside, other=0.0).to(tl.float32))
        r_h = r * tl.load(h + at, mask=inside, other=0.0)
        tl.store(gated + at, narrow(r_h, gated.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["t", "active"], do_not_specialize_on_alignment=["steps"])
def candidate_kernel(inputs, w, bias, h, read, gated, update,
                     steps, step_offsets, offsets, order, t, active,
                     D: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                     DEPTH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """custom: h and read become h'. Grid [columns, rows]."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    ok = rows < active
    inside = ok[:, None] & (cols < D)[None, :]
    token = _tokens(steps, step_offsets, offsets, order, rows, t, active)
    i = inputs + token[:, None] * (3 * D) + cols[None, :]
    rows = rows.to(tl.int64)
    at = rows[:, None] * D + cols[None, :]
    c = tl.zeros([ROWS, COLS], tl.float32)
    if not FIRST:
        c, _, _ = _add_products(gated, w, rows, ok, cols, c, c, c, 1, D, DEPTH, PRECISION)
    if bias is not None:
        c += _bias(bias, cols, 0, D)
    c = _tanh(c + tl.load(i + 2 * D, mask=inside, other=0.0).to(tl.float32))
    state = tl.load(update + at, mask=inside, other=0.0) * c
    if not FIRST:
        z = tl.load(update + at, mask=inside, other=0.0)
        state += (1.0 - z) * tl.load(h + at, mask=inside, other=0.0)
    tl.store(h + at, state, mask=inside)
    tl.store(read + at, narrow(state, read.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["t", "active"], do_not_specialize_on_alignment=["steps"])
def torch_kernel(inputs, w, bias, h, read, read_next,
                 steps, step_offsets, offsets, order, t, active,
                 D: tl.constexpr, FIRST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                 DEPTH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """torch: h and read_next become h'; ``read`` is still read. Grid [columns, rows]."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    ok = rows < active
    inside = ok[:, None] & (cols < D)[None, :]
    token = _tokens(steps, step_offsets, offsets, order, rows, t, active)
    i = inputs + token[:, None] * (3 * D) + cols[None, :]
    rows = rows.to(tl.int64)
    at = rows[:, None] * D + cols[None, :]
    r = tl.zeros([ROWS, COLS], tl.float32)
    z = tl.zeros([ROWS, COLS], tl.float32)
    c = tl.zeros([ROWS, COLS], tl.float32)
    if not FIRST:
        r, z, c = _add_products(read, w, rows, ok, cols, r, z, c, 3, D, DEPTH, PRECISION)
    if bias is not None:
        r += _bias(bias, cols, 0, D)
        z += _bias(bias, cols, 1, D)
        c += _bias(bias, cols, 2, D)
    r = _sigmoid(r + tl.load(i, mask=inside, other=0.0).to(tl.float32))
    z = _sigmoid(z + tl.load(i + D, mask=inside, other=0.0).to(tl.float32))
    c = _tanh(tl.load(i + 2 * D, mask=inside, other=0.0).to(tl.float32) + r * c)
    state = (1.0 - z) * c
    if not FIRST:
        state += z * tl.load(h + at, mask=inside, other=0.0)
    tl.store(h + at, state, mask=inside)
    tl.store(read_next + at, narrow(state, read_next.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["t", "active"])
def logits_kernel(h, gamma, beta, query, query_bias, step_offsets, order, logits, t, active,
                  D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr,
                  EPSILON: tl.constexpr):  # fmt: skip
    """logits[step t of every active pixel] = query . LN(h) + query_bias. Grid [rows]."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ok = rows < active
    c = tl.arange(0, BLOCK)
    inside = ok[:, None] & (c < D)[None, :]
    x = tl.load(h + rows.to(tl.int64)[:, None] * D + c[None, :], mask=inside, other=0.0)
    if NORM:
        mean = row_sum(x, c, D) / D
        rstd = 1.0 / tl.sqrt(square_deviation(x, mean, c, D) / D + EPSILON)
        x = normalize(x, mean, rstd, gamma, beta, c, D)
    q = tl.load(query + c, mask=c < D, other=0.0)
    logit = tl.sum(x * q[None, :], 1) + tl.load(query_bias)
    pixel = tl.load(order + rows, mask=ok, other=0)
    tl.store(logits + tl.load(step_offsets + pixel) + t, logit, mask=ok)


class Tile(NamedTuple):
    """The shape of a product program."""

    rows: int
    depth: int
    warps: int
    stages: int


def config(element: str, gates: int, of: Capability) -> Tile:
    """The tile of a product of ``gates`` gates: from the element and the device alone."""
    kind = ELEMENTS[element]
    wide = kind.operand == torch.float32
    rows, depth = (64, 32) if wide else (128, 64)
    stage = (rows + gates * COLUMNS) * depth * kind.operand.itemsize
    # A pipeline of s stages holds s tiles where products run on their own (wgmma), else s - 1.
    held = shared_memory(of) * 7 // 8 // stage + (of[0] != 9)
    stages = max(1, min(4, held))
    return Tile(rows, depth, 8, stages)


def gru(
    kind: str,
    inputs: torch.Tensor,
    recurrent: Sequence[Linear],
    norm: tuple[torch.Tensor, torch.Tensor] | None,
    query: torch.Tensor,
    query_bias: torch.Tensor,
    steps: torch.Tensor,
    step_offsets: torch.Tensor,
    offsets: torch.Tensor,
    order: torch.Tensor,
    active: Sequence[int],
    scratch: Scratch,
    logits: torch.Tensor,
) -> None:
    """Fill logits [S] float32.

    ``recurrent``: of "custom_gru" [W_hr; W_hz] [2D, D] and W_hh [D, D], of "torch_gru" one [3D, D]
    with its bias; elements without scales. A bias here is added to the product, the others are
    in ``inputs``. order, steps, offsets, step_offsets int32 on the device; ``active`` on the host:
    active[t] pixels have more than t steps.
    """
    element = recurrent[0].element
    width = inputs.shape[1] // 3
    of, precision = capability(inputs.device), ELEMENTS[element].input_precision
    sequence = (steps, step_offsets, offsets, order)

    def launch(kernel, gates, w, *states, t):  # type: ignore[no-untyped-def]
        tile = config(element, gates, of)
        grid = (triton.cdiv(width, COLUMNS), triton.cdiv(active[t], tile.rows))
        kernel[grid](
            inputs, w.weight, w.bias, *states, *sequence, t, active[t], width, t == 0, tile.rows,
            COLUMNS, tile.depth, precision, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    gamma, beta = norm if norm is not None else (None, None)
    block = power_of_two(width)
    rows = max(1, 4096 // block)
    for t, running in enumerate(active):
        if running == 0:
            break
        s = scratch
        if kind == "custom_gru":
            states = (s.state, s.read[0], s.gated, s.update)
            launch(gates_kernel, 2, recurrent[0], *states, t=t)
            launch(candidate_kernel, 1, recurrent[1], *states, t=t)
        else:
            assert kind == "torch_gru"
            now, after = s.read[t % 2], s.read[1 - t % 2]
            launch(torch_kernel, 3, recurrent[0], s.state, now, after, t=t)
        logits_kernel[(triton.cdiv(running, rows),)](
            s.state, gamma, beta, query, query_bias, step_offsets, order, logits, t, running,
            width, rows, block, norm is not None, EPS, num_warps=4,
        )  # fmt: skip
