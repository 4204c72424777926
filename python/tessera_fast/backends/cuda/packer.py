"""Raw series of a window to packed tokens on the device: kernels/cuda/pack.cu and its arguments.

What `packing.pack` does, array by array and error by error, with tensors for arrays. P pixels,
T dates, C bands, N tokens, S steps.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...packing import Observations, PackedTokens, days_of, radar_series
from ...spec import MAX_SEQUENCE, S1_BANDS, S2_BANDS, ModelSpec

STAGING_BYTES = 32 << 20  # of each of two buffers: 0.6 ms of a 55 GB/s link, 100 times a launch
_NO_ERROR = 2**63 - 1
_ELEMENTS = {
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.float32): torch.float32,
}
_TYPES = {**_ELEMENTS, np.dtype(np.uint8): torch.uint8, np.dtype(np.int32): torch.int32}


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
            self.bands.data_ptr(), mask, self.days.data_ptr(), self.days.dim() > 1,
            len(self.bands), self.column, self.orbit,
        )  # fmt: skip


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
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._uploads = _Uploads(device, self._stream, staging_bytes)

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
        orbits = radar_series(observations, self._spec, seed)
        _check(observations, orbits)
        window = (observations.shape, row0, seed, binary_masks)
        with self.on_stream():
            return self._pack(observations, orbits, *window)

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

    def _pack(
        self,
        observations: Observations,
        orbits: list[tuple[np.ndarray, np.ndarray, int]],
        shape: tuple[int, int],
        row0: int,
        seed: int,
        binary_masks: bool,
    ) -> tuple[PackedTokens, PackedTokens, Tensor]:
        pixels = prod(shape)
        optical = self._upload(
            observations.s2_bands, observations.s2_masks,
            days_of(observations.s2_doys, observations.s2_bands), 0, 0,
        )  # fmt: skip
        radar = [self._upload(bands, None, days, 1 + i, i) for bands, days, i in orbits]
        radar_dtype = radar[0].bands.dtype if radar else torch.int16
        if not radar and optical.bands.dtype == torch.float32:
            radar_dtype = torch.float32  # as packing.pack names it where there is no orbit
        counts = self._zeros(pixels, 3, dtype=torch.int16)  # zeroing uint16 is not everywhere
        errors = torch.full((3,), _NO_ERROR, dtype=torch.int64, device=self._device)
        skip = None
        if self._spec.sampling == "v1.0":
            skip = self._empty(pixels, dtype=torch.uint8)
        window = {
            "pixels": pixels, "columns": shape[1], "row0": row0, "sampling": self._spec.sampling,
            "seed": seed, "binary_masks": binary_masks, "counts": counts.data_ptr(),
            "skip": 0 if skip is None else skip.data_ptr(), "errors": errors.data_ptr(),
        }  # fmt: skip
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
            series=[s.arguments() for s in series], stream=number,
            is_float=dtype == torch.float32, bits=bits.data_ptr(), **window,
        )  # fmt: skip
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
                packed.bands, packed.doy, packed.orbit, packed.multiplicity, packed.offsets,
                packed.steps, packed.step_offsets,
            ]  # fmt: skip
            pointers = [0 if a is None else a.data_ptr() for a in arrays]
            self._native.fill_tokens(stream.input, *pointers, self._handle())
        return packed

    def _empty(self, *shape: int, dtype: torch.dtype) -> Any:  # PackedTokens says ndarray
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _zeros(self, *shape: int, dtype: torch.dtype) -> Any:
        return torch.zeros(shape, dtype=dtype, device=self._device)


class _Uploads:
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


# ---- checks and messages, those of csrc/bindings/pack_module.cc and csrc/pack


def _check(observations: Observations, orbits: list[tuple[np.ndarray, np.ndarray, int]]) -> None:
    bands, masks = observations.s2_bands, observations.s2_masks
    for array, wanted in ((bands, S2_BANDS), *((o[0], S1_BANDS) for o in orbits)):
        if array.dtype not in _ELEMENTS:
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
