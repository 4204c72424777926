"""A model's parameters as the GPU kernels take them: joint projections, an element each, on device.

D width, F feed-forward width, C bands, K head width. Norms, biases, queries and the first layer of
the embedding stay float32; products are prepared by kernels/triton/elements.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.triton.elements import ACCURATE, Linear, prepare
from ...spec import S1_BANDS, S2_BANDS, ModelSpec
from ...weights.positions import positional_table

Norm = tuple[Tensor, Tensor]  # weight and bias [D] float32


@dataclass(frozen=True)
class LayerWeights:
    qkv: Linear  # [3D, D]
    out: Linear  # [D, D]
    ff1: Linear  # [F, D]
    ff2: Linear  # [D, F]
    norm1: Norm
    norm2: Norm
    q_norm: Tensor | None  # [K] float32
    k_norm: Tensor | None


@dataclass(frozen=True)
class GruWeights:
    kind: str  # "custom_gru" | "torch_gru"
    inputs: (
        Linear  # [3D, D], gates r, z, candidate, with every bias that is added outside of a gate
    )
    # on the state: gates r, z [2D, D] and candidate [D, D], or all [3D, D] of the torch GRU
    recurrent: tuple[Linear, ...]
    norm: Norm | None  # of the states, before the query


@dataclass(frozen=True)
class StreamWeights:
    mean: Tensor  # [2, C] float32, a row per orbit
    std: Tensor
    embed1: Linear  # [D, C] float32
    embed2: Linear  # [D, D]
    layers: tuple[LayerWeights, ...]
    query: Tensor  # [D] float32
    query_bias: Tensor  # [1] float32
    gru: GruWeights | None


@dataclass(frozen=True)
class NetworkWeights:
    s2: StreamWeights
    s1: StreamWeights
    table: Tensor  # [367, D] float32
    modality: Tensor | None  # [2, D] float32, with fusion layers
    fusion: tuple[LayerWeights, ...]
    reduce1: Linear  # [4D, 2D], or [E', 2D] where the reducer is one Linear
    reduce_norm: Norm | None
    reduce2: Linear | None  # [E', 4D]


class _Source:
    """Named float32 arrays on the way to a device, as tensors of an element."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], device: torch.device, element: str
    ) -> None:
        self._arrays, self._device, self.element = arrays, device, element
        self.accurate = ACCURATE.get(element, element)

    def vector(self, name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._arrays[name])).to(self._device)

    def joint(self, names: list[str]) -> Tensor:
        return torch.cat([self.vector(name) for name in names])

    def linear(self, name: str, element: str) -> Linear:
        return self.linear_of(f"{name}.weight", f"{name}.bias", element)

    def linear_of(self, weight: str, bias: str, element: str) -> Linear:
        return prepare(self.vector(weight), self.vector(bias), element)

    def norm(self, name: str) -> Norm:
        return self.vector(f"{name}.weight"), self.vector(f"{name}.bias")


def network_weights(
    spec: ModelSpec, arrays: Mapping[str, np.ndarray], device: torch.device, element: str
) -> NetworkWeights:
    """Every parameter of a model on ``device``, by the official names of ``arrays`` (float32).

    The layers of the two encoders take ``element``; the fusion layers and the reducer, where a
    pixel is one row and little is to be won, its accurate sibling (bf16 for fp8 and int8).
    """
    source = _Source(arrays, device, element)
    statistics = spec.statistics
    s2 = _stream(spec, source, "s2_backbone", (statistics.s2_mean,) * 2, (statistics.s2_std,) * 2)
    s1 = _stream(spec, source, "s1_backbone", statistics.s1_mean, statistics.s1_std)
    fusion = tuple(
        _layer(spec, source, f"fusion_transformer.layers.{i}", source.accurate)
        for i in range(spec.fusion_layers)
    )
    mlp = spec.reducer == "mlp"
    return NetworkWeights(
        s2=s2,
        s1=s1,
        table=torch.from_numpy(positional_table(spec.d_model)).to(device),
        modality=source.vector("fusion_modality_embed") if fusion else None,
        fusion=fusion,
        reduce1=source.linear("dim_reducer.0", source.accurate),
        reduce_norm=source.norm("dim_reducer.1") if mlp else None,
        reduce2=source.linear("dim_reducer.4", source.accurate) if mlp else None,
    )


def _stream(
    spec: ModelSpec,
    source: _Source,
    name: str,
    mean: tuple[tuple[float, ...], ...],
    std: tuple[tuple[float, ...], ...],
) -> StreamWeights:
    bands = len(S2_BANDS if name == "s2_backbone" else S1_BANDS)
    device = source.vector(f"{name}.embedding.0.bias").device

    def rows(values: tuple[tuple[float, ...], ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).reshape(2, bands)

    return StreamWeights(
        mean=rows(mean),
        std=rows(std),
        embed1=source.linear(f"{name}.embedding.0", "fp32"),
        embed2=source.linear(f"{name}.embedding.2", source.accurate),
        layers=tuple(
            _layer(spec, source, spec.layer_name(name, i), source.element)
            for i in range(spec.num_layers)
        ),
        query=source.vector(f"{name}.attn_pool.query.weight").reshape(-1),
        query_bias=source.vector(f"{name}.attn_pool.query.bias"),
        gru=_gru(spec, source, f"{name}.attn_pool"),
    )


def _layer(spec: ModelSpec, source: _Source, name: str, element: str) -> LayerWeights:
    if spec.qk_norm:
        projections = [f"{name}.{p}_proj" for p in "qkv"]
        weight = source.joint([f"{p}.weight" for p in projections])
        bias = source.joint([f"{p}.bias" for p in projections])
        out = f"{name}.out_proj"
    else:
        weight = source.vector(f"{name}.self_attn.in_proj_weight")
        bias = source.vector(f"{name}.self_attn.in_proj_bias")
        out = f"{name}.self_attn.out_proj"
    return LayerWeights(
        qkv=prepare(weight, bias, element),
        out=source.linear(out, element),
        ff1=source.linear(f"{name}.linear1", element),
        ff2=source.linear(f"{name}.linear2", element),
        norm1=source.norm(f"{name}.norm1"),
        norm2=source.norm(f"{name}.norm2"),
        q_norm=source.vector(f"{name}.q_norm.weight") if spec.qk_norm else None,
        k_norm=source.vector(f"{name}.k_norm.weight") if spec.qk_norm else None,
    )


def _gru(spec: ModelSpec, source: _Source, pool: str) -> GruWeights | None:
    element = source.accurate
    if spec.pooling == "custom_gru":
        cell = f"{pool}.temporal_context.gru_cell"
        inputs = source.joint([f"{cell}.W_i{g}.weight" for g in "rzh"])
        biases = source.joint([f"{cell}.b_{g}" for g in "rzh"])
        gates = source.joint([f"{cell}.W_h{g}.weight" for g in "rz"])
        return GruWeights(
            spec.pooling,
            prepare(inputs, biases, element),
            (
                prepare(gates, None, element),
                prepare(source.vector(f"{cell}.W_hh.weight"), None, element),
            ),
            source.norm(f"{pool}.layer_norm"),
        )
    if spec.pooling == "torch_gru":
        cell = f"{pool}.temporal_context"
        return GruWeights(
            spec.pooling,
            source.linear_of(f"{cell}.weight_ih_l0", f"{cell}.bias_ih_l0", element),
            (source.linear_of(f"{cell}.weight_hh_l0", f"{cell}.bias_hh_l0", element),),
            None,
        )
    return None
