"""The stock ways to run a TESSERA encoder on a GPU, as contenders of gpu_model.py.

Each takes standardised sequences on the device, s2 (P, T, 11) and s1 (P, T', 3) float32 with the
day of year last, and returns (P, E). Pixels of a call have equal lengths, so a plain batch is
dense: nothing is padded, and a ragged attention kernel can only be as fast as a dense one. Both are
tried. All but official code get two favours: the sines of the day come from a table, and the GRU's
input halves are one product over all dates ("cuBLAS" contenders only).

P pixels, T dates, D width, H heads, K head width, F feed-forward width, E embedding width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import official
from stock import DayTable
from tessera_fast.reference.ops import positional_table
from tessera_fast.spec import ModelSpec
from tessera_fast.weights import Weights

STREAMS = (("s2_backbone", 10), ("s1_backbone", 2))
HEAD_ALIGNMENT = 8  # flash attention reads heads in pieces of 16 bytes

Call = Callable[[Tensor, Tensor], Tensor]


class Contender(NamedTuple):
    """``build`` is called once, on the turn of this contender."""

    precision: str
    build: Callable[[], Call]
    batches: tuple[int, ...]  # pixels of a call that are tried


# ---- the official module, rebuilt from the framework's layers under the official names


class Gru(nn.Module):
    """The recurrence of v1.1 and v1.0-qat as its authors run it: gate by gate, date by date."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for gate in ("ir", "iz", "ih", "hr", "hz", "hh"):
            setattr(self, f"W_{gate}", nn.Linear(width, width, bias=False))
        for gate in "rzh":
            setattr(self, f"b_{gate}", nn.Parameter(torch.zeros(width)))

    def forward(self, x: Tensor) -> Tensor:
        h, states = torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            r = torch.sigmoid(self.W_ir(x_t) + self.W_hr(h) + self.b_r)
            z = torch.sigmoid(self.W_iz(x_t) + self.W_hz(h) + self.b_z)
            c = torch.tanh(self.W_ih(x_t) + self.W_hh(r * h) + self.b_h)
            h = (1 - z) * h + z * c
            states.append(h)
        return torch.stack(states, 1)


class Pool(nn.Module):
    """Softmax pooling, of the states of a recurrence where there is one."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        D = spec.d_model
        self.query = nn.Linear(D, 1)
        self.pooling = spec.pooling
        if spec.pooling == "custom_gru":
            self.temporal_context = nn.ModuleDict({"gru_cell": Gru(D)})
            self.layer_norm = nn.LayerNorm(D)
        elif spec.pooling == "torch_gru":
            self.temporal_context = nn.GRU(D, D, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        context = x
        if self.pooling == "custom_gru":
            context = self.layer_norm(self.temporal_context["gru_cell"](x))
        elif self.pooling == "torch_gru":
            context = self.temporal_context(x)[0]
        return (torch.softmax(self.query(context), 1) * x).sum(1)


class Stream(nn.Module):
    def __init__(self, spec: ModelSpec, bands: int) -> None:
        super().__init__()
        D = spec.d_model
        self.embedding = nn.Sequential(nn.Linear(bands, D), nn.ReLU(), nn.Linear(D, D))
        self.register_buffer("table", positional_table(D), persistent=False)
        layer = nn.TransformerEncoderLayer(
            D, spec.num_heads, spec.ff_dim, dropout=0.0, batch_first=True
        )
        self.transformer_encoder = nn.TransformerEncoder(
            layer, spec.num_layers, enable_nested_tensor=False
        )
        self.attn_pool = Pool(spec)

    def forward(self, x: Tensor) -> Tensor:
        bands, days = x[..., :-1].to(self.embedding[0].weight.dtype), x[..., -1].long()
        return self.attn_pool(self.transformer_encoder(self.embedding(bands) + self.table[days]))


class Rebuilt(nn.Module):
    """The whole model. Its parameters have the official names, so our tensors load into it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        _check(spec)
        self.s2_backbone, self.s1_backbone = (Stream(spec, bands) for _, bands in STREAMS)
        D, E = spec.d_model, spec.out_dim
        parts: list[nn.Module] = [nn.Linear(2 * D, E)]
        if spec.reducer == "mlp":
            first, norm, last = nn.Linear(2 * D, 4 * D), nn.LayerNorm(4 * D), nn.Linear(4 * D, E)
            parts = [first, norm, nn.ReLU(), nn.Identity(), last]
        if spec.final_norm:
            parts.append(nn.LayerNorm(E, elementwise_affine=False))
        self.dim_reducer = nn.Sequential(*parts)

    def forward(self, s2: Tensor, s1: Tensor) -> Tensor:
        return self.dim_reducer(torch.cat([self.s2_backbone(s2), self.s1_backbone(s1)], -1))


def rebuilt(weights: Weights) -> nn.Module:
    with torch.device("meta"):  # no time spent on drawing initial values
        net = Rebuilt(weights.spec)
    net = net.to_empty(device="cpu")
    for name, _ in STREAMS:
        stream = getattr(net, name)
        stream.table = positional_table(weights.spec.d_model)
    tensors = {n: torch.tensor(weights.tensors[n]) for n in weights.spec.parameter_shapes()}
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False)


def _check(spec: ModelSpec) -> None:
    if spec.pre_norm or spec.qk_norm:
        raise SystemExit(f"{spec.name}: the stock contenders have no pre-norm and no QK-norm")


# ---- tokens without padding: the library's products, and one of the framework's attentions


class Dense(nn.Module):
    """What a good port to torch does: joint products, heads aligned for flash attention.

    Heads are filled up with zero weights once, at load (36 -> 40, 110 -> 112), and the softmax's
    scale of the aligned width is corrected in the query's weights.
    """

    def __init__(self, weights: Weights, attention: str) -> None:
        super().__init__()
        self.spec, self.attention = weights.spec, attention
        _check(self.spec)
        for name in self.spec.parameter_shapes():
            self._keep(name, torch.tensor(weights.tensors[name]))
        for stream, _ in STREAMS:
            self._keep(f"{stream}.table", positional_table(self.spec.d_model))
            for i in range(self.spec.num_layers):
                self._align_heads(self.spec.layer_name(stream, i))
            if self.spec.pooling == "custom_gru":
                cell = f"{stream}.attn_pool.temporal_context.gru_cell"
                for joint, gates in (("inputs", ("ir", "iz", "ih")), ("states", ("hr", "hz"))):
                    parts = [self._get(f"{cell}.W_{gate}.weight") for gate in gates]
                    self._keep(f"{cell}.{joint}", torch.cat(parts))
                parts = [self._get(f"{cell}.b_{gate}") for gate in "rzh"]
                self._keep(f"{cell}.bias", torch.cat(parts))

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name.replace(".", "__"), tensor)

    def _get(self, name: str) -> Tensor:
        return getattr(self, name.replace(".", "__"))

    def _align_heads(self, layer: str) -> None:
        H, K, D = self.spec.num_heads, self.spec.head_dim, self.spec.d_model
        more = -K % HEAD_ALIGNMENT
        joint = self._get(f"{layer}.self_attn.in_proj_weight").view(3, H, K, D).clone()
        bias = self._get(f"{layer}.self_attn.in_proj_bias").view(3, H, K).clone()
        scale = ((K + more) / K) ** 0.5
        joint[0] *= scale
        bias[0] *= scale
        out = self._get(f"{layer}.self_attn.out_proj.weight").view(D, H, K)
        self._keep(f"{layer}.qkv.weight", F.pad(joint, (0, 0, 0, more)).flatten(0, 2))
        self._keep(f"{layer}.qkv.bias", F.pad(bias, (0, more)).flatten())
        self._keep(f"{layer}.out.weight", F.pad(out, (0, more)).flatten(1))

    def _linear(self, x: Tensor, name: str, bias: str | None = None) -> Tensor:
        return F.linear(x, self._get(f"{name}.weight"), self._get(bias or f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        w, b = self._get(f"{name}.weight"), self._get(f"{name}.bias")
        return F.layer_norm(x, (x.shape[-1],), w, b)

    def forward(self, s2: Tensor, s1: Tensor) -> Tensor:
        pooled = [self._stream(x, name) for x, (name, _) in zip((s2, s1), STREAMS, strict=True)]
        y = self._linear(torch.cat(pooled, -1), "dim_reducer.0")
        if self.spec.reducer == "mlp":
            y = self._linear(torch.relu(self._norm(y, "dim_reducer.1")), "dim_reducer.4")
        return F.layer_norm(y, (y.shape[-1],)) if self.spec.final_norm else y

    def _stream(self, x: Tensor, name: str) -> Tensor:
        """(P, T, C + 1) -> (P, D)."""
        P, T, _ = x.shape
        bands = x[..., :-1].to(self._get("dim_reducer.0.weight").dtype).flatten(0, 1)
        days = x[..., -1].long().flatten()
        hidden = torch.relu(self._linear(bands, f"{name}.embedding.0"))
        y = self._linear(hidden, f"{name}.embedding.2") + self._get(f"{name}.table")[days]
        for i in range(self.spec.num_layers):
            layer = self.spec.layer_name(name, i)
            qkv = self._linear(y, f"{layer}.qkv").view(P, T, 3, self.spec.num_heads, -1)
            mixed = self._attend(qkv).reshape(P * T, -1)
            mixed = self._linear(mixed, f"{layer}.out", f"{layer}.self_attn.out_proj.bias")
            y = self._norm(y + mixed, f"{layer}.norm1")
            hidden = torch.relu(self._linear(y, f"{layer}.linear1"))
            y = self._norm(y + self._linear(hidden, f"{layer}.linear2"), f"{layer}.norm2")
        y = y.view(P, T, -1)
        context = self._recur(y, f"{name}.attn_pool")
        scores = self._linear(context, f"{name}.attn_pool.query")
        return (torch.softmax(scores, 1) * y).sum(1)

    def _attend(self, qkv: Tensor) -> Tensor:
        """(P, T, 3, H, K) -> (P, T, H, K)."""
        P, T = qkv.shape[:2]
        if self.attention == "varlen":
            from torch.nn.attention.varlen import varlen_attn

            q, k, v = qkv.flatten(0, 1).unbind(1)
            offsets = torch.arange(0, P * T + 1, T, dtype=torch.int32, device=qkv.device)
            return varlen_attn(q, k, v, offsets, offsets, T, T)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def _recur(self, x: Tensor, pool: str) -> Tensor:
        """What the pooling's scores are taken of, (P, T, D)."""
        if self.spec.pooling == "softmax":
            return x
        cell = f"{pool}.temporal_context"
        if self.spec.pooling == "torch_gru":
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            flat = [self._get(f"{cell}.{n}") for n in names]
            h = x.new_zeros(1, x.shape[0], x.shape[2])
            return torch.gru(x, h, flat, True, 1, 0.0, False, False, True)[0]
        cell += ".gru_cell"
        D = x.shape[-1]
        states_weight, candidate = self._get(f"{cell}.states"), self._get(f"{cell}.W_hh.weight")
        inputs = F.linear(x, self._get(f"{cell}.inputs"), self._get(f"{cell}.bias"))
        h, states = torch.zeros_like(x[:, 0]), []
        for part in inputs.unbind(1):
            r, z = torch.sigmoid(part[:, : 2 * D] + F.linear(h, states_weight)).chunk(2, -1)
            c = torch.tanh(part[:, 2 * D :] + F.linear(r * h, candidate))
            h = torch.lerp(h, c, z)
            states.append(h)
        return self._norm(torch.stack(states, 1), f"{pool}.layer_norm")


# ---- the list


def contenders(
    weights: Weights,
    device: torch.device,
    checkout: Path | None,
    compiler: str | None,
    batches: tuple[int, ...],
) -> dict[str, Contender]:
    """By label, fp32 first. On a CPU all run in float32: that is for checking their code.

    ``compiler``: a back end of torch.compile, or None to leave that contender out. It gets one
    batch size, as it takes its time for every shape, and float32 two, as it is slow.
    """
    gpu = device.type == "cuda"
    reduced = torch.bfloat16 if gpu else torch.float32
    name = "bf16" if gpu else "fp32"
    has_official = checkout is not None and weights.spec.sampling != "v1.0"

    def eager() -> nn.Module:
        if not has_official:
            return rebuilt(weights).to(device)
        assert checkout is not None
        return official.build(checkout, weights).requires_grad_(False).to(device)

    def tabulated() -> nn.Module:
        net = eager()
        if has_official:
            for stream, _ in STREAMS:
                backbone = getattr(net, stream).cpu()
                backbone.temporal_encoder = DayTable(backbone.temporal_encoder)
                backbone.to(device)
        return net

    def dense(attention: str) -> nn.Module:
        return Dense(weights, attention).to(device, reduced).eval()

    found = {
        fp32_label(weights.spec, checkout): Contender("fp32", lambda: _plain(eager()), batches[:2]),
        f"eager {name} autocast": Contender(
            name, lambda: _autocast(tabulated(), device, reduced), batches
        ),
        f"{name} weights, fast path": Contender(
            name, lambda: _plain(rebuilt(weights).to(device, reduced)), batches
        ),
        f"cuBLAS + dense attention {name}": Contender(name, lambda: _plain(dense("sdpa")), batches),
    }
    if gpu:
        found[f"cuBLAS + varlen attention {name}"] = Contender(
            name, lambda: _plain(dense("varlen")), batches
        )
    if compiler is not None:
        found[f"torch.compile {name}"] = Contender(
            name, lambda: _compiled(dense("sdpa"), compiler), batches[:1]
        )
    return found


def fp32_label(spec: ModelSpec, checkout: Path | None) -> str:
    """Of the first contender, that ratios to official float32 are taken against."""
    there = checkout is not None and spec.sampling != "v1.0"
    return "official eager fp32" if there else "official layers, rebuilt, fp32"


def _plain(net: nn.Module) -> Call:
    def call(s2: Tensor, s1: Tensor) -> Tensor:
        with torch.no_grad():
            return net(s2, s1)

    return call


def _autocast(net: nn.Module, device: torch.device, dtype: torch.dtype) -> Call:
    def call(s2: Tensor, s1: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            return net(s2, s1)

    return call


def _compiled(net: nn.Module, compiler: str) -> Call:
    """A program for the one shape that it is called with."""
    return _plain(torch.compile(net, backend=compiler, dynamic=False))


def sequences(
    spec: ModelSpec, bands: np.ndarray, days: np.ndarray, orbit: np.ndarray
) -> np.ndarray:
    """Raw bands (P, T, C), days and statistics rows (P, T) -> (P, T, C + 1), standardised."""
    stats = spec.statistics
    wide = bands.shape[-1] == len(stats.s2_mean)
    mean = np.array([stats.s2_mean] if wide else stats.s1_mean, np.float32)
    std = np.array([stats.s2_std] if wide else stats.s1_std, np.float32)
    values = (bands.astype(np.float32) - mean[orbit]) / (std[orbit] + np.float32(1e-9))
    return np.concatenate([values, days[..., None].astype(np.float32)], -1)
