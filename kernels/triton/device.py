"""What the configurations of the kernels ask about a device, and whether Triton interprets.

Triton decides by TRITON_INTERPRET, at import, whether kernels run as numpy on CPU tensors.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton

Capability = tuple[int, int]

INTERPRETED = bool(triton.knobs.runtime.interpret)
_SMALLEST: Capability = (8, 0)  # interpreting: tiles that suit every device
_assumed: list[Capability] = []


def capability(device: torch.device) -> Capability:
    """The compute capability that kernels for tensors on ``device`` are shaped for."""
    if _assumed:
        return _assumed[-1]
    if INTERPRETED:
        return _SMALLEST
    return torch.cuda.get_device_capability(device)


@contextmanager
def assume(assumed: Capability) -> Iterator[None]:
    """Shape kernels for another device than the tensors': compilation ahead of time."""
    _assumed.append(assumed)
    try:
        yield
    finally:
        _assumed.pop()


def shared_memory(of: Capability) -> int:
    """Bytes of shared memory that one program may use."""
    if of in ((8, 0), (8, 7)):
        return 163 * 1024
    return 227 * 1024 if of[0] in (9, 10) else 99 * 1024
