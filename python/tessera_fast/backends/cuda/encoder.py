"""A model on a GPU: chunks of pixels through the kernels, while the next rows are packed.

Nothing waits for the device but the packer's one read of how many tokens there are, and numpy
outputs. Launches go to a stream of the encoder's own: it follows the caller's current CUDA stream,
which waits for it, so a call is in order there. Device memory that the encoder takes is used on its
stream alone, and may be freed at any time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from ... import env
from ...errors import BackendUnavailable
from ...packing import Observations, PackedTokens
from ...spec import MAX_SEQUENCE, ModelSpec
from ...weights import Weights
from ..base import check_tokens
from .arena import Arena, padded
from .device import INTERPRETER
from .forward import Network, Route
from .fused import FusedNetwork
from .packer import DevicePacker
from .ranges import Ranges
from .replay import Replay, rounded
from .sink import Sink
from .tokens import DeviceTokens, HostOffsets, chunks, to_device
from .weights import network_weights

# A chunk's tokens of one stream. 132 multiprocessors at 128 rows are a wave of 17 k tokens: thirty
# waves hide the last one's tail, and at the goal of 2 M px/s of nano a chunk of 5 ms still hides
# its dozen launches of some 30 us each. More would only take memory.
_CHUNK_TOKENS = 1 << 19
_TOKENS_PER_PIXEL = 16  # a chunk has at most a pixel for every so many tokens
_FREE_SHARE = 0.8  # of free device memory that a workspace may take: the packer needs some too
_BUFFERS = 64  # buffers alive at once in a chunk: what their alignment may cost
_INTERPRETED_MEMORY = 1 << 30  # what stands for free device memory on a CPU


class CudaEncoder:
    """See backends/base.py. Several host threads may share one: their chunks take turns."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, device: torch.device, precision: str, native: Any
    ) -> None:
        """``native``: the module tessera_fast._cuda, or on a CPU its emulation."""
        self.precision = precision
        self.place = str(device) if device.type == "cuda" else INTERPRETER
        self.provenance: dict[str, Any] = {
            "device": _device_name(device),
            "torch": torch.__version__,
        }
        self._spec, self.device = spec, device
        self.ranges = Ranges(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        with self._on_stream():
            made = network_weights(spec, weights.tensors, device, precision)
            fused = None
            if env.fused():
                fused = FusedNetwork(spec, made, precision, native, device)
            self._network: Network | None = Network(
                spec, made, precision, Route.of(spec, precision), self.ranges, fused
            )
            self._packer = DevicePacker(spec, device, native)
        self._arena: Arena | None = None
        self._replay: Replay | None = None  # graphs whose buffers lie in the arena
        self._chunk_tokens = _CHUNK_TOKENS
        self._lock = threading.Lock()

    def encode(
        self,
        s2: PackedTokens,
        s1: PackedTokens,
        out: Any,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """As ``Encoder.encode``; tokens may also be tensors on the device, and ``out`` a float32
        tensor there or QuantizedEmbeddings of arrays or tensors. Tensors are written in the order
        of the current stream, numpy arrays before this returns."""
        check_tokens(self._spec, s2, s1)
        with self._turn():
            streams = to_device(s2, self.device), to_device(s1, self.device)
            sink = self._sink(out, s2.pixels, progress)
            self._run(*streams, sink, 0)
            sink.finish()

    def encode_window(
        self,
        observations: Observations,
        out: Any,
        *,
        row0: int = 0,
        seed: int = 0,
        binary_masks: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Pack a window on the device and encode it; returns the (P, 3) uint16 observed dates.

        Rows of the window go up and are packed on a stream of their own while the rows before them
        are encoded. Arguments and errors are those of `packing.pack` and `encode`.
        """
        height, width = observations.shape
        counts = np.zeros((height * width, 3), np.uint16)
        with self._turn():
            sink = self._sink(out, height * width, progress)
            if isinstance(observations.s2_bands, torch.Tensor):
                self._packer.await_inputs()
            runs = self._packed(observations, row0, seed, binary_masks)
            for first, s2, s1, observed in runs:
                counts[first : first + len(observed)] = observed
                self._run(s2, s1, sink, first)
            sink.finish()
        return counts

    def profile(self, s2: PackedTokens, s1: PackedTokens, out: Any) -> dict[str, float]:
        """``encode``, returning the seconds of every op on the device."""
        with self.ranges.timed() as seconds:
            self.encode(s2, s1, out)
        return dict(seconds)

    @property
    def width(self) -> int:
        """Dimensions of the embedding."""
        return self._spec.saved_dim

    def close(self) -> None:
        with self._lock:
            self._network = self._arena = self._replay = None

    def _packed(
        self, observations: Observations, row0: int, seed: int, binary_masks: bool
    ) -> Iterator[tuple[int, DeviceTokens, DeviceTokens, np.ndarray]]:
        """(first pixel, Sentinel-2, Sentinel-1, observed dates) of runs of rows. The caller's
        launches for a run are under way while the next one is packed."""
        height, width = observations.shape
        dates = max(len(observations.s2_bands), sum(len(o.bands) for o in observations.orbits), 1)
        rows = max(1, self._chunk_tokens // (width * min(dates, MAX_SEQUENCE)))
        start = 0
        while start < height:
            stop = min(start + rows, height)
            try:
                with self.ranges.synchronised("upload and pack"):
                    packed = self._packer.pack(
                        observations.rows(start, stop),
                        row0=row0 + start,
                        seed=seed,
                        binary_masks=binary_masks,
                    )
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
                torch.cuda.empty_cache()
                rows = -(-rows // 2)
                continue
            # what the host reads comes down on the packer's stream: it waits for nothing else
            with self._packer.on_stream():
                hosts = [HostOffsets.of(tokens) for tokens in packed[:2]]
                observed = packed[2].cpu().numpy()
            self._packer.hand_over(packed)
            s2, s1 = (to_device(t, self.device, h) for t, h in zip(packed[:2], hosts, strict=True))
            yield start * width, s2, s1, observed
            start = stop

    def _run(self, s2: DeviceTokens, s1: DeviceTokens, sink: Sink, first: int) -> None:
        """Enqueue the encoding of pixels that begin at ``first`` of the sink's."""
        assert self._network is not None
        arena = self._workspace(s2, s1)
        small = self._replays(s2, s1)
        if small is None:
            pieces = chunks(s2, s1, self._chunk_tokens, self._chunk_pixels)
        else:
            pieces = iter([slice(0, s2.pixels)])
        for pixels in pieces:
            place = slice(first + pixels.start, first + pixels.stop)
            part2, part1 = (s.slice(pixels.start, pixels.stop) for s in (s2, s1))
            if small is not None:
                small.encode(part2, part1, sink.target(place))
            else:
                self._network.encode(part2, part1, arena, sink.target(place))
            sink.written(place)

    def _replays(self, s2: DeviceTokens, s1: DeviceTokens) -> Replay | None:
        """The graphs of the current workspace, where these tokens suit them."""
        assert self._network is not None and self._arena is not None
        limits = self._chunk_tokens, self._chunk_pixels
        if self.ranges.timing or not Replay.suits(self._network, s2, s1, *limits):
            return None
        if self._replay is None or self._replay.arena is not self._arena:
            self._replay = Replay(self._network, self._arena, self._stream)
        return self._replay

    @property
    def _chunk_pixels(self) -> int:
        return max(1, self._chunk_tokens // _TOKENS_PER_PIXEL)

    def _sink(self, out: Any, pixels: int, progress: Callable[[int], None] | None) -> Sink:
        chunk = min(pixels, self._chunk_pixels)
        return Sink(out, pixels, self._spec.saved_dim, chunk, self.device, progress)

    def _workspace(self, s2: DeviceTokens, s1: DeviceTokens) -> Arena:
        """Memory for the largest chunk of these tokens; chunks shrink to what the device has."""
        assert self._network is not None
        tokens = max(int(s.host_offsets[-1]) for s in (s2, s1))
        steps = (
            max(
                int(np.diff(s.host_step_offsets).max(initial=0))
                for s in (s2, s1)
                if s.host_step_offsets is not None
            )
            if self._spec.needs_steps
            else 0
        )
        steps = max(steps, self._spec.empty_steps)
        while True:
            chunk = min(rounded(tokens), self._chunk_tokens)
            pixels = min(rounded(s2.pixels), self._chunk_pixels)
            size = chunk * self._network.token_bytes()
            size += pixels * self._network.pixel_bytes(steps) + _BUFFERS * padded(1)
            if self._arena is not None and self._arena.size >= size:
                return self._arena
            self._arena = self._replay = None  # their memory before more is asked for
            if size <= _FREE_SHARE * self._free_memory():
                try:
                    self._arena = Arena(size, self.device)
                    return self._arena
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
            if self._chunk_tokens // 2 < MAX_SEQUENCE:
                raise BackendUnavailable(
                    f"device {self.device}: {size >> 20} MiB are needed for {chunk} tokens of "
                    f"{self._spec.name} and {self._free_memory() >> 20} MiB are free"
                )
            self._chunk_tokens //= 2

    def _free_memory(self) -> int:
        if self.device.type != "cuda":
            return _INTERPRETED_MEMORY
        free, _ = torch.cuda.mem_get_info(self.device)
        cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(free + cached)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This encode owns the workspace, on the encoder's stream: after what the caller's stream
        holds now, and before what it gets later."""
        with self._lock, torch.no_grad():
            if self._network is None:
                raise BackendUnavailable("this model was closed; load it again")
            if self._arena is not None:
                self._arena.reset()
            if self._stream is None:
                yield
                return
            caller = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(caller)
            try:
                with self._on_stream():
                    yield
            finally:
                caller.wait_stream(self._stream)

    def _on_stream(self) -> AbstractContextManager[Any]:
        """A context in which the encoder's stream, and with it its device, is torch's current."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"
