"""Packed tokens on the device, and the chunks that an encoder takes them in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...packing import PackedTokens


@dataclass(frozen=True)
class DeviceTokens:
    """One stream of P pixels on the device; ``host_*`` are the same offsets where Python can read.

    N tokens, S steps, C bands. Offsets count from the first token of this chunk.
    """

    bands: Tensor  # [N, C] int16 (the bits of a uint16 where ``unsigned``) or float32
    doy: Tensor  # [N] int16
    orbit: Tensor  # [N] uint8
    multiplicity: Tensor  # [N] int16
    offsets: Tensor  # [P + 1] int32
    steps: Tensor | None  # [S] int32, indices into the pixel's own tokens
    step_offsets: Tensor | None  # [P + 1] int32
    unsigned: bool
    standardized: bool
    host_offsets: np.ndarray  # [P + 1] int64
    host_step_offsets: np.ndarray | None  # [P + 1] int64

    @property
    def pixels(self) -> int:
        return len(self.host_offsets) - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest pixel."""
        return int(np.diff(self.host_offsets).max(initial=0))

    def slice(self, first: int, last: int) -> "DeviceTokens":
        """Pixels ``first`` to ``last`` (exclusive): views, but for the offsets."""
        n0, n1 = (int(self.host_offsets[p]) for p in (first, last))
        steps = step_offsets = host_step_offsets = None
        if self.steps is not None:
            assert self.step_offsets is not None and self.host_step_offsets is not None
            s0, s1 = (int(self.host_step_offsets[p]) for p in (first, last))
            steps = self.steps[s0:s1]
            step_offsets = self.step_offsets[first : last + 1] - s0
            host_step_offsets = self.host_step_offsets[first : last + 1] - s0
        return DeviceTokens(
            self.bands[n0:n1],
            self.doy[n0:n1],
            self.orbit[n0:n1],
            self.multiplicity[n0:n1],
            self.offsets[first : last + 1] - n0,
            steps,
            step_offsets,
            self.unsigned,
            self.standardized,
            self.host_offsets[first : last + 1] - n0,
            host_step_offsets,
        )


class HostOffsets(NamedTuple):
    """The offsets of one stream where Python can read them."""

    tokens: np.ndarray  # [P + 1] int64
    steps: np.ndarray | None

    @staticmethod
    def of(tokens: PackedTokens) -> "HostOffsets":
        """Copied from the device in the order of the current stream, which it waits for."""

        def host(offsets: "np.ndarray | Tensor") -> np.ndarray:
            array = offsets.cpu().numpy() if isinstance(offsets, Tensor) else offsets
            return array.astype(np.int64)

        steps = tokens.step_offsets
        return HostOffsets(host(tokens.offsets), None if steps is None else host(steps))


def to_device(
    tokens: PackedTokens, device: torch.device, host: HostOffsets | None = None
) -> DeviceTokens:
    """Numpy arrays are copied to ``device``; tensors that lie there are taken as views."""
    host = host or HostOffsets.of(tokens)
    bands = on_device(tokens.bands, device)
    unsigned = bands.dtype == torch.uint16
    steps = step_offsets = None
    if tokens.steps is not None:
        assert tokens.step_offsets is not None
        steps = on_device(tokens.steps, device)
        step_offsets = on_device(tokens.step_offsets, device).to(torch.int32)
    return DeviceTokens(
        bands.view(torch.int16) if unsigned else bands,
        on_device(tokens.doy, device).view(torch.int16),
        on_device(tokens.orbit, device),
        on_device(tokens.multiplicity, device).view(torch.int16),
        on_device(tokens.offsets, device).to(torch.int32),
        steps,
        step_offsets,
        unsigned,
        tokens.standardized,
        host.tokens,
        host.steps,
    )


def empty_stream(bands: int, steps: int, with_steps: bool, device: torch.device) -> DeviceTokens:
    """One pixel that read nothing: the zero token of day 0, standing ``steps`` times in a row."""
    one = torch.tensor([0, 1], dtype=torch.int32, device=device)
    return DeviceTokens(
        torch.zeros(1, bands, dtype=torch.float32, device=device),
        torch.zeros(1, dtype=torch.int16, device=device),
        torch.zeros(1, dtype=torch.uint8, device=device),
        torch.full((1,), steps, dtype=torch.int16, device=device),
        one,
        torch.zeros(steps, dtype=torch.int32, device=device) if with_steps else None,
        one * steps if with_steps else None,
        unsigned=False,
        standardized=True,
        host_offsets=np.array([0, 1]),
        host_step_offsets=np.array([0, steps]) if with_steps else None,
    )


def chunks(s2: DeviceTokens, s1: DeviceTokens, tokens: int, pixels: int) -> Iterator[slice]:
    """Runs of whole pixels, each at most ``tokens`` tokens in either stream and ``pixels`` pixels.

    A single pixel is always a run: ``tokens`` is at least the longest sequence.
    """
    first = 0
    while first < s2.pixels:
        last = min(first + pixels, s2.pixels)
        for stream in (s2, s1):
            limit = stream.host_offsets[first] + tokens
            last = min(last, int(np.searchsorted(stream.host_offsets, limit, side="right")) - 1)
        last = max(last, first + 1)
        yield slice(first, last)
        first = last


def on_device(array: "np.ndarray | Tensor", device: torch.device) -> Tensor:
    """A tensor on ``device``: a view where the data lie there, else a copy. The host does not wait
    for the copy of an array: it is from pinned memory."""
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(np.ascontiguousarray(array))
        if device.type == "cuda":
            array = array.pin_memory()
    return array.to(device, non_blocking=True)
