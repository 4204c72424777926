"""The launches of a released model: the back end's own order of kernels on tensors without data."""

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from tessera_fast.backends.cuda.arena import Arena
from tessera_fast.backends.cuda.forward import Network, Route
from tessera_fast.backends.cuda.tokens import DeviceTokens
from tessera_fast.backends.cuda.weights import network_weights
from tessera_fast.kernels.triton.device import assume
from tessera_fast.spec import S1_BANDS, S2_BANDS, ModelSpec
from triton_aot import Launch, recording

_META = torch.device("meta")
_MEMORY = 1 << 40  # bytes of an arena that takes none
LENGTHS = (48, 16, 112, 256)  # tokens of a batch's pixels: short and long, a multiple of 16 in all
_STEPS = 3  # of a recurrence: the first and two more, which take turns with their buffers


class NetworkLaunches:
    """What a model launches with an element, on any target."""

    def __init__(self, spec: ModelSpec, element: str) -> None:
        zeros = {n: np.zeros(s, np.float32) for n, s in spec.parameter_shapes().items()}
        self._spec, self._element = spec, element
        self._weights = network_weights(spec, zeros, _META, element)

    def of(
        self,
        arch: int,
        lengths: tuple[int, ...] = LENGTHS,
        first: int = 0,
        bands: tuple[torch.dtype, torch.dtype] = (torch.uint16, torch.int16),
        width: int | None = None,
    ) -> list[Launch]:
        """Of pixels with so many tokens in either stream, to float32 and to int8.

        ``first``: pixels of the same arrays to leave out, which moves the start of every array.
        ``bands``: types of Sentinel-2 and Sentinel-1. ``width``: leading dimensions that are kept.
        """
        spec, element, width = self._spec, self._element, width or self._spec.saved_dim
        chosen, P = slice(first, len(lengths)), len(lengths)
        s2 = self._tokens(lengths, len(S2_BANDS), bands[0]).slice(first, P)
        s1 = self._tokens(lengths, len(S1_BANDS), bands[1]).slice(first, P)
        values = _empty(P, width, dtype=torch.float32)[chosen]
        codes = _empty(P, width, dtype=torch.int8)[chosen]
        scales = _empty(P, dtype=torch.float32)[chosen]
        with assume(divmod(arch, 10)), recording(arch) as launches, torch.no_grad():
            route = Route.of(spec, element)
            network = Network(spec, self._weights, element, route, lambda name: nullcontext())
            for out in (values, (codes, scales)):
                network.encode(s2, s1, Arena(_MEMORY, _META), out)
        return launches

    def _tokens(self, lengths: tuple[int, ...], bands: int, dtype: torch.dtype) -> DeviceTokens:
        offsets = np.cumsum((0, *lengths))
        N, P = int(offsets[-1]), len(lengths)
        recurrent = self._spec.needs_steps
        step_offsets = np.arange(P + 1) * _STEPS
        unsigned = dtype == torch.uint16
        return DeviceTokens(
            bands=_empty(N, bands, dtype=torch.int16 if unsigned else dtype),
            doy=_empty(N, dtype=torch.int16),
            orbit=_empty(N, dtype=torch.uint8),
            multiplicity=_empty(N, dtype=torch.int16),
            offsets=_empty(P + 1, dtype=torch.int32),
            steps=_empty(P * _STEPS, dtype=torch.int32) if recurrent else None,
            step_offsets=_empty(P + 1, dtype=torch.int32) if recurrent else None,
            unsigned=unsigned,
            standardized=False,
            host_offsets=offsets,
            host_step_offsets=step_offsets if recurrent else None,
        )


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=_META)
