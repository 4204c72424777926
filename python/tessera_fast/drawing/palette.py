"""Colours of classes and of values."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]
# Told apart also by eyes that lack red, green or blue cones: of all pairs, seen in any of these
# ways, the nearest are 23 apart in CIE Lab, and of the first five 30. Chosen by a search; the order
# keeps the first ones furthest apart.
COLOURS: tuple[Colour, ...] = (
    (224, 192, 48),
    (32, 96, 144),
    (144, 16, 16),
    (64, 208, 144),
    (176, 160, 240),
    (128, 48, 64),
    (16, 128, 240),
    (192, 144, 176),
    (176, 128, 16),
    (208, 96, 80),
    (80, 48, 160),
    (144, 224, 112),
)
# Dark blue to yellow: more is brighter.
_RAMP = np.array(
    [(48, 18, 92), (60, 72, 140), (40, 120, 142), (34, 164, 122), (122, 206, 76), (250, 228, 54)]
)


def colour(i: int) -> Colour:
    """Of the i-th of a set; beyond those above a mixture of two of them."""
    n = len(COLOURS)
    if i < n:
        return COLOURS[i]
    a, b = np.array(COLOURS[i % n]), np.array(COLOURS[(i * 5 + i // n) % n])
    red, green, blue = (a + b) // 2
    return int(red), int(green), int(blue)


def ramp(share: np.ndarray) -> np.ndarray:
    """(...,) of 0 to 1 as (..., 3) uint8 colours."""
    place = np.clip(share, 0, 1) * (len(_RAMP) - 1)
    low = np.minimum(place.astype(np.int64), len(_RAMP) - 2)
    mixed = _RAMP[low] + (_RAMP[low + 1] - _RAMP[low]) * (place - low)[..., None]
    return np.rint(mixed).astype(np.uint8)
