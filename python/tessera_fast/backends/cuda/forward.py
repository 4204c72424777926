"""The order of the kernels: packed tokens of a chunk of pixels to embeddings. No path per model.

P pixels, N tokens of a stream, S steps, D width, F feed-forward width, E' width of the reducer's
output, E saved embedding width. Every buffer comes from the arena; nothing here waits for the
device.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.triton.attention import attention
from ...kernels.triton.attention_block import attention_block, fits_block
from ...kernels.triton.elements import ACCURATE, ELEMENTS
from ...kernels.triton.embed import embed
from ...kernels.triton.ffn import ffn
from ...kernels.triton.ffn import fits as ffn_fits
from ...kernels.triton.gru import Scratch, gru, scratch_sizes
from ...kernels.triton.linear import fits_row, linear, linear_norm
from ...kernels.triton.norm import layer_norm, rms_norm_heads
from ...kernels.triton.pool import pool, pool_steps
from ...kernels.triton.quantize import finish
from ...spec import ModelSpec
from .arena import Arena
from .fused import FusedNetwork, schedule_size
from .tokens import DeviceTokens, empty_stream, on_device
from .weights import LayerWeights, NetworkWeights, Norm, StreamWeights

Ranges = Callable[[str], AbstractContextManager[Any]]  # an op's name to what times or marks it
FUSION_HEADS = 4  # whatever the encoder's heads


class Series(NamedTuple):
    """Which rows of [N, D] are a pixel's, and how often each counts."""

    offsets: Tensor  # [P + 1] int32
    multiplicity: Tensor | None  # [N] int16; None: every row counts once
    longest: int  # no pixel has more rows


@dataclass(frozen=True)
class Route:
    """Which kernels a model runs through: a rule of its shape, never of a batch."""

    attention_block: bool  # QKV to LayerNorm in one kernel, or in three
    ffn_block: bool  # both products in one kernel, or hidden activations in device memory

    @staticmethod
    def of(spec: ModelSpec, element: str) -> "Route":
        """What docs/design/0007 predicts to be faster: blocks while a model is bound by memory.

        A block streams all its weights from L2 for some 64 to 128 tokens; beyond a width of 256
        that costs more than the hidden activations' trip through device memory.
        """
        fits = fits_block(spec.d_model, element) and not spec.qk_norm
        return Route(
            attention_block=fits and not spec.pre_norm,
            ffn_block=ffn_fits(spec.d_model) and not spec.pre_norm,
        )


class Network:
    """A model's launches on one device."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: NetworkWeights,
        element: str,
        route: Route,
        ranges: Ranges,
        fused: FusedNetwork | None = None,
    ) -> None:
        """``fused``: what both streams go through instead of the kernels that ``route`` says."""
        self.spec, self.weights, self.route, self.ranges = spec, weights, route, ranges
        self._fused = fused
        self.storage = ELEMENTS[element].storage
        self._accurate = ACCURATE.get(element, element)
        self._device = weights.table.device
        self._constants: dict[str, Tensor] = {}

    def token_bytes(self) -> int:
        """Workspace of a token, at most: x, its successor, and the widest of what lies between."""
        D, F = self.spec.d_model, self.spec.ff_dim
        between = max(3 * D, F)
        return int((2 * D + between) * self.storage.itemsize)

    def pixel_bytes(self, steps: int) -> int:
        """Workspace of a pixel that reads ``steps`` steps, at most."""
        D, out = self.spec.d_model, self.spec.out_dim
        fusion = 2 * (D + 3 * D) if self.spec.fusion_layers else 0  # of two tokens
        fused = (2 * D + 4 * D + fusion) * self.storage.itemsize + 4 * (4 * D + out) + 16
        if not self.spec.needs_steps:
            return int(fused)
        scratch = scratch_sizes(1, D, self._accurate).values()
        recurrent = sum(prod(shape) * dtype.itemsize for shape, dtype in scratch)
        return int(fused) + 4 * steps + recurrent

    def encode(
        self,
        s2: DeviceTokens,
        s1: DeviceTokens,
        arena: Arena,
        out: Tensor | tuple[Tensor, Tensor],
    ) -> None:
        """``out`` [P, E] float32, or (codes [P, E] int8, scales [P] float32)."""
        spec, P, D = self.spec, s2.pixels, self.spec.d_model
        with arena.frame():
            fused = arena.empty(P, 2 * D, dtype=self.storage)
            for half, name, tokens in ((0, "s2", s2), (1, "s1", s1)):
                view = fused[:, half * D : (half + 1) * D]
                self.encode_stream(name, tokens, arena, view, self._constant(name, arena))
            if spec.fusion_layers:
                fused = self._fuse(fused, arena)
            y = arena.empty(P, spec.out_dim, dtype=torch.float32)
            with self.ranges("reducer"):
                self._reduce(fused, y, arena)
            valid = (s2.offsets.diff() > 0) | (s1.offsets.diff() > 0)
            with self.ranges("finish"):
                finish(
                    y,
                    valid.to(torch.uint8),
                    out,
                    final_norm=spec.final_norm,
                    absmax_floor=spec.absmax_floor,
                    scale_floor=spec.scale_floor,
                )

    def encode_stream(
        self, name: str, tokens: DeviceTokens, arena: Arena, out: Tensor, constant: Tensor
    ) -> None:
        """Pooled encoder outputs of one stream into ``out`` [P, D]; ``constant`` [D] where a pixel
        has no token."""
        w: StreamWeights = getattr(self.weights, name)
        N, D = tokens.doy.numel(), self.spec.d_model
        if self._fused is not None:
            with arena.frame(), self.ranges("network"):
                planned = arena.empty(schedule_size(tokens.pixels), dtype=torch.int32)
                self._fused.encode(name, tokens, planned, out, constant)
            return
        with arena.frame():
            x, spare = (arena.empty(N, D, dtype=self.storage) for _ in range(2))
            series = Series(tokens.offsets, tokens.multiplicity, tokens.longest)
            with self.ranges("embed"):
                embed(
                    tokens.bands,
                    tokens.orbit,
                    tokens.doy,
                    w.mean,
                    w.std,
                    w.embed1,
                    w.embed2,
                    self.weights.table,
                    x,
                    standardized=tokens.standardized,
                    unsigned=tokens.unsigned,
                )
            for layer in w.layers:
                x, spare = self._layer(layer, x, spare, series, self.spec.num_heads, arena)
            if w.gru is None:
                with self.ranges("pool"):
                    pool(
                        x, w.query, w.query_bias, tokens.offsets, tokens.multiplicity, constant, out
                    )
            else:
                self._recur(w, x, tokens, arena, out, constant)

    def _layer(
        self, w: LayerWeights, x: Tensor, spare: Tensor, series: Series, heads: int, arena: Arena
    ) -> tuple[Tensor, Tensor]:
        """One transformer layer of ``x`` [N, D]: where its output is, and the other buffer."""
        if self.spec.pre_norm:
            self._pre_norm_layer(w, x, spare, series, heads, arena)
            return x, spare
        if self.route.attention_block:
            with self.ranges("attention_block"):
                attention_block(
                    x, w.qkv, w.out, *w.norm1, *series[:2], spare, heads, series.longest
                )
            x, spare = spare, x
        else:
            self._attend(w, x, spare, series, heads, arena)
            with self.ranges("out"):
                self._linear_norm(spare, w.out, x, w.norm1)
        if self.route.ffn_block:
            with self.ranges("ffn"):
                ffn(x, w.ff1, w.ff2, x, *w.norm2)
        else:
            with arena.frame():
                hidden = self._hidden(w, x, arena)
                with self.ranges("ff2"):
                    self._linear_norm(hidden, w.ff2, x, w.norm2)
        return x, spare

    def _pre_norm_layer(
        self, w: LayerWeights, x: Tensor, spare: Tensor, series: Series, heads: int, arena: Arena
    ) -> None:
        with self.ranges("norm"):
            layer_norm(x, spare, *w.norm1)
        self._attend(w, spare, spare, series, heads, arena)
        with self.ranges("out"):
            linear(spare, w.out, x, residual=x)
        with self.ranges("norm"):
            layer_norm(x, spare, *w.norm2)
        with arena.frame():
            hidden = self._hidden(w, spare, arena)
            with self.ranges("ff2"):
                linear(hidden, w.ff2, x, residual=x)

    def _hidden(self, w: LayerWeights, x: Tensor, arena: Arena) -> Tensor:
        hidden = arena.empty(len(x), w.ff1.weight.shape[0], dtype=self.storage)
        with self.ranges("ff1"):
            linear(x, w.ff1, hidden, relu=True)
        return hidden

    def _attend(
        self, w: LayerWeights, x: Tensor, out: Tensor, series: Series, heads: int, arena: Arena
    ) -> None:
        """Joint projection and attention: x [N, D] -> out [N, D], heads joined; out may be x."""
        N, D = x.shape
        with arena.frame():
            qkv = arena.empty(N, 3 * D, dtype=self.storage)
            with self.ranges("qkv"):
                linear(x, w.qkv, qkv)
            if w.q_norm is not None and w.k_norm is not None:
                with self.ranges("norm"):
                    rms_norm_heads(qkv[:, :D], w.q_norm, heads)
                    rms_norm_heads(qkv[:, D : 2 * D], w.k_norm, heads)
            with self.ranges("attention"):
                attention(qkv, *series[:2], out, heads, self._accurate, series.longest)

    def _linear_norm(self, x: Tensor, w: Any, out: Tensor, norm: Norm) -> None:
        """out = LN(out + x W^T + b), in place on the residual stream."""
        if fits_row(out.shape[1]):
            linear_norm(x, w, out, *norm, residual=out)
        else:
            linear(x, w, out, residual=out)
            layer_norm(out, out, *norm)

    def _recur(
        self,
        w: StreamWeights,
        x: Tensor,
        tokens: DeviceTokens,
        arena: Arena,
        out: Tensor,
        constant: Tensor,
    ) -> None:
        """Pooling by a recurrence over the padded sequence, fillers included."""
        assert w.gru is not None and tokens.steps is not None
        assert tokens.step_offsets is not None and tokens.host_step_offsets is not None
        lengths = np.diff(tokens.host_step_offsets)
        # longest first, so that the pixels still running at a step are the first ones
        order = np.argsort(-lengths, kind="stable").astype(np.int32)
        longest = int(lengths.max(initial=0))
        active = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(longest), side="right")
        D = self.spec.d_model
        with arena.frame():
            inputs = arena.empty(x.shape[0], 3 * D, dtype=self.storage)
            with self.ranges("gru_inputs"):
                linear(x, w.gru.inputs, inputs)
            logits = arena.empty(tokens.steps.numel(), dtype=torch.float32)
            sizes = scratch_sizes(tokens.pixels, D, self._accurate)
            scratch = {name: arena.empty(*s, dtype=d) for name, (s, d) in sizes.items()}
            with self.ranges("gru"):
                gru(
                    w.gru.kind,
                    inputs,
                    w.gru.recurrent,
                    w.gru.norm,
                    w.query,
                    w.query_bias,
                    tokens.steps,
                    tokens.step_offsets,
                    tokens.offsets,
                    on_device(order, x.device),
                    active.tolist(),
                    Scratch(**scratch),
                    logits,
                )
            with self.ranges("pool"):
                pool_steps(
                    x, logits, tokens.steps, tokens.step_offsets, tokens.offsets, constant, out
                )

    def _fuse(self, fused: Tensor, arena: Arena) -> Tensor:
        """[P, 2D] through the fusion layers, two tokens [S2, S1] a pixel."""
        P, D = fused.shape[0], self.spec.d_model
        assert self.weights.modality is not None
        x = fused.view(P, 2, D)
        x.copy_(x.float() + self.weights.modality)
        offsets = torch.arange(0, 2 * P + 1, 2, dtype=torch.int32, device=self._device)
        y = x.view(2 * P, D)
        spare = arena.empty(2 * P, D, dtype=self.storage)
        for layer in self.weights.fusion:
            y, spare = self._layer(layer, y, spare, Series(offsets, None, 2), FUSION_HEADS, arena)
        return y.view(P, 2 * D)

    def _reduce(self, fused: Tensor, out: Tensor, arena: Arena) -> None:
        """[P, 2D] -> [P, E'] float32."""
        w = self.weights
        if w.reduce_norm is None or w.reduce2 is None:
            linear(fused, w.reduce1, out)
            return
        with arena.frame():
            # float32 up to the norm: a pixel is one row here, and this makes the embedding
            sums = arena.empty(len(fused), w.reduce1.weight.shape[0], dtype=torch.float32)
            linear(fused, w.reduce1, sums)
            hidden = arena.empty(*sums.shape, dtype=self.storage)
            layer_norm(sums, hidden, *w.reduce_norm, relu=True)
            linear(hidden, w.reduce2, out)

    def _constant(self, name: str, arena: Arena) -> Tensor:
        """The pooled vector [D] of a stream without observations: the same for every pixel."""
        if name not in self._constants:
            spec, device = self.spec, self._device
            bands = getattr(self.weights, name).mean.shape[1]
            tokens = empty_stream(bands, spec.empty_steps, spec.needs_steps, device)
            vector = torch.empty(1, spec.d_model, dtype=self.storage, device=device)
            nothing = torch.zeros(spec.d_model, dtype=torch.float32, device=device)
            self.encode_stream(name, tokens, arena, vector, nothing)
            self._constants[name] = vector[0].float()
        return self._constants[name]
