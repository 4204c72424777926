"""Every op of a TESSERA encoder as plain torch, dense and batched over pixels.

The dtype of the tensors, float32 or float64, is the dtype of the arithmetic, with two exceptions
that the models fix in float32 at any precision: the positional table and the pre-norm QK-norm.
``w`` is a mapping of one block's parameters by their official names below the block's prefix.

P pixels, T steps of a padded sequence, C bands, D width, H heads, K head width, F feed-forward
width, E embedding width.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..spec import MAX_DOY, ModelSpec, Statistics

Params = Mapping[str, Tensor]
LAYER_NORM_EPS = 1e-5


def positional_table(d_model: int) -> Tensor:
    """Sinusoids of the day of year 0..366: float32 (367, D), computed in float32 at any precision.

    Row t holds sin(t f_i) in column 2i and cos(t f_i) in column 2i + 1, with
    f = exp(arange(0, D, 2) * -(ln 10000 / D)).
    """
    even = torch.arange(0, d_model, 2, dtype=torch.float32)
    frequency = torch.exp(even * -(math.log(10000.0) / d_model))
    angle = torch.arange(MAX_DOY + 1, dtype=torch.float32)[:, None] * frequency
    return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1)


def statistics_rows(statistics: Statistics, bands: int) -> tuple[Tensor, Tensor]:
    """Mean and std, float32 (rows, C): one row for Sentinel-2, one per orbit for Sentinel-1."""
    if bands == len(statistics.s2_mean):
        mean, std = [statistics.s2_mean], [statistics.s2_std]
    else:
        mean, std = list(statistics.s1_mean), list(statistics.s1_std)
    return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


def standardize(bands: Tensor, row: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-9) with each token's row of the statistics, in float32.

    bands (N, C) float32, row (N,) int64, mean and std (rows, C) float32 -> (N, C) float32.
    """
    return (bands - mean[row]) / (std[row] + 1e-9)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. x (..., n_in), weight (n_out, n_in), bias (n_out,) -> (..., n_out)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + 1e-5) * weight + bias over the last axis, var the population's.

    x (..., D), weight and bias (D,) or None -> (..., D).
    """
    centred = x - x.mean(-1, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + LAYER_NORM_EPS)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; eps is the machine epsilon of x's
    dtype, as in torch.nn.RMSNorm. x (..., K), weight (K,) -> (..., K).
    """
    eps = torch.finfo(x.dtype).eps
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def embed(bands: Tensor, doy: Tensor, table: Tensor, w: Params) -> Tensor:
    """Linear ReLU Linear on the standardised bands, plus the sinusoids of the raw day.

    bands (P, T, C), doy (P, T) int64, table (367, D) -> (P, T, D).
    """
    hidden = torch.relu(linear(bands, w["0.weight"], w["0.bias"]))
    return linear(hidden, w["2.weight"], w["2.bias"]) + table[doy]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(P, T, D) -> (P, H, T, K)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K) + key_bias) v per head, dense, no mask.

    q, k, v (P, H, T, K), key_bias (P, T) added to every query's logits -> (P, T, D), heads joined.
    """
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if key_bias is not None:
        logits = logits + key_bias[:, None, None, :]
    return (torch.softmax(logits, dim=-1) @ v).transpose(1, 2).flatten(2)


def self_attention(
    x: Tensor, w: Params, num_heads: int, pre_norm: bool, key_bias: Tensor | None
) -> Tensor:
    """Projections, optional QK-norm, attention, output projection. x (P, T, D) -> (P, T, D).

    QK-norm is the one with separate projections. In a pre-norm layer it runs in float32.
    """
    if "self_attn.in_proj_weight" in w:
        joint = linear(x, w["self_attn.in_proj_weight"], w["self_attn.in_proj_bias"])
        q, k, v = (split_heads(part, num_heads) for part in joint.chunk(3, dim=-1))
        out = "self_attn.out_proj"
    else:
        q, k, v = (
            split_heads(linear(x, w[f"{p}_proj.weight"], w[f"{p}_proj.bias"]), num_heads)
            for p in "qkv"
        )
        norm_dtype = torch.float32 if pre_norm else x.dtype
        q, k = (
            rms_norm(y.to(norm_dtype), w[f"{p}_norm.weight"].to(norm_dtype)).to(x.dtype)
            for p, y in (("q", q), ("k", k))
        )
        out = "out_proj"
    return linear(attention(q, k, v, key_bias), w[f"{out}.weight"], w[f"{out}.bias"])


def transformer_layer(
    x: Tensor, w: Params, num_heads: int, pre_norm: bool = False, key_bias: Tensor | None = None
) -> Tensor:
    """One encoder layer. x (P, T, D), key_bias (P, T) -> (P, T, D).

    Post-norm: x = LN1(x + attention(x)); x = LN2(x + FFN(x)).
    Pre-norm: x = x + attention(LN1(x)); x = x + FFN(LN2(x)).
    """

    def norm(y: Tensor, name: str) -> Tensor:
        return layer_norm(y, w[f"{name}.weight"], w[f"{name}.bias"])

    def feed_forward(y: Tensor) -> Tensor:
        hidden = torch.relu(linear(y, w["linear1.weight"], w["linear1.bias"]))
        return linear(hidden, w["linear2.weight"], w["linear2.bias"])

    def attend(y: Tensor) -> Tensor:
        return self_attention(y, w, num_heads, pre_norm, key_bias)

    if pre_norm:
        x = x + attend(norm(x, "norm1"))
        return x + feed_forward(norm(x, "norm2"))
    x = norm(x + attend(x), "norm1")
    return norm(x + feed_forward(x), "norm2")


def pool(x: Tensor, context: Tensor, w: Params, step_bias: Tensor | None = None) -> Tensor:
    """sum_t a_t x_t with a = softmax over steps of query(context) + step_bias.

    x and context (P, T, D), step_bias (P, T) -> (P, D). The context is x itself, or the states
    of a recurrence; the weights always apply to x, the encoder's output.
    """
    logits = linear(context, w["query.weight"], w["query.bias"])
    if step_bias is not None:
        logits = logits + step_bias[..., None]
    return (torch.softmax(logits, dim=1) * x).sum(dim=1)


def custom_gru(x: Tensor, w: Params) -> Tensor:
    """The states of the recurrence of v1.1 and v1.0-qat, h_0 = 0. x (P, T, D) -> (P, T, D).

    r = s(W_ir x + W_hr h + b_r), z = s(W_iz x + W_hz h + b_z),
    c = tanh(W_ih x + W_hh (r * h) + b_h), h' = (1 - z) h + z c.
    Unlike torch.nn.GRU, r multiplies h before W_hh and z weighs the candidate, not the state.
    """
    h = torch.zeros_like(x[:, 0])
    states = []
    for x_t in x.unbind(1):
        r = torch.sigmoid(linear(x_t, w["W_ir.weight"]) + linear(h, w["W_hr.weight"]) + w["b_r"])
        z = torch.sigmoid(linear(x_t, w["W_iz.weight"]) + linear(h, w["W_hz.weight"]) + w["b_z"])
        c = torch.tanh(linear(x_t, w["W_ih.weight"]) + linear(r * h, w["W_hh.weight"]) + w["b_h"])
        h = (1 - z) * h + z * c
        states.append(h)
    return torch.stack(states, dim=1)


def torch_gru(x: Tensor, w: Params) -> Tensor:
    """The states of a one-layer torch.nn.GRU (v1.0), h_0 = 0. x (P, T, D) -> (P, T, D).

    With the rows of the joint weights in the order r, z, n: r = s(W_ir x + b_ir + W_hr h + b_hr),
    z likewise, n = tanh(W_in x + b_in + r * (W_hn h + b_hn)), h' = (1 - z) n + z h.
    """
    h = torch.zeros_like(x[:, 0])
    states = []
    for x_t in x.unbind(1):
        input_part = linear(x_t, w["weight_ih_l0"], w["bias_ih_l0"]).chunk(3, dim=-1)
        state_part = linear(h, w["weight_hh_l0"], w["bias_hh_l0"]).chunk(3, dim=-1)
        r = torch.sigmoid(input_part[0] + state_part[0])
        z = torch.sigmoid(input_part[1] + state_part[1])
        n = torch.tanh(input_part[2] + r * state_part[2])
        h = (1 - z) * n + z * h
        states.append(h)
    return torch.stack(states, dim=1)


def reduce(x: Tensor, w: Params, final_norm: bool) -> Tensor:
    """The reducer: Linear LayerNorm ReLU Linear, or one Linear; then a LayerNorm without
    parameters where ``final_norm``. x (P, 2D) -> (P, E).
    """
    y = linear(x, w["0.weight"], w["0.bias"])
    if "4.weight" in w:
        y = torch.relu(layer_norm(y, w["1.weight"], w["1.bias"]))
        y = linear(y, w["4.weight"], w["4.bias"])
    return layer_norm(y) if final_norm else y


def quantize(values: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per pixel, in float32: values (..., E) -> codes (..., E) int8, scales (...).

    scale = max(max(max|e|, absmax_floor) / 127, scale_floor); code = round-half-even(e / scale)
    clipped to -127..127. A row that holds NaN is no data: codes 0, scale +inf.
    """
    values = values.to(torch.float32)
    no_data = values.isnan().any(-1)
    largest = values.abs().amax(-1).clamp_min(spec.absmax_floor)
    scales = (largest / 127).clamp_min(spec.scale_floor).masked_fill(no_data, math.inf)
    codes = torch.round(values / scales[..., None]).clamp(-127, 127)
    return codes.masked_fill(no_data[..., None], 0).to(torch.int8), scales
