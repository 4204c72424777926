"""The model that learns: the parameters of a spec under their official names, and a forward pass
that gradients go through. B pixels, T dates (all pixels have the same number), D width.

It is written apart from reference/ (fused ops, days that need not be whole), which judges it.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spec import ModelSpec

FUSION_HEADS = 4  # of the teacher, whatever the encoder's heads
_SEPARATOR = "/"  # a parameter of a torch module may not have a dot in its name


class StreamBatch:
    """One stream of a batch: bands (B, T, C) float32 standardised, days (B, T) float32."""

    def __init__(self, bands: Tensor, days: Tensor) -> None:
        self.bands, self.days = bands, days

    def to(self, device: torch.device) -> "StreamBatch":
        return StreamBatch(self.bands.to(device), self.days.to(device))

    @staticmethod
    def joined(all_of: "Sequence[StreamBatch]") -> "StreamBatch":
        """The pixels of all."""
        return StreamBatch(
            torch.cat([s.bands for s in all_of]), torch.cat([s.days for s in all_of])
        )

    def mixed(self, other: "StreamBatch", order: Tensor, share: Tensor) -> "StreamBatch":
        """share * self + (1 - share) * other[order], the days included."""
        bands = share * self.bands + (1 - share) * other.bands[order]
        return StreamBatch(bands, share * self.days + (1 - share) * other.days[order])


class TrainingNetwork(nn.Module):  # type: ignore[misc] # torch is not read by mypy
    """A TESSERA model of any spec. ``forward(s2, s1)``: two StreamBatch -> (B, out_dim)."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        even = torch.arange(0, spec.d_model, 2, dtype=torch.float32)
        self.register_buffer(
            "frequency", torch.exp(even * -(math.log(10000.0) / spec.d_model)), persistent=False
        )
        generator = torch.Generator().manual_seed(seed)
        for name, shape in spec.parameter_shapes().items():
            value = nn.Parameter(_initial(name, shape, generator))
            self.register_parameter(name.replace(".", _SEPARATOR), value)

    def official(self) -> dict[str, Tensor]:
        """Every parameter by its official name, in the order of the spec."""
        return {n.replace(_SEPARATOR, "."): p for n, p in self.named_parameters()}

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Copy the values of named arrays."""
        with torch.no_grad():
            for name, parameter in self.official().items():
                parameter.copy_(torch.from_numpy(np.array(tensors[name])))

    def forward(self, s2: StreamBatch, s1: StreamBatch) -> Tensor:
        w = self.official()
        streams = [
            self._encode(w, name, x) for name, x in (("s2_backbone", s2), ("s1_backbone", s1))
        ]
        fused = torch.cat(streams, dim=-1)
        if self.spec.fusion_layers:
            x = torch.stack(streams, dim=1) + w["fusion_modality_embed"]
            for i in range(self.spec.fusion_layers):
                x = _layer(x, w, f"fusion_transformer.layers.{i}", FUSION_HEADS, self.spec.pre_norm)
            fused = x.flatten(1)
        y = _linear(fused, w, "dim_reducer.0")
        if self.spec.reducer == "mlp":
            y = _linear(torch.relu(_norm(y, w, "dim_reducer.1")), w, "dim_reducer.4")
        y = y.float() if y.dtype != torch.float64 else y
        return F.layer_norm(y, y.shape[-1:]) if self.spec.final_norm else y

    def _encode(self, w: Mapping[str, Tensor], stream: str, series: StreamBatch) -> Tensor:
        """(B, D): embedding, encoder layers, pooling."""
        hidden = torch.relu(_linear(series.bands, w, f"{stream}.embedding.0"))
        angle = series.days[..., None] * self.frequency
        position = torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(-2)
        x = _linear(hidden, w, f"{stream}.embedding.2") + position
        for i in range(self.spec.num_layers):
            name = self.spec.layer_name(stream, i)
            x = _layer(x, w, name, self.spec.num_heads, self.spec.pre_norm)
        pool = f"{stream}.attn_pool"
        context = x
        if self.spec.pooling == "custom_gru":
            states = _custom_gru(x, w, f"{pool}.temporal_context.gru_cell")
            context = _norm(states, w, f"{pool}.layer_norm")
        elif self.spec.pooling == "torch_gru":
            context = _torch_gru(x, w, f"{pool}.temporal_context")
        weights = torch.softmax(_linear(context, w, f"{pool}.query"), dim=1)
        return (weights * x).sum(dim=1)


def _initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gains 1, biases 0, matrices uniform within 1 / sqrt(fan-in)."""
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith(".weight") else torch.zeros(shape)
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _linear(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _layer(x: Tensor, w: Mapping[str, Tensor], name: str, heads: int, pre_norm: bool) -> Tensor:
    """One transformer layer, x (B, T, D) -> (B, T, D)."""

    def feed_forward(y: Tensor) -> Tensor:
        return _linear(torch.relu(_linear(y, w, f"{name}.linear1")), w, f"{name}.linear2")

    if pre_norm:
        x = x + _attention(_norm(x, w, f"{name}.norm1"), w, name, heads, pre_norm)
        return x + feed_forward(_norm(x, w, f"{name}.norm2"))
    x = _norm(x + _attention(x, w, name, heads, pre_norm), w, f"{name}.norm1")
    return _norm(x + feed_forward(x), w, f"{name}.norm2")


def _attention(x: Tensor, w: Mapping[str, Tensor], name: str, heads: int, pre_norm: bool) -> Tensor:
    """Self-attention without a mask, x (B, T, D) -> (B, T, D)."""
    joint = f"{name}.self_attn.in_proj_weight"
    if joint in w:
        qkv = F.linear(x, w[joint], w[f"{name}.self_attn.in_proj_bias"]).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in qkv)
        out = f"{name}.self_attn.out_proj"
    else:  # separate projections go with an RMSNorm of q and k
        q, k, v = (
            _linear(x, w, f"{name}.{p}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for p in "qkv"
        )
        dtype = torch.float32 if pre_norm else q.dtype  # the teacher's runs in float32
        q, k = (
            F.rms_norm(y.to(dtype), y.shape[-1:], w[f"{name}.{p}_norm.weight"].to(dtype)).to(v)
            for p, y in (("q", q), ("k", k))
        )
        out = f"{name}.out_proj"
    if v.device.type == "cpu" and v.dtype == torch.bfloat16:  # backward is four times slower
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    return _linear(y.transpose(1, 2).flatten(2), w, out)


def _custom_gru(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    """The states of the recurrence of v1.1 and v1.0-qat, h_0 = 0. x (B, T, D) -> (B, T, D).

    r, z = s(W_i x + W_h h + b); h' = (1 - z) h + z tanh(W_ih x + W_hh (r h) + b_h).
    """
    matrices = {g: w[f"{name}.W_{g}.weight"] for g in ("ir", "iz", "ih", "hr", "hz", "hh")}
    inputs = [F.linear(x, matrices[f"i{g}"], w[f"{name}.b_{g}"]).unbind(1) for g in "rzh"]
    gates = torch.cat([matrices["hr"], matrices["hz"]])
    h = torch.zeros_like(x[:, 0])
    states = []
    for x_r, x_z, x_h in zip(*inputs, strict=True):
        h_r, h_z = F.linear(h, gates).chunk(2, dim=-1)
        r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
        h = (1 - z) * h + z * torch.tanh(x_h + F.linear(r * h, matrices["hh"]))
        states.append(h)
    return torch.stack(states, dim=1)


def _torch_gru(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    """The states of a one-layer torch.nn.GRU, h_0 = 0. x (B, T, D) -> (B, T, D)."""
    parts = [w[f"{name}.{p}_l0"] for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    h0 = x.new_zeros(1, len(x), x.shape[-1])
    # (has_biases, layers, dropout, train: cuDNN goes back in training mode only, bidirectional,
    # batch_first)
    states, _ = torch.gru(x, h0, parts, True, 1, 0.0, True, False, True)
    return states
