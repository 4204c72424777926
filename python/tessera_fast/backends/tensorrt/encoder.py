"""A model as three engines: padded batches of equal length on two streams, then the head.

Sentinel-2 and Sentinel-1 run side by side, each in lanes that take turns: while one computes, the
host fills the next one's pinned buffers. Lanes of a stream share a workspace, so their engines run
one after the other. Nothing else waits but a lane that is still busy and, at the end, the results.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle, zip_longest
from typing import Any

import numpy as np
import torch

from ...exports.feeds import bins
from ...exports.form import Form
from ...packing import PackedTokens
from ...weights import Weights
from ..base import check_out, check_tokens
from .device import EMULATED
from .engines import HEAD_PIXELS, batch_pixels
from .lanes import Lane, Module, Workspace, emulated_modules, engine_modules

_LANES = 2  # of each stream: one computes, one is filled
# Pixels whose pooled vectors are kept at once: 170 MB for v2-large.
_CHUNK_PIXELS = 1 << 15


class TensorrtEncoder:
    """See backends/base.py. Several host threads may share one: their requests take turns.

    Equal batches give equal bits; a pixel in another batch may differ in its last bits, as TensorRT
    picks kernels by shape.
    """

    def __init__(self, weights: Weights, form: Form, device: str) -> None:
        self._spec = weights.spec
        self.precision = form.precision
        modules: dict[str, Module]
        if device == EMULATED:
            self.device = torch.device("cpu")
            modules, provenance = emulated_modules(weights, form)
            self.place = EMULATED
        else:
            self.device = torch.device(device)
            if self.device.index is None:
                self.device = torch.device("cuda", torch.cuda.current_device())
            modules, provenance = engine_modules(weights, form, self.device)
            self.place = str(self.device)
        self.provenance: dict[str, Any] = provenance
        self._lock = threading.Lock()
        capturable = not self._spec.needs_steps  # a loop asks the host how long it is
        # of its own: what is allocated here is not read on a stream of a caller's
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        s2, s1, head = (modules[part] for part in ("s2_encoder", "s1_encoder", "head"))
        with self._on_stream():
            spaces = Workspace([s2, head], self.device), Workspace([s1], self.device)
            self._lanes: dict[str, list[Lane]] = {
                module.part: [Lane(module, self.device, space, capturable) for _ in range(_LANES)]
                for module, space in zip((s2, s1), spaces, strict=True)
            }
            self._head: Lane | None = Lane(head, self.device, spaces[0], True)
            self._nothing = {part: self._constant(lanes[0]) for part, lanes in self._lanes.items()}

    def encode(
        self,
        s2: PackedTokens,
        s1: PackedTokens,
        out: np.ndarray,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """As ``Encoder.encode``: ``out`` (P, E) float32."""
        check_tokens(self._spec, s2, s1)
        check_out(self._spec, s2.pixels, out)
        with self._lock, self._on_stream():
            for first in range(0, s2.pixels, _CHUNK_PIXELS):
                last = min(first + _CHUNK_PIXELS, s2.pixels)
                self._encode(s2, s1, out[first:last], first, last)
                if progress is not None:
                    progress(last)

    def close(self) -> None:
        """Free the engines."""
        with self._lock:
            self._lanes, self._head = {}, None

    def _encode(
        self, s2: PackedTokens, s1: PackedTokens, out: np.ndarray, first: int, last: int
    ) -> None:
        """Pixels ``first`` to ``last`` (exclusive)."""
        assert self._head is not None, "the encoder is closed"
        pooled = {
            part: constant.expand(last - first, -1).contiguous()
            for part, constant in self._nothing.items()
        }
        for lane in self._all_lanes():
            lane.follow()
        work = [
            self._start_batches(part, tokens, pooled[part], first, last)
            for part, tokens in zip(self._lanes, (s2, s1), strict=True)
        ]
        try:
            for _ in zip_longest(*work):  # one batch of each stream in turn
                pass
        finally:  # also before pooled vectors are freed for an exception
            for lane in self._all_lanes():
                lane.join()
        self._head.follow()
        embedding = torch.empty(last - first, self._spec.saved_dim, device=self.device)
        for start in range(0, last - first, HEAD_PIXELS):
            rows = slice(start, min(start + HEAD_PIXELS, last - first))
            self._head.run_on_device(
                {"s2": pooled["s2_encoder"][rows], "s1": pooled["s1_encoder"][rows]},
                embedding[rows],
            )
        self._head.join()
        out[:] = embedding[:, : out.shape[1]].cpu().numpy()
        unseen = (np.diff(s2.offsets[first : last + 1]) == 0) & (
            np.diff(s1.offsets[first : last + 1]) == 0
        )
        out[unseen] = np.nan

    def _start_batches(
        self, part: str, tokens: PackedTokens, pooled: torch.Tensor, first: int, last: int
    ) -> Iterator[None]:
        """Start batch after batch of one stream, in lanes that take turns; one a step."""
        lanes = cycle(self._lanes[part])
        for pixels, inputs in bins(self._spec, tokens, batch_pixels, first, last):
            next(lanes).run(inputs, pooled, pixels - first)
            yield

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _all_lanes(self) -> list[Lane]:
        return [lane for lanes in self._lanes.values() for lane in lanes]

    def _constant(self, lane: Lane) -> torch.Tensor:
        """(1, D): the pooled vector of a stream without observations, zeros on day 0."""
        length = self._spec.empty_steps
        bands = {"bands": np.zeros((1, length, lane.bands), np.float32)}
        days = {n: np.zeros((1, length), np.int32) for n in lane.inputs if n != "bands"}
        pooled = torch.empty(1, self._spec.d_model, device=self.device)
        lane.follow()
        lane.run(bands | days, pooled, np.zeros(1, np.int64))
        lane.join()
        return pooled
