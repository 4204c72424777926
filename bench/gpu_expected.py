"""What the launchers of the cuda back end should give: each in float64, with plain torch.

A function takes the arguments of the launcher of that name (kernels/triton/) and returns what it
should write; `out` is not looked at. Weights are taken as they are stored, activations are not
rounded between two products of one launcher. P pixels, N tokens, D width.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tessera_fast.kernels.triton.elements import Linear
from tessera_fast.reference import ops

WIDE = torch.float64
Values = Tensor | tuple[Tensor, ...]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.float32).to(WIDE) if x.dtype != WIDE else x


def _times(x: Tensor, w: Linear) -> Tensor:
    matrix = _wide(w.weight)
    if w.scale is not None:
        matrix = matrix * _wide(w.scale)[:, None]
    return ops.linear(_wide(x), matrix, None if w.bias is None else _wide(w.bias))


def _normal(x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    return ops.layer_norm(x, *(None if t is None else _wide(t) for t in (gamma, beta)))


def embed(
    bands: Tensor,
    orbit: Tensor,
    doy: Tensor,
    mean: Tensor,
    std: Tensor,
    w1: Linear,
    w2: Linear,
    table: Tensor,
    out: Any,
    *,
    standardized: bool = False,
    unsigned: bool = False,
) -> Tensor:
    values = bands.to(torch.int32) & 0xFFFF if unsigned else bands
    x = values.to(torch.float32)
    if not standardized:
        x = ops.standardize(x, orbit.long(), mean, std)
    hidden = torch.relu(_times(x, w1))
    return _times(hidden, w2) + _wide(table)[doy.long()]


def linear(
    x: Tensor, w: Linear, out: Any, *, relu: bool = False, residual: Tensor | None = None
) -> Tensor:
    y = _times(x, w)
    y = y if residual is None else y + _wide(residual)
    return torch.relu(y) if relu else y


def linear_norm(
    x: Tensor,
    w: Linear,
    out: Any,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    y = _normal(linear(x, w, None, residual=residual), gamma, beta)
    return torch.relu(y) if relu else y


def layer_norm(
    x: Tensor,
    out: Any,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    y = _wide(x) if residual is None else _wide(x) + _wide(residual)
    y = _normal(y, gamma, beta)
    return torch.relu(y) if relu else y


def rms_norm_heads(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    y = _wide(x).unflatten(-1, (heads, -1))
    eps = torch.finfo(torch.float32).eps
    return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * _wide(weight)).flatten(1)


def attention(
    qkv: Tensor,
    offsets: Tensor,
    multiplicity: Tensor | None,
    out: Any,
    heads: int,
    element: str = "",
    longest: int = 0,
) -> Tensor:
    rows = [qkv.new_empty(0, qkv.shape[1] // 3, dtype=WIDE)]
    bounds = offsets.tolist()
    for first, last in itertools.pairwise(bounds):
        if first == last:
            continue
        q, k, v = (
            ops.split_heads(part[None], heads) for part in _wide(qkv[first:last]).chunk(3, -1)
        )
        bias = None if multiplicity is None else _wide(multiplicity[first:last]).log()[None]
        rows.append(ops.attention(q, k, v, bias)[0])
    return torch.cat(rows)


def attention_block(
    x: Tensor,
    wqkv: Linear,
    wout: Linear,
    gamma: Tensor,
    beta: Tensor,
    offsets: Tensor,
    multiplicity: Tensor | None,
    out: Any,
    heads: int,
    longest: int = 0,
) -> Tensor:
    mixed = attention(_times(x, wqkv), offsets, multiplicity, None, heads)
    return _normal(_wide(x) + _times(mixed, wout), gamma, beta)


def ffn(
    x: Tensor, w1: Linear, w2: Linear, out: Any, gamma: Tensor | None, beta: Tensor | None
) -> Tensor:
    return _normal(_wide(x) + _times(torch.relu(_times(x, w1)), w2), gamma, beta)


def pool(
    x: Tensor,
    query: Tensor,
    query_bias: Tensor,
    offsets: Tensor,
    multiplicity: Tensor | None,
    constant: Tensor,
    out: Any,
) -> Tensor:
    logits = _wide(x) @ _wide(query) + _wide(query_bias)
    if multiplicity is not None:
        logits = logits + _wide(multiplicity).log()
    bounds, rows = offsets.tolist(), []
    for first, last in itertools.pairwise(bounds):
        weights = torch.softmax(logits[first:last], 0)
        rows.append(weights @ _wide(x[first:last]) if last > first else _wide(constant))
    return torch.stack(rows)


def pool_steps(
    x: Tensor,
    logits: Tensor,
    steps: Tensor,
    step_offsets: Tensor,
    offsets: Tensor,
    constant: Tensor,
    out: Any,
    longest: int = 0,
) -> Tensor:
    bounds, rows = step_offsets.tolist(), []
    for pixel, (first, last) in enumerate(itertools.pairwise(bounds)):
        if last == first:
            rows.append(_wide(constant))
            continue
        tokens = offsets[pixel].long() + steps[first:last].long()
        rows.append(torch.softmax(_wide(logits[first:last]), 0) @ _wide(x[tokens]))
    return torch.stack(rows)


def gru(
    kind: str,
    inputs: Tensor,
    recurrent: Any,
    norm: Any,
    query: Tensor,
    query_bias: Tensor,
    steps: Tensor,
    step_offsets: Tensor,
    offsets: Tensor,
    order: Tensor,
    active: Any,
    scratch: Any,
    logits: Tensor,
) -> Tensor:
    D = inputs.shape[1] // 3
    result = torch.zeros(logits.shape, dtype=WIDE, device=logits.device)
    h = torch.zeros(len(order), D, dtype=WIDE, device=inputs.device)
    places = order.long()
    for t, running in enumerate(active):
        pixels, old = places[:running], h[:running]
        step = step_offsets[pixels].long() + t
        i_r, i_z, i_h = _wide(inputs[offsets[pixels].long() + steps[step].long()]).chunk(3, -1)
        if kind == "custom_gru":
            s_r, s_z = _times(old, recurrent[0]).chunk(2, -1)
            r, z = torch.sigmoid(i_r + s_r), torch.sigmoid(i_z + s_z)
            new = (1 - z) * old + z * torch.tanh(i_h + _times(r * old, recurrent[1]))
        else:
            s_r, s_z, s_h = _times(old, recurrent[0]).chunk(3, -1)
            r, z = torch.sigmoid(i_r + s_r), torch.sigmoid(i_z + s_z)
            new = (1 - z) * torch.tanh(i_h + r * s_h) + z * old
        h[:running] = new
        context = new if norm is None else _normal(new, *norm)
        result[step] = context @ _wide(query) + _wide(query_bias)
    return result


def finish(
    y: Tensor,
    valid: Tensor,
    out: Any,
    *,
    final_norm: bool,
    absmax_floor: float = 0.0,
    scale_floor: float = 0.0,
) -> Values:
    values = ops.layer_norm(_wide(y)) if final_norm else _wide(y)
    seen = valid.bool()
    if isinstance(out, Tensor):
        return values[:, : out.shape[1]].masked_fill(~seen[:, None], torch.nan)
    values = values[:, : out[0].shape[1]]
    scales = (values.abs().amax(-1).clamp_min(absmax_floor) / 127).clamp_min(scale_floor)
    codes = torch.round(values / scales[:, None]).clamp(-127, 127)
    return codes.masked_fill(~seen[:, None], 0), scales.masked_fill(~seen, torch.inf)


# A launcher's name -> where its arguments have what it writes, and what that should be.
EXPECTED: dict[str, tuple[int, Callable[..., Values]]] = {
    "embed": (8, embed),
    "linear": (2, linear),
    "linear_norm": (2, linear_norm),
    "layer_norm": (1, layer_norm),
    "rms_norm_heads": (0, rms_norm_heads),
    "attention": (3, attention),
    "attention_block": (7, attention_block),
    "ffn": (3, ffn),
    "pool": (6, pool),
    "pool_steps": (6, pool_steps),
    "gru": (12, gru),
    "finish": (2, finish),
}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value; where both are the same NaN or infinity
    there is none, and where only one is, it is infinite."""
    got = _wide(got)
    same = (got == expected) | (got.isnan() & expected.isnan())
    both = got.isfinite() & expected.isfinite()
    if bool((~same & ~both).any()):
        return float("inf")
    if not bool(both.any()):
        return 0.0
    largest = expected[both].abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(((got[both] - expected[both]).abs().max() / largest).item())
