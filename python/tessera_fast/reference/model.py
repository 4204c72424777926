"""The plain padded model: packed tokens back to padded sequences, then the ops in order.

No shortcut of the fast back ends is taken: every filler is a step of its own in attention,
recurrence and pooling. Pixels of equal sequence length share a batch; memory is bounded by
STEPS_PER_BATCH, whatever the number of pixels.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..packing import PackedTokens
from ..spec import ModelSpec
from . import ops

STEPS_PER_BATCH = 4096
FUSION_HEADS = 4  # whatever the encoder's heads


def to_tensors(
    arrays: Mapping[str, np.ndarray], dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    """Copy named float32 arrays to torch tensors of ``dtype``."""
    return {name: torch.tensor(a, dtype=dtype, device=device) for name, a in arrays.items()}


def forward(
    spec: ModelSpec,
    tensors: Mapping[str, Tensor],
    s2: PackedTokens,
    s1: PackedTokens,
    dtype: torch.dtype,
) -> np.ndarray:
    """The embeddings of P pixels: (P, saved_dim) of ``dtype``.

    ``tensors`` are the parameters by their official names, from :func:`to_tensors` with the same
    ``dtype``. A pixel without tokens in both streams is a row of NaN; in one stream, that stream
    reads ``spec.empty_steps`` zero tokens of day 0, in standardised units.
    """
    with torch.no_grad():
        observed = np.flatnonzero((np.diff(s2.offsets) > 0) | (np.diff(s1.offsets) > 0))
        out = torch.full((s2.pixels, spec.saved_dim), torch.nan, dtype=dtype)
        streams = [
            _encode_stream(spec, _below(tensors, name), packed, observed, dtype)
            for name, packed in (("s2_backbone", s2), ("s1_backbone", s1))
        ]
        for rows in torch.arange(len(observed)).split(STEPS_PER_BATCH):
            fused = _fuse(spec, tensors, streams[0][rows], streams[1][rows])
            reduced = ops.reduce(fused, _below(tensors, "dim_reducer"), spec.final_norm)
            out[torch.from_numpy(observed)[rows]] = reduced[:, : spec.saved_dim].cpu()
    return out.numpy()


def padded_steps(packed: PackedTokens, pixel: int) -> np.ndarray:
    """The padded sequence of a pixel as indices into all tokens: int64 (T,).

    In the order of ``steps`` where there are any, else each token repeated by its multiplicity.
    """
    first, last = packed.offsets[pixel : pixel + 2]
    if packed.steps is None or packed.step_offsets is None:
        return np.repeat(np.arange(first, last), packed.multiplicity[first:last])
    start, stop = packed.step_offsets[pixel : pixel + 2]
    return first + packed.steps[start:stop].astype(np.int64)


def _encode_stream(
    spec: ModelSpec,
    w: Mapping[str, Tensor],
    packed: PackedTokens,
    pixels: np.ndarray,
    dtype: torch.dtype,
) -> Tensor:
    """Pooled encoder outputs (len(pixels), D) of one stream."""
    device = w["embedding.0.weight"].device
    bands, doy = _standardized_tokens(spec, packed)
    # one more token, zero on day 0, stands for the steps of an empty stream
    bands = torch.cat([bands, torch.zeros(1, bands.shape[1])])
    doy = torch.cat([doy, torch.zeros(1, dtype=torch.int64)])
    nothing = np.full(spec.empty_steps, len(bands) - 1)

    by_length: dict[int, list[tuple[int, np.ndarray]]] = {}
    for position, pixel in enumerate(pixels):
        steps = padded_steps(packed, pixel)
        steps = steps if len(steps) else nothing
        by_length.setdefault(len(steps), []).append((position, steps))

    table = ops.positional_table(spec.d_model).to(device, dtype)
    out = torch.empty(len(pixels), spec.d_model, dtype=dtype, device=device)
    for length, members in by_length.items():
        batch = max(1, STEPS_PER_BATCH // length)
        for start in range(0, len(members), batch):
            chunk = members[start : start + batch]
            index = torch.from_numpy(np.stack([steps for _, steps in chunk]))
            x = bands[index].to(device, dtype)
            out[[position for position, _ in chunk]] = _encode(
                spec, w, x, doy[index].to(device), table
            )
    return out


def _standardized_tokens(spec: ModelSpec, packed: PackedTokens) -> tuple[Tensor, Tensor]:
    """bands (N, C) float32 in standardised units, doy (N,) int64."""
    bands = torch.from_numpy(packed.bands.astype(np.float32))
    doy = torch.from_numpy(packed.doy.astype(np.int64))
    if packed.standardized:
        return bands, doy
    row = torch.from_numpy(packed.orbit.astype(np.int64))
    mean, std = ops.statistics_rows(spec.statistics, bands.shape[1])
    return ops.standardize(bands, row, mean, std), doy


def _encode(
    spec: ModelSpec, w: Mapping[str, Tensor], bands: Tensor, doy: Tensor, table: Tensor
) -> Tensor:
    """bands (P, T, C), doy (P, T) -> (P, D): embedding, encoder layers, pooling."""
    x = ops.embed(bands, doy, table, _below(w, "embedding"))
    for i in range(spec.num_layers):
        layer = _below(w, spec.layer_name("", i).lstrip("."))
        x = ops.transformer_layer(x, layer, spec.num_heads, spec.pre_norm)
    pool = _below(w, "attn_pool")
    context = x
    if spec.pooling == "custom_gru":
        states = ops.custom_gru(x, _below(pool, "temporal_context.gru_cell"))
        context = ops.layer_norm(states, pool["layer_norm.weight"], pool["layer_norm.bias"])
    elif spec.pooling == "torch_gru":
        context = ops.torch_gru(x, _below(pool, "temporal_context"))
    return ops.pool(x, context, pool)


def _fuse(spec: ModelSpec, tensors: Mapping[str, Tensor], s2: Tensor, s1: Tensor) -> Tensor:
    """(P, D) and (P, D) -> (P, 2D): S2 then S1, through the fusion layers where there are any."""
    if not spec.fusion_layers:
        return torch.cat([s2, s1], dim=-1)
    x = torch.stack([s2, s1], dim=1) + tensors["fusion_modality_embed"]
    for i in range(spec.fusion_layers):
        layer = _below(tensors, f"fusion_transformer.layers.{i}")
        x = ops.transformer_layer(x, layer, FUSION_HEADS, spec.pre_norm)
    return x.flatten(1)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named ``prefix.*``, without the prefix."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
