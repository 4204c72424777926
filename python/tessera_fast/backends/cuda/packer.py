"""Raw series of a window to packed tokens on the device: kernels/cuda/pack.cu and its arguments.

What `packing.pack` does, array by array and error by error, with tensors for arrays. P pixels,
T dates, C bands, N tokens, S steps.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...packing import Observations, PackedTokens, days_of, radar_series
from ...spec import MAX_SEQUENCE, S1_BANDS, S2_BANDS, ModelSpec
from .uploads import ELEMENTS, STAGING_BYTES, Uploads

_NO_ERROR = 2**63 - 1


class _Series(NamedTuple):
    """One list of dates on the device, kept until the kernels that read it are enqueued."""

    bands: Tensor  # [T, P, C]
    mask: Tensor | None  # [T, P]
    days: Tensor  # [T, P], or [T] where all pixels share their days
    column: int  # of counts: 0 Sentinel-2, 1 + index of the orbit
    orbit: int

    def arguments(self) -> tuple[int, int, int, bool, int, int, int]:
        mask = 0 if self.mask is None else self.mask.data_ptr()
        return (
            self.bands.data_ptr(),
            mask,
            self.days.data_ptr(),
            self.days.dim() > 1,
            len(self.bands),
            self.column,
            self.orbit,
        )


class _Stream(NamedTuple):
    """Sentinel-2 (number 0) or Sentinel-1 (1) between the two passes."""

    number: int
    series: list[_Series]
    dtype: torch.dtype
    channels: int
    input: Any  # native PackInput, pointing into the tensors of this tuple
    bits: Tensor
    offsets: Tensor  # [P + 1] int32
    step_offsets: Tensor  # [P + 1] int32


class DevicePacker:
    """Packs windows for one model on ``device``; ``native`` is tessera_fast._cuda or its emulation.

    `pack` uploads and computes on a stream of its own, which waits for nobody, and returns when its
    kernels are enqueued. The host waits for that stream alone: for a free staging buffer, for the
    sizes of the arrays and, where bands are float32, for the check of their values. So chunk i + 1
    is packed while chunk i, enqueued before, is encoded:

        packed = packer.pack(chunk)
        with packer.on_stream():  # what the host reads; needs no wait for the encoder
            counts = packed[2].cpu().numpy()
        packer.hand_over(packed)  # what is enqueued on the current stream from here on may read it

    On a device "cpu" everything happens in the call.
    """

    def __init__(
        self, spec: ModelSpec, device: torch.device, native: Any, staging_bytes: int = STAGING_BYTES
    ) -> None:
        self._spec, self._device, self._native = spec, device, native
        self._stream = None
        if device.type == "cuda":
            # before the encoder's: a full grid there would hold up each of the small kernels here
            self._stream = torch.cuda.Stream(device, priority=-1)
        self._uploads = Uploads(device, self._stream, staging_bytes)

    def pack(
        self,
        observations: Observations,
        *,
        row0: int = 0,
        seed: int = 0,
        binary_masks: bool = False,
    ) -> tuple[PackedTokens, PackedTokens, Tensor]:
        """As `packing.pack`: Sentinel-2, Sentinel-1, and observed dates (P, 3) uint16.

        doy and multiplicity are int16, offsets int32. Read the tensors on `on_stream`, or after
        `hand_over`.
        """
        described = described_on_host(observations)
        orbits = radar_series(described, self._spec, seed)
        _check(described, orbits)
        window = (observations.shape, row0, seed, binary_masks)
        with self.on_stream():
            optical, radar = self._series(observations, described, orbits)
            return self._pack(observations, optical, radar, *window)

    def await_inputs(self) -> None:
        """Tensors that the current stream still writes are packed after it has: once a window."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def hand_over(self, packed: tuple[PackedTokens, PackedTokens, Tensor]) -> None:
        """Make the current stream wait, and tell the allocator that it reads the tensors: their
        memory is not given away before what is enqueued there has run."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in (packed[2], *vars(packed[0]).values(), *vars(packed[1]).values()):
            if isinstance(tensor, Tensor):
                tensor.record_stream(current)

    def on_stream(self) -> AbstractContextManager[Any]:
        """A context in which the packer's stream is torch's current one."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _handle(self) -> int:
        return 0 if self._stream is None else self._stream.cuda_stream

    def _series(
        self,
        observations: Observations,
        described: Observations,
        orbits: list[tuple[np.ndarray, np.ndarray, int]],
    ) -> tuple[_Series, list[_Series]]:
        """Every list of dates on the device: uploaded, or where its tensors are."""
        s2 = described.s2_bands
        if not isinstance(observations.s2_bands, Tensor):
            days = days_of(observations.s2_doys, s2)
            optical = self._upload(s2, observations.s2_masks, days, 0, 0)
            return optical, [self._upload(b, None, d, 1 + i, i) for b, d, i in orbits]
        given = {o.index: o for o in observations.orbits if len(o.bands)}
        masks = observations.s2_masks
        optical = _in_place(observations.s2_bands, masks, observations.s2_doys, 0, 0)
        radar = []
        for bands, days, i in orbits:
            if i in given:
                there: Any = given[i].bands
                there = there.to(ELEMENTS[bands.dtype])
                radar.append(_in_place(there, None, given[i].doys, 1 + i, i))
            else:  # the dummy of v1.0-qat
                radar.append(self._upload(bands, None, days, 1 + i, i))
        return optical, radar

    def _pack(
        self,
        observations: Observations,
        optical: _Series,
        radar: list[_Series],
        shape: tuple[int, int],
        row0: int,
        seed: int,
        binary_masks: bool,
    ) -> tuple[PackedTokens, PackedTokens, Tensor]:
        pixels = prod(shape)
        radar_dtype = radar[0].bands.dtype if radar else torch.int16
        if not radar and optical.bands.dtype == torch.float32:
            radar_dtype = torch.float32  # as packing.pack names it where there is no orbit
        counts = self._zeros(pixels, 3, dtype=torch.int16)  # zeroing uint16 is not everywhere
        errors = torch.full((3,), _NO_ERROR, dtype=torch.int64, device=self._device)
        skip = None
        if self._spec.sampling == "v1.0":
            skip = self._empty(pixels, dtype=torch.uint8)
        window = {
            "pixels": pixels,
            "columns": shape[1],
            "row0": row0,
            "sampling": self._spec.sampling,
            "seed": seed,
            "binary_masks": binary_masks,
            "counts": counts.data_ptr(),
            "skip": 0 if skip is None else skip.data_ptr(),
            "errors": errors.data_ptr(),
        }
        streams = [
            self._count(0, [optical], optical.bands.dtype, len(S2_BANDS), window),
            self._count(1, radar, radar_dtype, len(S1_BANDS), window),
        ]
        ends = [o[-1:] for s in streams for o in (s.offsets, s.step_offsets)]
        # The one wait for the device: how many tokens and steps there are, and was a mask odd.
        *sizes, odd_mask = torch.cat([*ends, errors[:1]]).tolist()
        if odd_mask != _NO_ERROR:
            raise InputError(_odd_mask(odd_mask, observations.s2_bands.shape, row0))
        packed = [
            self._fill(stream, sizes[2 * i], sizes[2 * i + 1], observations.standardized)
            for i, stream in enumerate(streams)
        ]
        if any(s.dtype == torch.float32 for s in streams):
            for stream, found in zip(streams, errors[1:].tolist(), strict=True):
                if found != _NO_ERROR:
                    raise InputError(_not_finite(found, stream, shape[1], row0))
        return packed[0], packed[1], counts.view(torch.uint16)

    def _upload(
        self, bands: np.ndarray, mask: np.ndarray | None, days: np.ndarray, column: int, orbit: int
    ) -> _Series:
        up = self._uploads.upload
        shared = days.strides[1:] == (0, 0)
        return _Series(
            up(bands).flatten(1, 2),
            None if mask is None else up(mask).flatten(1),
            up(days[:, :1, :1]).flatten() if shared else up(days).flatten(1),
            column,
            orbit,
        )

    def _count(
        self,
        number: int,
        series: list[_Series],
        dtype: torch.dtype,
        channels: int,
        window: dict[str, Any],
    ) -> _Stream:
        """The first pass, and from its counts the offsets."""
        pixels = window["pixels"]
        bits = self._empty(sum(-(-len(s.bands) // 32) for s in series), pixels, dtype=torch.int32)
        offsets = [self._zeros(pixels + 1, dtype=torch.int32) for _ in range(2)]
        if not pixels:
            return _Stream(number, series, dtype, channels, None, bits, *offsets)
        arguments = self._native.PackInput(
            series=[s.arguments() for s in series],
            stream=number,
            is_float=dtype == torch.float32,
            bits=bits.data_ptr(),
            **window,
        )
        if number == 0 and window["skip"]:
            self._native.mark_all_zero(arguments, self._handle())
        tokens, steps = (self._empty(pixels, dtype=torch.int32) for _ in range(2))
        self._native.count_tokens(arguments, tokens.data_ptr(), steps.data_ptr(), self._handle())
        for counts, out in zip((tokens, steps), offsets, strict=True):
            # one row at a time: of several, torch scans each with a single block
            torch.cumsum(counts, 0, dtype=torch.int32, out=out[1:])
        return _Stream(number, series, dtype, channels, arguments, bits, *offsets)

    def _fill(self, stream: _Stream, tokens: int, steps: int, standardized: bool) -> PackedTokens:
        """The second pass, into arrays of the sizes that the first one found."""
        with_steps = self._spec.needs_steps
        packed = PackedTokens(
            self._empty(tokens, stream.channels, dtype=stream.dtype),
            self._empty(tokens, dtype=torch.int16),
            self._empty(tokens, dtype=torch.uint8),
            self._empty(tokens, dtype=torch.int16),
            stream.offsets,
            self._empty(steps, dtype=torch.int32) if with_steps else None,
            stream.step_offsets if with_steps else None,
            standardized,
        )
        if tokens:
            arrays: list[Any] = [
                packed.bands,
                packed.doy,
                packed.orbit,
                packed.multiplicity,
                packed.offsets,
                packed.steps,
                packed.step_offsets,
            ]
            pointers = [0 if a is None else a.data_ptr() for a in arrays]
            self._native.fill_tokens(stream.input, *pointers, self._handle())
        return packed

    def _empty(self, *shape: int, dtype: torch.dtype) -> Any:  # PackedTokens says ndarray
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Any:
        return torch.zeros(shape, dtype=dtype, device=self._device)


def _in_place(bands: Any, mask: Any, days: Any, column: int, orbit: int) -> _Series:
    """Tensors (T, H, W, C), (T, H, W) and (T,) or (T, H, W): views where they are contiguous."""
    flat = (bands.shape[0], -1)
    return _Series(
        bands.reshape(*flat, bands.shape[-1]).contiguous(),
        None if mask is None else mask.reshape(flat).contiguous(),
        (days if days.dim() == 1 else days.reshape(flat)).contiguous(),
        column,
        orbit,
    )


def described_on_host(observations: Observations) -> Observations:
    """The same shapes and dtypes in numpy, without the values where those are on the device."""

    def described(array: Any) -> Any:
        if not isinstance(array, Tensor):
            return array
        dtype = str(array.dtype).removeprefix("torch.")
        return np.broadcast_to(np.zeros((), dtype), tuple(array.shape))

    orbits = tuple(
        replace(o, bands=described(o.bands), doys=described(o.doys)) for o in observations.orbits
    )
    return replace(
        observations,
        s2_bands=described(observations.s2_bands),
        s2_masks=described(observations.s2_masks),
        s2_doys=described(observations.s2_doys),
        orbits=orbits,
    )


# ---- checks and messages, those of csrc/bindings/pack_module.cc and csrc/pack


def _check(observations: Observations, orbits: list[tuple[np.ndarray, np.ndarray, int]]) -> None:
    bands, masks = observations.s2_bands, observations.s2_masks
    for array, wanted in ((bands, S2_BANDS), *((o[0], S1_BANDS) for o in orbits)):
        if array.dtype not in ELEMENTS:
            got = f"{array.shape} {array.dtype}"
            raise InputError(f"bands: expected uint16, int16 or float32, got {got}")
        if array.ndim != 4 or array.shape[3] != len(wanted):
            raise InputError(
                f"bands: expected (T, H, W, {len(wanted)}) for {', '.join(wanted)}, "
                f"got {array.shape}"
            )
    if any(o[0].shape[1:3] != bands.shape[1:3] for o in orbits):
        raise InputError("Sentinel-1: the window differs from Sentinel-2's")
    if masks is not None:
        if masks.dtype != np.uint8 or masks.ndim != 3:
            raise InputError("masks: expected (T, H, W) uint8")
        if masks.shape != bands.shape[:3]:
            raise InputError("masks: shape differs from bands")
    limit = (2**31 - 1) // MAX_SEQUENCE  # offsets of tokens and steps are int32
    if prod(observations.shape) > limit:
        raise InputError(
            f"window: expected at most {limit:,} pixels, got {prod(observations.shape):,}; "
            "pack fewer rows at a time"
        )


def _odd_mask(found: int, shape: tuple[int, ...], row0: int) -> str:
    place, value = divmod(found, 256)
    place, column = divmod(place, shape[2])
    row, date = divmod(place, shape[0])
    return (
        f"masks: expected only 0 (cloud) and 1 (clear), got {value} at "
        f"date {date}, row {row0 + row}, column {column}; turn classes into a mask first"
    )


def _not_finite(found: int, stream: _Stream, columns: int, row0: int) -> str:
    place, band = divmod(found, 16)
    pixel, date = divmod(place, 65536)
    for series in stream.series:  # the date of the stream as one of its series
        if date < len(series.bands):
            break
        date -= len(series.bands)
    row, column = divmod(pixel, columns)
    name, advice = (
        ("Sentinel-1", "write 0 where nothing was observed")
        if stream.number
        else ("Sentinel-2", "set the mask to 0 there")
    )
    return (
        f"{name} bands: expected finite values where a date is observed, got NaN or infinity at "
        f"date {date}, row {row0 + row}, column {column}, band {band}; {advice}"
    )
