"""Where embeddings go: straight into a tensor on the device, or through pinned memory to numpy.

P pixels, E embedding width. A sink hands out the device memory of a chunk's result, and takes it
away while the next chunk is computed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...quantization import QuantizedEmbeddings

Target: TypeAlias = (
    "Tensor | tuple[Tensor, Tensor]"  # [p, E] float32, or codes [p, E] int8 and scales [p]
)
_SLOTS = 2  # one is filled while the other travels


class _Slot(NamedTuple):
    device: tuple[Tensor, ...]
    host: tuple[Tensor, ...]


class Sink:
    """Results of P pixels, a chunk at a time and in order."""

    def __init__(
        self,
        out: Any,
        pixels: int,
        widest: int,
        chunk: int,
        device: torch.device,
        progress: Callable[[int], None] | None,
    ) -> None:
        """``out``: float32 [P, E], or QuantizedEmbeddings(codes [P, E] int8, scales [P] float32);
        numpy arrays, or contiguous tensors on ``device``. ``chunk``: most pixels of a chunk."""
        self._quantized = isinstance(out, QuantizedEmbeddings)
        self._parts: tuple[Any, ...] = tuple(out) if self._quantized else (out,)
        names = ("codes", "scales") if self._quantized else ("out",)
        dtypes = ("int8", "float32") if self._quantized else ("float32",)
        for name, part, dtype in zip(names, self._parts, dtypes, strict=True):
            _check(name, part, dtype, pixels, widest)
        self._direct = isinstance(self._parts[0], Tensor)
        if self._direct and any(p.device != device for p in self._parts):
            raise InputError(
                f"out: expected tensors on {device}, where the model is, got "
                f"{', '.join(str(p.device) for p in self._parts)}"
            )
        self._progress = progress
        self._device = device
        self._slots = [] if self._direct else [self._slot(chunk) for _ in range(_SLOTS)]
        self._pending: list[tuple[slice, _Slot, torch.cuda.Event | None]] = []
        self._next = 0

    def _slot(self, chunk: int) -> _Slot:
        shapes = [(chunk, *p.shape[1:]) for p in self._parts]
        dtypes = [torch.int8, torch.float32] if self._quantized else [torch.float32]
        pin = self._device.type == "cuda"
        pairs = list(zip(shapes, dtypes, strict=True))
        return _Slot(
            tuple(torch.empty(s, dtype=d, device=self._device) for s, d in pairs),
            tuple(torch.empty(s, dtype=d, pin_memory=pin) for s, d in pairs),
        )

    def target(self, pixels: slice) -> Target:
        """Device memory for the results of ``pixels``."""
        if self._direct:
            parts = tuple(p[pixels] for p in self._parts)
        else:
            if len(self._pending) == _SLOTS:
                self._take()
            count = pixels.stop - pixels.start
            parts = tuple(t[:count] for t in self._slots[self._next].device)
        return (parts[0], parts[1]) if self._quantized else parts[0]

    def written(self, pixels: slice) -> None:
        """The kernels that write ``pixels`` have been enqueued on the current stream."""
        if self._direct:
            if self._progress is not None:
                self._progress(pixels.stop)
            return
        slot = self._slots[self._next]
        self._next = (self._next + 1) % _SLOTS
        count = pixels.stop - pixels.start
        for device, host in zip(slot.device, slot.host, strict=True):
            host[:count].copy_(device[:count], non_blocking=True)
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        self._pending.append((pixels, slot, event))

    def finish(self) -> None:
        """Wait for what is under way to numpy; results in tensors are ready in stream order."""
        while self._pending:
            self._take()

    def _take(self) -> None:
        pixels, slot, event = self._pending.pop(0)
        if event is not None:
            event.synchronize()
        for part, host in zip(self._parts, slot.host, strict=True):
            part[pixels] = host[: pixels.stop - pixels.start].numpy()
        if self._progress is not None:
            self._progress(pixels.stop)


def _check(name: str, part: Any, dtype: str, pixels: int, widest: int) -> None:
    shape = tuple(part.shape)
    rows = (pixels,) if name == "scales" else (pixels, shape[-1] if shape else 0)
    right = shape == rows and (name == "scales" or 1 <= shape[-1] <= widest)
    kind = str(part.dtype).removeprefix("torch.")
    if not right or kind != dtype or not isinstance(part, np.ndarray | Tensor):
        width = "" if name == "scales" else f", 1..{widest}"
        raise InputError(f"{name}: expected ({pixels}{width}) {dtype}, got {shape} {kind}")
    if isinstance(part, Tensor) and not part.is_contiguous():
        raise InputError(f"{name}: expected a contiguous tensor, got strides {part.stride()}")
