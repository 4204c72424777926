"""Packed tokens as the inputs of the exported encoders: side by side with empty slots, or in bins.

P pixels, T slots, C bands. A pixel without tokens is a row of zeros, which the encoders take as a
stream without observations.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import InputError
from ..packing import PackedTokens
from ..spec import S1_BANDS, ModelSpec

Feeds = dict[str, np.ndarray]


def slots(tokens: PackedTokens, first: int, last: int) -> Feeds:
    """Pixels ``first`` to ``last`` (exclusive) for an encoder of the packed layout.

    Tokens stand in their order, then unused slots up to the longest of these pixels; those of v1.x
    stand once for every step, since its recurrence reads fillers too.
    """
    if tokens.standardized or not np.issubdtype(tokens.bands.dtype, np.integer):
        raise InputError(
            f"packed layout: expected raw integers, got {tokens.bands.dtype}"
            f"{' in standardised units' if tokens.standardized else ''}; use the dense layout"
        )
    index, offsets = _sequence(tokens, first, last, repeated=tokens.steps is not None)
    lengths = np.diff(offsets)
    used = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]  # (P, T)

    def spread(values: np.ndarray, dtype: type) -> np.ndarray:
        out = np.zeros((*used.shape, *values.shape[1:]), dtype)
        out[used] = values
        return out

    radar = tokens.bands.shape[1] == len(S1_BANDS)
    multiplicity = tokens.multiplicity[index] if tokens.steps is None else np.ones(len(index))
    feeds = {
        "bands": spread(tokens.bands[index], np.int16 if radar else np.uint16),
        "doy": spread(tokens.doy[index], np.uint16),
        "multiplicity": spread(multiplicity, np.uint16),
    }
    return {**feeds, "orbit": spread(tokens.orbit[index], np.uint8)} if radar else feeds


def bins(
    spec: ModelSpec,
    tokens: PackedTokens,
    most: Callable[[int], int],
    first: int = 0,
    last: int | None = None,
) -> Iterator[tuple[np.ndarray, Feeds]]:
    """(pixels, inputs of the dense layout) of pixels ``first`` to ``last`` (exclusive), grouped by
    the length T of the model's own padded sequence, at most ``most(T)`` pixels a group.

    Pixels without tokens are left out.
    """
    last = tokens.pixels if last is None else last
    index, offsets = _sequence(tokens, first, last, repeated=True)
    lengths = np.diff(offsets)
    for length in np.unique(lengths[lengths > 0]):
        members = np.flatnonzero(lengths == length)
        size = most(int(length))
        for start in range(0, len(members), size):
            pixels = members[start : start + size]
            steps = index[offsets[pixels][:, None] + np.arange(length)]
            yield first + pixels, _dense(spec, tokens, steps)


def _dense(spec: ModelSpec, tokens: PackedTokens, index: np.ndarray) -> Feeds:
    """The tokens ``index`` (P, T) as inputs of the dense layout."""
    bands = tokens.bands[index].astype(np.float32)
    orbit = tokens.orbit[index].astype(np.int32)
    if tokens.standardized:  # back to raw units, which the graph standardises: 2e-7 off
        bands = _raw(spec, bands, orbit)
    feeds = {"bands": bands, "doy": tokens.doy[index].astype(np.int32)}
    return {**feeds, "orbit": orbit} if bands.shape[-1] == len(S1_BANDS) else feeds


def _raw(spec: ModelSpec, values: np.ndarray, orbit: np.ndarray) -> np.ndarray:
    """The inverse of standardisation, in float64 and rounded once."""
    s = spec.statistics
    radar = values.shape[-1] == len(S1_BANDS)
    mean, std = (s.s1_mean, s.s1_std) if radar else ([s.s2_mean] * 2, [s.s2_std] * 2)
    spread = np.asarray(std, np.float32) + np.float32(1e-9)
    raw = values.astype(np.float64) * spread[orbit] + np.asarray(mean, np.float32)[orbit]
    return raw.astype(np.float32)


def _sequence(
    tokens: PackedTokens, first: int, last: int, repeated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(indices into all tokens, offsets (P + 1)) of pixels ``first`` to ``last``: every token
    once, or ``repeated`` as in the padded sequence."""
    begin, end = tokens.offsets[first], tokens.offsets[last]
    if not repeated:
        return np.arange(begin, end), tokens.offsets[first : last + 1] - begin
    if tokens.steps is None or tokens.step_offsets is None:
        counts = tokens.multiplicity[begin:end].astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(counts)])
        return np.repeat(np.arange(begin, end), counts), ends[
            tokens.offsets[first : last + 1] - begin
        ]
    offsets = tokens.step_offsets[first : last + 1]
    owner = np.repeat(tokens.offsets[first:last], np.diff(offsets))
    return owner + tokens.steps[offsets[0] : offsets[-1]], offsets - offsets[0]
