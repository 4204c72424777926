"""What embeddings on disk look like: rules of values, pixel by pixel.

h, w are the rows and columns of a window, E the embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# The largest floor of a scale (v1.x): at a floor the embedding is 0, and no code is 127.
_FLOOR = np.float32(1e-8)

Fault = tuple[np.ndarray, str]  # (h, w) bool, and what is wrong there


def quantized_faults(codes: np.ndarray, scales: np.ndarray, *, ours: bool) -> Iterator[Fault]:
    """Of (h, w, E) int8 and (h, w) float32. ``ours``: how the scale was chosen is known."""
    finite = np.isfinite(scales)
    yield (
        np.isneginf(scales) | (finite & (scales <= 0)),
        "a scale is neither positive nor +inf (no data) nor NaN (water)",
    )
    yield np.isposinf(scales) & (codes != 0).any(axis=-1), "codes are not 0 where scale is +inf"
    yield finite & (codes == -128).any(axis=-1), "a code is -128, and codes are -127..127"
    if ours:
        largest = np.abs(codes.astype(np.int16)).max(axis=-1)
        yield (
            finite & (scales > _FLOOR) & (largest < 127),
            "no code is 127 or -127, and the scale is that of the largest value",
        )


def float_faults(values: np.ndarray) -> Iterator[Fault]:
    """Of (h, w, E) float32."""
    missing = np.isnan(values)
    yield missing.any(axis=-1) & ~missing.all(axis=-1), "only a part of a pixel's values is NaN"
    yield np.isinf(values).any(axis=-1), "a value is infinite"


def count_faults(counts: np.ndarray, scales: np.ndarray) -> Iterator[Fault]:
    """Of (h, w, 3) uint16 and (h, w): a pixel without data is not counted either."""
    observed = counts.any(axis=-1)
    yield np.isfinite(scales) & ~observed, "a pixel with data has no observation"
    yield np.isposinf(scales) & observed, "a pixel without data has observations"
