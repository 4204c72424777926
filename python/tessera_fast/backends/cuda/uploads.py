"""Strided host arrays to contiguous tensors on the device, through two pinned buffers."""

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

STAGING_BYTES = 32 << 20  # of each of two buffers: 0.6 ms of a 55 GB/s link, 100 times a launch
ELEMENTS = {
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.float32): torch.float32,
}
_TYPES = {**ELEMENTS, np.dtype(np.uint8): torch.uint8, np.dtype(np.int32): torch.int32}


class Uploads:
    """Strided host arrays to contiguous device tensors, through two pinned buffers in turn: one is
    filled while the other is sent."""

    def __init__(
        self, device: torch.device, stream: "torch.cuda.Stream | None", staging_bytes: int
    ) -> None:
        self._device, self._stream, self._size = device, stream, staging_bytes
        self._buffers: list[Tensor] = []
        self._sent: list[Any] = [None, None]  # events, of what last left each buffer
        self._turn = 0

    def upload(self, source: np.ndarray) -> Tensor:
        """``source`` (T, H, ...) of any strides, as it is, on the device."""
        kind = _TYPES[source.dtype]
        out = torch.empty(source.nbytes, dtype=torch.uint8, device=self._device)
        start = 0
        for piece in self._pieces(source):
            buffer = self._free_buffer()[: piece.nbytes]
            np.copyto(buffer.numpy().view(source.dtype).reshape(piece.shape), piece)
            out[start : start + piece.nbytes].copy_(buffer, non_blocking=True)
            if self._stream is not None:
                self._sent[self._turn] = self._stream.record_event()
            start += piece.nbytes
        return out.view(kind).view(source.shape)

    def _pieces(self, source: np.ndarray) -> Iterable[np.ndarray]:
        """Runs of whole dates, or of rows of one date, that fit a buffer; in memory order of C."""
        if source.size == 0:
            return
        row_bytes = prod(source.shape[2:]) * source.itemsize
        if row_bytes > self._size:
            self._size, self._buffers = row_bytes, []
        yield from _runs(source, source.shape[1] * row_bytes, row_bytes, self._size)

    def _free_buffer(self) -> Tensor:
        """The buffer whose turn it is, when what it held has left."""
        if not self._buffers:
            pinned = self._device.type == "cuda"
            self._buffers = [
                torch.empty(self._size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)
            ]
        self._turn = 1 - self._turn
        if self._sent[self._turn] is not None:
            self._sent[self._turn].synchronize()
        return self._buffers[self._turn]


def _runs(source: np.ndarray, date_bytes: int, row_bytes: int, limit: int) -> Iterator[np.ndarray]:
    dates = limit // date_bytes
    for t in range(0, len(source), dates or 1):
        if dates:
            yield source[t : t + dates]
            continue
        rows = limit // row_bytes
        for row in range(0, source.shape[1], rows):
            yield source[t : t + 1, row : row + rows]
