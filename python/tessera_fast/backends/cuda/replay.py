"""Small requests of repeated size as CUDA graphs: one launch in place of some thirty.

A request's sizes are rounded up, so that requests of about one size share a graph. The rows beyond
its own are computed on whatever the buffers held and read by nobody: no row of a result depends on
another pixel's.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...spec import MAX_SEQUENCE
from ..base import capturing
from .arena import Arena
from .forward import Network
from .sink import Target
from .tokens import DeviceTokens

MOST_TOKENS = 1 << 15  # of a stream: beyond, the kernels take longer than their launches
_MOST_GRAPHS = 8
_LEAST = 64  # pixels and tokens: requests below it share a graph


@dataclass
class _Entry:
    s2: DeviceTokens
    s1: DeviceTokens
    target: Target
    graph: "torch.cuda.CUDAGraph | None" = None


class Replay:
    """Graphs by rounded size, for one network and workspace. The least recently used one goes."""

    def __init__(self, network: Network, arena: Arena, stream: "torch.cuda.Stream | None") -> None:
        """``stream``: the one that ``encode`` is called on, and that captures. None, where there
        are no graphs: the kernels are launched on the rounded buffers every time."""
        self.arena = arena
        self._network, self._stream = network, stream
        self._entries: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()

    @staticmethod
    def suits(
        network: Network, s2: DeviceTokens, s1: DeviceTokens, chunk_tokens: int, chunk_pixels: int
    ) -> bool:
        """Small, one chunk when its sizes are rounded, and without a recurrence, whose launches
        depend on the longest series."""
        tokens = rounded(max(s2.doy.numel(), s1.doy.numel()))
        fits = tokens <= min(MOST_TOKENS, chunk_tokens)
        fits = fits and rounded(s2.pixels) <= min(MOST_TOKENS, chunk_pixels)
        return fits and not network.spec.needs_steps

    def encode(self, s2: DeviceTokens, s1: DeviceTokens, target: Target) -> None:
        """As ``Network.encode``. The first request of a size launches its kernels, the second
        captures them, and later ones replay."""
        parts = _parts(target)
        key = (
            rounded(s2.pixels),
            *_form(s2),
            *_form(s1),
            *((p.dtype, p.shape[1:]) for p in parts),
        )
        entry = self._entries.pop(key, None)
        known = entry is not None
        if entry is None:
            if len(self._entries) == _MOST_GRAPHS:
                self._entries.popitem(last=False)
            entry = _Entry(_rounded_tokens(s2), _rounded_tokens(s1), _rounded_target(target, s2))
        self._entries[key] = entry
        _fill(entry.s2, s2)
        _fill(entry.s1, s1)
        if entry.graph is not None:
            entry.graph.replay()
        elif known and self._stream is not None:
            with capturing(self._stream) as graph:
                self._network.encode(entry.s2, entry.s1, self.arena, entry.target)
            entry.graph = graph
            graph.replay()
        else:
            self._network.encode(entry.s2, entry.s1, self.arena, entry.target)
        for part, result in zip(parts, _parts(entry.target), strict=True):
            part.copy_(result[: s2.pixels])


def _parts(target: Target) -> tuple[Tensor, ...]:
    return target if isinstance(target, tuple) else (target,)


def rounded(size: int) -> int:
    """The next of 64, 80, 96, 112, 128, 160, ...: at most a quarter more."""
    if size <= _LEAST:
        return _LEAST
    step = 1 << (size - 1).bit_length() - 3
    return -(-size // step) * step


def _form(tokens: DeviceTokens) -> tuple[object, ...]:
    """What must agree for two requests to share a graph, beside their pixels."""
    return rounded(tokens.doy.numel()), tokens.bands.dtype, tokens.unsigned, tokens.standardized


def _rounded_tokens(tokens: DeviceTokens) -> DeviceTokens:
    """Buffers for as many pixels and tokens as the rounded sizes, all zero."""
    count, pixels = rounded(tokens.doy.numel()), rounded(tokens.pixels)
    return DeviceTokens(
        tokens.bands.new_zeros(count, tokens.bands.shape[1]),
        tokens.doy.new_zeros(count),
        tokens.orbit.new_zeros(count),
        tokens.multiplicity.new_ones(count),
        tokens.offsets.new_zeros(pixels + 1),
        None,
        None,
        tokens.unsigned,
        tokens.standardized,
        # read for how many pixels there are, and that none is longer than this
        np.minimum(np.arange(pixels + 1) * MAX_SEQUENCE, MAX_SEQUENCE),
        None,
    )


def _rounded_target(target: Target, tokens: DeviceTokens) -> Target:
    buffers = tuple(p.new_empty(rounded(tokens.pixels), *p.shape[1:]) for p in _parts(target))
    return (buffers[0], buffers[1]) if isinstance(target, tuple) else buffers[0]


def _fill(buffers: DeviceTokens, tokens: DeviceTokens) -> None:
    """Copy a request in; the pixels beyond its own have no tokens."""
    count = tokens.doy.numel()
    buffers.bands[:count].copy_(tokens.bands)
    buffers.doy[:count].copy_(tokens.doy)
    buffers.orbit[:count].copy_(tokens.orbit)
    buffers.multiplicity[:count].copy_(tokens.multiplicity)
    buffers.offsets[: tokens.pixels + 1].copy_(tokens.offsets)
    buffers.offsets[tokens.pixels + 1 :].fill_(count)
