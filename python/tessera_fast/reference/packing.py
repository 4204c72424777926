"""The naive statement of every generation's packing rule, in numpy, one pixel at a time.

The C++ packer produces the same arrays bit for bit. B is the padded length: n dates rounded up
to a multiple of 8, at most 256.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..packing import Observations, Orbit, PackedTokens
from ..spec import MAX_SEQUENCE, S1_BANDS, S2_BANDS, ModelSpec

SAMPLE_SIZE = 40  # dates that v1.0 draws per stream
DUMMY_DOY = 180  # day of the (0, 0) row that replaces an orbit without dates
S2_STREAM, S1_STREAM = 0, 1  # last part of the key of the random words
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment, 2^64 / golden ratio, odd
_MASK = (1 << 64) - 1


def padded_length(n: int) -> int:
    """n rounded up to a multiple of 8, at most 256."""
    return min(-(-n // 8) * 8, MAX_SEQUENCE)


def sequence(n: int, sampling: str) -> np.ndarray:
    """The padded sequence of ``n`` valid dates as indices 0..n-1: int64 (B,).

    sampling "v2": fillers are the middle of each of B - n near-equal chunks, or 0, 1, .. mod n
    where there are more fillers than dates; n > 256 is cut by a truncated linspace.
    sampling "v1.1": fillers are evenly spaced, rounded half to even; n > 256 is cut to the middle
    of each of 256 near-equal chunks. Fillers follow the n dates.
    """
    dates = np.arange(n)
    length = padded_length(n)
    fillers = length - n
    if sampling == "v2":
        if fillers < 0:
            return np.linspace(0, n - 1, length, dtype=np.int64)
        if fillers > n:
            return np.concatenate([dates, np.arange(fillers) % n])
        return np.concatenate([dates, _chunk_middles(dates, fillers)])
    if sampling == "v1.1":
        if fillers < 0:
            return _chunk_middles(dates, length)
        spaced = np.linspace(0, n - 1, fillers + 2)[1:-1] if n else np.zeros(0)
        return np.concatenate([dates, np.rint(spaced).astype(np.int64)])
    raise InputError(f"sampling: expected 'v2' or 'v1.1', got {sampling!r}")


def _chunk_middles(dates: np.ndarray, chunks: int) -> np.ndarray:
    if chunks == 0:
        return dates[:0]
    return np.array([c[len(c) // 2] for c in np.array_split(dates, chunks)])


def mix(z: int) -> int:
    """One output of SplitMix64 for the state ``z``, modulo 2^64."""
    z = (z + _GOLDEN_GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def random_words(seed: int, row: int, column: int, stream: int) -> Iterator[int]:
    """The endless 64-bit words of one pixel and stream: a function of these four alone.

    state = mix(mix(mix(mix(seed) ^ row) ^ column) ^ stream); word k = mix(state + k * gamma).
    """
    state = mix(mix(mix(mix(seed & _MASK) ^ row) ^ column) ^ stream)
    while True:
        yield mix(state)
        state = (state + _GOLDEN_GAMMA) & _MASK


def bounded(word: int, bound: int) -> int:
    """A word as an integer in 0..bound-1: the high half of the 128-bit product.

    Some values are likelier than others by at most bound / 2^64, below any number of pixels.
    """
    return (word * bound) >> 64


def draw(
    n: int, seed: int, row: int, column: int, stream: int, size: int = SAMPLE_SIZE
) -> np.ndarray:
    """v1.0: ``size`` of ``n`` dates at random, sorted: int64 (size,).

    Without replacement where n >= size, by Floyd's algorithm (for j = n-size .. n-1 take
    t = bounded(next word, j + 1), or j if t is taken already); else with replacement.
    """
    words = random_words(seed, row, column, stream)
    if n < size:
        return np.array(sorted(bounded(next(words), n) for _ in range(size)))
    chosen: set[int] = set()
    for j in range(n - size, n):
        t = bounded(next(words), j + 1)
        chosen.add(j if t in chosen else t)
    return np.array(sorted(chosen))


class _Series(NamedTuple):
    """All dates of one stream at one pixel, valid or not, in the order of the list."""

    bands: np.ndarray  # (T, C)
    doy: np.ndarray  # (T,)
    orbit: np.ndarray  # (T,)
    valid: np.ndarray  # (T,) bool


class _Kept(NamedTuple):
    """The distinct dates of a padded sequence, and the sequence as indices into them."""

    dates: np.ndarray
    multiplicity: np.ndarray
    steps: np.ndarray


def pack(
    observations: Observations, spec: ModelSpec, seed: int = 0, row0: int = 0
) -> tuple[PackedTokens, PackedTokens]:
    """Pack a window, pixels in row-major order: the Sentinel-2 and the Sentinel-1 tokens.

    A pixel keeps the distinct dates of its padded sequence in order of the list (Sentinel-1:
    ascending, then descending). ``row0`` is the window's first row in its tile; it matters only
    to v1.0's random draw. Raises InputError where v1.0 has no Sentinel-1 date and no dummy orbit.
    """
    random = spec.sampling == "v1.0"
    orbits = _orbits(observations, spec.dummy_orbit)
    if random and not orbits:
        raise InputError(
            f"model {spec.name}: expected Sentinel-1 dates of at least one orbit, got none; "
            "give Sentinel-1 data or use another model"
        )
    height, width = observations.shape
    s2_pixels: list[tuple[_Series, _Kept]] = []
    s1_pixels: list[tuple[_Series, _Kept]] = []
    for row in range(height):
        for column in range(width):
            s2 = _s2_series(observations, row, column)
            s1 = _s1_series(orbits, observations, row, column)
            skip = random and not s2.bands.any()
            for series, stream, packed in ((s2, S2_STREAM, s2_pixels), (s1, S1_STREAM, s1_pixels)):
                dates = np.flatnonzero(series.valid)
                if skip:
                    chosen = dates[:0]
                elif random:
                    if len(dates) == 0:
                        dates = np.arange(len(series.valid))
                    chosen = dates[draw(len(dates), seed, row0 + row, column, stream)]
                else:
                    chosen = dates[sequence(len(dates), spec.sampling)]
                packed.append((series, _distinct(chosen)))
    standardized = observations.standardized
    return (
        _join(s2_pixels, len(S2_BANDS), spec.needs_steps, standardized),
        _join(s1_pixels, len(S1_BANDS), spec.needs_steps, standardized),
    )


def _distinct(chosen: np.ndarray) -> _Kept:
    dates, steps, multiplicity = np.unique(chosen, return_inverse=True, return_counts=True)
    return _Kept(dates, multiplicity, steps)


def _orbits(observations: Observations, dummy_orbit: bool) -> list[Orbit]:
    """The orbits that have dates; with ``dummy_orbit`` a (0, 0) row for each that has none."""
    found = {orbit.index: orbit for orbit in observations.orbits if len(orbit.bands)}
    if dummy_orbit:
        dtype = next((o.bands.dtype for o in found.values()), _no_orbit_dtype(observations))
        for index in (0, 1):
            row = np.zeros((1, *observations.shape, len(S1_BANDS)), dtype)
            found.setdefault(index, Orbit(index, row, np.array([DUMMY_DOY], np.int32)))
    return [found[index] for index in sorted(found)]


def _no_orbit_dtype(observations: Observations) -> np.dtype:
    """float32 beside float32 Sentinel-2, which may be standardised; int16, as on disk, else."""
    float_input = observations.s2_bands.dtype == np.float32
    return np.dtype(np.float32 if float_input else np.int16)


def _days(doys: np.ndarray, row: int, column: int) -> np.ndarray:
    return doys if doys.ndim == 1 else doys[:, row, column]


def _s2_series(observations: Observations, row: int, column: int) -> _Series:
    bands = observations.s2_bands[:, row, column]
    doy = _days(observations.s2_doys, row, column)
    if observations.s2_masks is None:
        valid = np.ones(len(bands), bool)
    else:
        valid = observations.s2_masks[:, row, column] != 0
    return _Series(bands, doy, np.zeros(len(bands), np.uint8), valid)


def _s1_series(orbits: list[Orbit], observations: Observations, row: int, column: int) -> _Series:
    if not orbits:
        none = np.zeros(0, np.int64)
        bands = np.zeros((0, len(S1_BANDS)), _no_orbit_dtype(observations))
        return _Series(bands, none, none, none.astype(bool))
    bands = np.concatenate([o.bands[:, row, column] for o in orbits])
    doy = np.concatenate([_days(o.doys, row, column) for o in orbits])
    orbit = np.concatenate([np.full(len(o.bands), o.index) for o in orbits])
    return _Series(bands, doy, orbit, (bands != 0).any(axis=-1))


def _join(
    pixels: list[tuple[_Series, _Kept]], channels: int, needs_steps: bool, standardized: bool
) -> PackedTokens:
    def offsets(lengths: list[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

    dtype = pixels[0][0].bands.dtype if pixels else np.dtype(np.float32)
    return PackedTokens(
        bands=np.concatenate(
            [np.zeros((0, channels), dtype), *(s.bands[k.dates] for s, k in pixels)]
        ),
        doy=join([s.doy[k.dates] for s, k in pixels], np.uint16),
        orbit=join([s.orbit[k.dates] for s, k in pixels], np.uint8),
        multiplicity=join([k.multiplicity for _, k in pixels], np.uint16),
        offsets=offsets([len(k.dates) for _, k in pixels]),
        steps=join([k.steps for _, k in pixels], np.int32) if needs_steps else None,
        step_offsets=offsets([len(k.steps) for _, k in pixels]) if needs_steps else None,
        standardized=standardized,
    )
