"""Raw series to packed tokens: which dates a model reads, how often, and in which order.

The rules of every generation live in csrc/pack; this file prepares their arguments. N tokens of
all pixels, P pixels, C bands, S steps.
"""

from dataclasses import dataclass, replace

import numpy as np

from . import env
from .errors import InputError
from .spec import ModelSpec

MAX_DATES = 65_535  # of one stream
DUMMY_DOY = 180


@dataclass(frozen=True)
class Orbit:
    """One Sentinel-1 orbit of a window. ``index`` 0 ascending, 1 descending: its statistics row."""

    index: int
    bands: np.ndarray  # (T, H, W, 2), C-contiguous in the last two axes at least
    doys: np.ndarray  # (T,) or (T, H, W) int32


@dataclass(frozen=True)
class Observations:
    """The raw series of a window of H x W pixels; arrays in memory are views, a file's are read.

    A list of P pixels is a window of P x 1.
    """

    s2_bands: np.ndarray  # (T, H, W, 10) uint16, int16 or float32
    s2_masks: np.ndarray | None  # (T, H, W) uint8, not 0 = clear; None = all clear
    s2_doys: np.ndarray  # (T,) or (T, H, W) int32
    orbits: tuple[Orbit, ...]  # ascending before descending; an absent orbit is left out
    standardized: bool = False  # float32 bands that are already (x - mean) / std

    @property
    def shape(self) -> tuple[int, int]:
        return self.s2_bands.shape[1], self.s2_bands.shape[2]

    def rows(self, start: int, stop: int) -> "Observations":
        """Rows ``start`` to ``stop`` (exclusive) of the window, as views."""
        return self.window(slice(start, stop), slice(None))

    def window(self, rows: slice, columns: slice) -> "Observations":
        """Some rows and columns of the window, as views."""

        def cut(array: np.ndarray) -> np.ndarray:
            return array[:, rows, columns]

        def days(doys: np.ndarray) -> np.ndarray:
            return doys if doys.ndim == 1 else cut(doys)

        return replace(
            self,
            s2_bands=cut(self.s2_bands),
            s2_masks=None if self.s2_masks is None else cut(self.s2_masks),
            s2_doys=days(self.s2_doys),
            orbits=tuple(replace(o, bands=cut(o.bands), doys=days(o.doys)) for o in self.orbits),
        )


@dataclass(frozen=True)
class PackedTokens:
    """One stream of P pixels, ragged and without padding. Pixel p owns tokens offsets[p:p + 2].

    The cuda back end also takes, and its own packer makes, torch tensors in place of the arrays.
    """

    bands: np.ndarray  # [N, C] raw uint16, int16 or float32
    doy: np.ndarray  # [N] uint16, 1..366
    orbit: np.ndarray  # [N] uint8, row of the statistics (0 for Sentinel-2)
    multiplicity: np.ndarray  # [N] uint16 >= 1, how often the padded sequence holds this date
    offsets: np.ndarray  # [P + 1] int64
    steps: np.ndarray | None = None  # [S] int32, the padded sequence as indices into p's tokens
    step_offsets: np.ndarray | None = None  # [P + 1] int64; both None where no GRU reads them
    standardized: bool = False

    @property
    def pixels(self) -> int:
        return len(self.offsets) - 1


def pack(
    observations: Observations,
    spec: ModelSpec,
    *,
    row0: int = 0,
    seed: int = 0,
    binary_masks: bool = False,
    threads: int | None = None,
) -> tuple[PackedTokens, PackedTokens, np.ndarray]:
    """Pack a window by the rule of ``spec.sampling``: Sentinel-2, Sentinel-1, observed dates.

    The third result is (P, 3) uint16: the observed dates of Sentinel-2, ascending and descending
    Sentinel-1, before any cut. ``row0`` is the window's first row in its tile and ``seed`` the seed
    of v1.0's random draws, which depend on (seed, row, column) alone. ``binary_masks`` refuses mask
    values beyond 0 and 1. Raises InputError for such masks, for values that are not finite, for
    days beyond 1..366 and more than 65,535 dates in a stream, where v1.0 has no Sentinel-1 date to
    draw from, and for arrays that another thread changed during the call, where it is noticed.
    """
    from . import _cpu

    orbits = radar_series(observations, spec, seed)
    s2, masks = _aligned(observations.s2_bands), observations.s2_masks
    s2_parts = (s2, masks, _aligned(days_of(observations.s2_doys, s2)))
    orbits = [(_aligned(bands), _aligned(days), index) for bands, days, index in orbits]
    optical, radar, observed = _cpu.pack(
        s2_parts,
        orbits,
        spec.sampling,
        spec.needs_steps,
        binary_masks,
        row0,
        seed,
        env.threads(threads),
    )
    counts = np.zeros((len(observed), 3), np.uint16)
    counts[:, 0] = observed[:, 0]
    for column, (_, _, index) in enumerate(orbits, start=1):
        counts[:, 1 + index] = observed[:, column]  # a dummy's zeros are not observed
    flag = observations.standardized
    return (
        PackedTokens(*optical, standardized=flag),
        PackedTokens(*radar, standardized=flag),
        counts,
    )


def radar_series(
    observations: Observations, spec: ModelSpec, seed: int
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """(bands, days (T, H, W), index) of the orbits that are read, ascending before descending.

    The bands have one dtype. Raises what `pack` raises for shapes and arguments alone.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: expected 0..2^64 - 1, got {seed}")
    seen = [o for o in observations.orbits if len(o.bands)]
    dtype = _radar_dtype(observations, seen)
    orbits = [(o.bands.astype(dtype, copy=False), days_of(o.doys, o.bands), o.index) for o in seen]
    _check_dates("Sentinel-2", observations.s2_bands.shape[0])
    _check_dates("Sentinel-1", sum(len(bands) for bands, _, _ in orbits))
    if spec.sampling == "v1.0" and not orbits and not spec.dummy_orbit:
        raise InputError(
            f"model {spec.name} draws from a pixel's Sentinel-1 dates and there are none: give at "
            "least one orbit, or use v1.0-qat or a later model"
        )
    if spec.dummy_orbit:
        absent = {0, 1} - {o.index for o in seen}
        orbits += [_dummy_orbit(i, observations.shape, dtype) for i in absent]
        orbits.sort(key=lambda orbit: orbit[2])
    return orbits


def days_of(doys: np.ndarray, bands: np.ndarray) -> np.ndarray:
    """(T,) or (T, H, W) days as a (T, H, W) int32 view."""
    days = np.asarray(doys, np.int32)
    if days.ndim == 1:
        days = days[:, None, None]
    return np.broadcast_to(days, bands.shape[:3])


def _aligned(array: np.ndarray) -> np.ndarray:
    """The native packer reads aligned elements; a view of packed records may not be."""
    return array if array.flags.aligned else array.copy()


def _check_dates(what: str, dates: int) -> None:
    if dates > MAX_DATES:
        raise InputError(f"{what}: expected at most {MAX_DATES:,} dates, got {dates:,}")


def _radar_dtype(observations: Observations, orbits: list[Orbit]) -> np.dtype:
    """One dtype for both orbits: theirs if they agree, else float32; without an orbit the one that
    goes with Sentinel-2's."""
    dtypes = {o.bands.dtype for o in orbits}
    if len(dtypes) == 1:
        return dtypes.pop()
    floats = bool(dtypes) or observations.s2_bands.dtype == np.float32
    return np.dtype(np.float32 if floats else np.int16)


def _dummy_orbit(
    index: int, window: tuple[int, int], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, int]:
    """What v1.0-qat reads for an orbit without dates: one (0, 0) row of day 180."""
    zeros = np.broadcast_to(np.zeros(2, dtype), (1, *window, 2))
    return zeros, np.broadcast_to(np.int32(DUMMY_DOY), (1, *window)), index
