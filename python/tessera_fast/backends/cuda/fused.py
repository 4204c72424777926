"""Fused encoders of narrow models (kernels/cuda/encoder.cu): rules, operands and calls.

D width, H heads, K head width, F feed-forward width, C bands, N tokens, P pixels. Everything that
is fixed is laid out here once: B fragments in the order a block reads them, and the float32 rest.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import BackendUnavailable
from ...spec import MAX_SEQUENCE, ModelSpec
from .tokens import DeviceTokens
from .weights import LayerWeights, NetworkWeights, StreamWeights

_NETWORKS = {(144, 4, 384): (128, 256)}  # (D, H, F): tokens that a block may hold
_LAYERS = {(256, 4, 1024): (128,)}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CHANNELS = 16  # bands, padded
_EMULATED_SHARED_MEMORY = 227 << 10  # that of an H100
_SEGMENT = 128  # pixels that the scheduler packs by themselves


class Shape(NamedTuple):
    """Of one compiled kernel; ``tokens`` is what a block holds, so a pixel's most."""

    width: int
    heads: int
    hidden: int
    tokens: int


def why_not(spec: ModelSpec, element: str, whole: bool) -> str | None:
    """None if there is a kernel of a model's shape for its whole network, or for one layer."""
    known = _NETWORKS if whole else _LAYERS
    sizes = (spec.d_model, spec.num_heads, spec.ff_dim)
    if sizes not in known:
        return f"no fused kernel of width, heads, feed-forward width {sizes}"
    if element not in _DTYPES:
        return f"the fused kernels multiply {' or '.join(_DTYPES)}, not {element}"
    if spec.pre_norm or spec.qk_norm:
        return "the fused kernels are post-norm, without norms of queries and keys"
    if whole and spec.pooling != "softmax":
        return "the fused network pools by softmax"
    return None


def shape_for(
    spec: ModelSpec, longest: int, shared_limit: int, native: Any, whole: bool
) -> Shape | None:
    """The smallest kernel that holds ``longest`` tokens and fits a block's shared memory.

    None: these tokens go through the other kernels. All kernels of a model give a pixel the same
    bits, so this may look at a batch.
    """
    known = _NETWORKS if whole else _LAYERS
    sizes = (spec.d_model, spec.num_heads, spec.ff_dim)
    for tokens in known.get(sizes, ()):
        shape = Shape(*sizes, tokens)
        if longest <= tokens and 0 < native.fused_shared_bytes(shape, whole) <= shared_limit:
            return shape
    return None


class Operands(NamedTuple):
    """What a fused kernel reads besides tokens, on the device."""

    weights: Tensor  # int16: bits of B fragments
    parameters: Tensor  # float32
    layers: int
    float16: bool


def network_operands(stream: StreamWeights, element: str, heads: int) -> Operands:
    """The operands of a stream's whole network. ``stream``: products prepared for ``element``."""
    dtype = _DTYPES[element]
    D, C = stream.embed1.weight.shape
    first = stream.embed1.weight.new_zeros(D, _CHANNELS)
    first[:, :C] = stream.embed1.weight
    high = first.to(dtype)
    low = (first - high.float()).to(dtype)
    chunks = [_pairs(_fragments(high)), _pairs(_fragments(low))]
    chunks.append(_deep(stream.embed2.weight))
    statistics = stream.mean.new_zeros(2, 2, _CHANNELS)
    statistics[0, :, :C] = stream.mean
    statistics[1, :, :C] = stream.std
    statistics[1, :, C:] = 1
    query_bias = stream.query.new_zeros(16)
    query_bias[0] = stream.query_bias[0]
    parameters = [statistics, _bias(stream.embed1), _bias(stream.embed2), stream.query, query_bias]
    for layer in stream.layers:
        chunks += _layer_chunks(layer, heads)
        parameters += _layer_parameters(layer, heads)
    return _operands(chunks, parameters, len(stream.layers), D, dtype)


def layer_operands(layer: LayerWeights, element: str, heads: int) -> Operands:
    """The operands of one layer."""
    chunks, parameters = _layer_chunks(layer, heads), _layer_parameters(layer, heads)
    return _operands(chunks, parameters, 1, len(layer.out.weight), _DTYPES[element])


class FusedNetwork:
    """Both streams of a model through the whole-network kernel; see `why_not`."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: NetworkWeights,
        element: str,
        native: Any,
        device: torch.device,
    ) -> None:
        """Raises BackendUnavailable where the kernel cannot take every pixel of the model: which
        kernel a pixel goes through may not depend on the pixels beside it."""
        self._spec, self._native, self._device = spec, native, device
        self._shared = _shared_memory(device)
        reason = why_not(spec, element, whole=True)
        if reason is None and self.shape(MAX_SEQUENCE) is None:
            reason = f"{self._shared} bytes of shared memory hold no pixel of {MAX_SEQUENCE} tokens"
        if reason is not None:
            raise BackendUnavailable(f"TESSERA_FAST_FUSED: {reason}")
        self._table = weights.table
        self._operands = {
            name: network_operands(getattr(weights, name), element, spec.num_heads)
            for name in ("s2", "s1")
        }

    def shape(self, longest: int) -> "Shape | None":
        return shape_for(self._spec, longest, self._shared, self._native, whole=True)

    def encode(
        self, name: str, tokens: DeviceTokens, planned: Tensor, out: Tensor, constant: Tensor
    ) -> None:
        """Pooled vectors of the stream ``name`` into out [P, D]; planned int32
        [schedule_size(P)] is scratch, constant [D] float32 the row of a pixel without tokens."""
        shape = self.shape(tokens.longest)
        assert shape is not None
        stream = 0
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device).cuda_stream
        schedule(self._native, shape, tokens.offsets, planned, stream)
        encode_network(
            self._native,
            shape,
            self._operands[name],
            tokens,
            self._table,
            planned,
            out,
            constant,
            stream,
        )


def _shared_memory(device: torch.device) -> int:
    """Bytes that one block may have."""
    if device.type != "cuda":
        return _EMULATED_SHARED_MEMORY
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def schedule_size(pixels: int) -> int:
    """int32 values of a schedule."""
    return 1 + 2 * pixels


def blocks(shape: Shape, pixels: int, tokens: int) -> int:
    """Blocks that a schedule has at most: two neighbours together hold more tokens than one may,
    but for the last of a segment."""
    return min(pixels, 2 * tokens // shape.tokens + -(-pixels // _SEGMENT))


def schedule(native: Any, shape: Shape, offsets: Tensor, out: Tensor, stream: int) -> None:
    """Assign P pixels to blocks. offsets [P + 1] int32, out [schedule_size(P)] int32."""
    native.schedule_pixels(
        offsets=offsets.data_ptr(),
        pixels=offsets.numel() - 1,
        tokens=shape.tokens,
        schedule=out.data_ptr(),
        stream=stream,
    )


def encode_network(
    native: Any,
    shape: Shape,
    operands: Operands,
    tokens: DeviceTokens,
    table: Tensor,
    planned: Tensor,
    out: Tensor,
    constant: Tensor | None,
    stream: int,
) -> None:
    """One stream's tokens to pooled vectors.

    table [367, D] float32, ``planned`` from `schedule`, out [P, D] of the element or float32 with
    any row stride, constant [D] float32 of a pixel without tokens (None: its row is left alone).
    """
    if tokens.bands.dtype == torch.float32:
        kind = 3 if tokens.standardized else 2
    else:
        kind = 1 if tokens.unsigned else 0
    native.encode_network(
        shape=shape,
        float16=operands.float16,
        stream=stream,
        blocks=blocks(shape, tokens.pixels, len(tokens.doy)),
        bands=tokens.bands.data_ptr(),
        band_kind=kind,
        channels=tokens.bands.shape[1],
        orbit=tokens.orbit.data_ptr(),
        doy=tokens.doy.data_ptr(),
        multiplicity=tokens.multiplicity.data_ptr(),
        offsets=tokens.offsets.data_ptr(),
        schedule=planned.data_ptr(),
        table=table.data_ptr(),
        weights=operands.weights.data_ptr(),
        parameters=operands.parameters.data_ptr(),
        layers=operands.layers,
        constant=0 if constant is None else constant.data_ptr(),
        pooled=out.data_ptr(),
        stride=out.stride(0),
        float_output=out.dtype == torch.float32,
    )


def encode_layer(
    native: Any,
    shape: Shape,
    operands: Operands,
    x: Tensor,
    out: Tensor,
    offsets: Tensor,
    multiplicity: Tensor,
    planned: Tensor,
    stream: int,
) -> None:
    """One transformer layer: x and out [N, D] contiguous, of the element; out may be x."""
    native.encode_layer(
        shape=shape,
        float16=operands.float16,
        stream=stream,
        blocks=blocks(shape, offsets.numel() - 1, len(x)),
        x=x.data_ptr(),
        y=out.data_ptr(),
        multiplicity=multiplicity.data_ptr(),
        offsets=offsets.data_ptr(),
        schedule=planned.data_ptr(),
        weights=operands.weights.data_ptr(),
        parameters=operands.parameters.data_ptr(),
    )


def _operands(
    chunks: list[Tensor], parameters: list[Tensor], layers: int, width: int, dtype: torch.dtype
) -> Operands:
    # A kernel fetches one chunk more than it reads: D / 4 fragments of 32 lanes, 4 values each.
    chunks.append(chunks[-1].new_zeros(width * 32))
    bits = torch.cat([chunk.reshape(-1) for chunk in chunks]).contiguous().view(torch.int16)
    flat = torch.cat([p.reshape(-1).to(torch.float32) for p in parameters])
    return Operands(bits, flat, layers, dtype == torch.float16)


def _bias(linear: Any) -> Tensor:
    bias: Tensor = linear.bias
    return bias


def _padded(x: Tensor, dim: int, multiple: int) -> Tensor:
    """Zeros at the end of a dimension, to a multiple."""
    missing = -x.shape[dim] % multiple
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim)


def _fragments(weight: Tensor) -> Tensor:
    """B fragments of W^T for W [n_out, n_in]: [k16, n8, lane, word and half (row 2t, 2t + 1 of
    the upper 8 rows, then of the lower)], lane = 4 column + t."""
    columns, steps = weight.shape[0] // 8, weight.shape[1] // 16
    split = weight.reshape(columns, 8, steps, 2, 4, 2)  # n8, column, k16, half, t, odd
    return split.permute(2, 0, 1, 4, 3, 5).reshape(steps, columns, 32, 4)


def _pairs(fragments: Tensor) -> Tensor:
    """[k16, n8, lane, 4] -> [k16, n16, lane, 8]: two neighbouring tiles in a lane's 16 bytes."""
    steps, columns = fragments.shape[:2]
    split = fragments.reshape(steps, columns // 2, 2, 32, 4)
    return split.transpose(2, 3).reshape(steps, columns // 2, 32, 8)


def _wide(weight: Tensor) -> Tensor:
    """Chunks of four n8 tiles over all of D."""
    fragments = _fragments(_padded(weight, 0, 32))
    return torch.cat([_pairs(part).reshape(-1) for part in fragments.split(4, dim=1)])


def _deep(weight: Tensor) -> Tensor:
    """Chunks of two k16 steps of all D outputs."""
    return _pairs(_fragments(_padded(weight, 1, 32))).reshape(-1)


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """The rows of q, k and v [3D, ...] -> [H, 3 x (K padded to 8s), ...]."""
    split = rows.reshape(3, heads, -1, *rows.shape[1:])
    return _padded(split, 2, 8).transpose(0, 1).flatten(1, 2)


def _layer_chunks(layer: LayerWeights, heads: int) -> list[Tensor]:
    chunks = [_wide(head) for head in _by_head(layer.qkv.weight, heads)]
    out = layer.out.weight
    chunks.append(_deep(_padded(out.reshape(len(out), heads, -1), 2, 8).flatten(1)))
    up, down = layer.ff1.weight, layer.ff2.weight
    for f in range(0, len(up), 32):
        chunks += [_wide(up[f : f + 32]), _deep(down[:, f : f + 32])]
    return chunks


def _layer_parameters(layer: LayerWeights, heads: int) -> list[Tensor]:
    qkv = _by_head(_bias(layer.qkv), heads)
    norms1, norms2 = layer.norm1, layer.norm2
    return [qkv, _bias(layer.out), *norms1, _bias(layer.ff1), _bias(layer.ff2), *norms2]
