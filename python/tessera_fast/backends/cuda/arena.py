"""Device memory of an encoder: one allocation, handed out from its start for every chunk."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

_ALIGNMENT = 256  # bytes: what the allocator gives, and more than any vector load needs


class Arena:
    """Buffers in order of request. The same requests get the same addresses, so that a captured
    graph may be replayed; a frame's buffers are free again when it ends."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._used = 0

    @property
    def size(self) -> int:
        return self._memory.numel()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised buffer."""
        size = prod(shape) * dtype.itemsize
        start, stop = self._used, self._used + size
        if stop > self.size:
            raise RuntimeError(
                f"workspace: {stop:,} bytes are needed and {self.size:,} were set aside; "
                "backends/cuda/forward.py counts too few"
            )
        self._used = -(-stop // _ALIGNMENT) * _ALIGNMENT
        return self._memory[start:stop].view(dtype).view(shape)

    def reset(self) -> None:
        """Forget what an encode that raised had taken."""
        self._used = 0

    @contextmanager
    def frame(self) -> Iterator[None]:
        mark = self._used
        yield
        self._used = mark


def padded(size: int) -> int:
    """Bytes that a buffer of ``size`` bytes takes."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
