"""A picture to draw on: lines, areas and text, for diagrams without a plotting library.

x runs to the right and y down, in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..quicklook import _enlarge, _text

PAPER, INK, FAINT, GREY = (250, 250, 248), (30, 30, 30), (222, 222, 218), (120, 120, 118)
Colour = tuple[int, int, int]
# Told apart by hue and by lightness, those next to each other most.
COLOURS: tuple[Colour, ...] = (
    (214, 162, 40), (46, 125, 79), (74, 111, 190), (196, 74, 60), (143, 196, 92), (128, 84, 160),
    (94, 186, 196), (224, 128, 170), (122, 84, 52), (236, 214, 98), (28, 72, 110), (168, 178, 60),
)  # fmt: skip
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


class Canvas:
    """(h, w, 3) uint8 in ``image``, paper to begin with."""

    def __init__(self, height: int, width: int) -> None:
        self.image = np.full((height, width, 3), PAPER, np.uint8)

    def text(
        self, x: float, y: float, line: str, *, ink: Colour = INK, size: int = 2,
        align: str = "left",
    ) -> None:  # fmt: skip
        """A line with its top at ``y``; ``align``: which end of it is at ``x``."""
        glyphs = _enlarge(_text(line), size)
        shift = {"left": 0, "middle": glyphs.shape[1] // 2, "right": glyphs.shape[1]}[align]
        top, left = round(y), max(0, round(x) - shift)
        area = self.image[top : top + glyphs.shape[0], left : left + glyphs.shape[1]]
        area[glyphs[: area.shape[0], : area.shape[1]]] = ink

    def fill(
        self, x: float, y: float, right: float, bottom: float, ink: Colour, share: float = 1.0
    ) -> None:
        """A rectangle, ``share`` opaque."""
        area = self.image[max(0, round(y)) : round(bottom), max(0, round(x)) : round(right)]
        area[:] = np.rint(area * (1 - share) + np.array(ink) * share)

    def line(
        self, points: Sequence[tuple[float, float]], ink: Colour, width: float = 3, share: float = 1
    ) -> None:
        """Straight lines from point to point, round at their ends; one point is a disc. Points
        with NaN are left out."""
        points = [point for point in points if np.isfinite(point).all()]
        if not points:
            return
        pairs = list(itertools.pairwise(points)) or [(points[0], points[0])]
        for (x0, y0), (x1, y1) in pairs:
            reach = width / 2 + 1
            top, left = (max(0, int(min(v) - reach)) for v in ((y0, y1), (x0, x1)))
            area = self.image[
                top : int(max(y0, y1) + reach) + 1, left : int(max(x0, x1) + reach) + 1
            ]
            y, x = np.mgrid[: area.shape[0], : area.shape[1]]
            y, x = y + top - y0, x + left - x0
            length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
            along = np.clip((x * (x1 - x0) + y * (y1 - y0)) / length, 0, 1)
            far = np.hypot(x - along * (x1 - x0), y - along * (y1 - y0))
            cover = np.clip(width / 2 + 0.5 - far, 0, 1)[..., None] * share
            area[:] = np.rint(area * (1 - cover) + np.array(ink) * cover)
