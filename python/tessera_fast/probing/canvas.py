"""A picture to draw on: lines, areas and text, for diagrams without a plotting library.

x runs to the right and y down, in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..drawing import letters
from ..drawing.palette import Colour

PAPER, INK, FAINT, GREY = (250, 250, 248), (30, 30, 30), (222, 222, 218), (120, 120, 118)
LETTER, TITLE = 11, 14  # pixels: the height of a capital


class Canvas:
    """(h, w, 3) uint8 in ``image``, paper to begin with."""

    def __init__(self, height: int, width: int) -> None:
        self.image = np.full((height, width, 3), PAPER, np.uint8)

    def text(
        self,
        x: float,
        y: float,
        line: str,
        *,
        ink: Colour = INK,
        size: int = LETTER,
        align: str = "left",
    ) -> None:
        """A line with its capitals from row ``y`` on, ``size`` pixels high; ``align``: which end of
        it is at ``x``."""
        columns = letters.width(line, size)
        shift = {"left": 0, "middle": columns // 2, "right": columns}[align]
        letters.write(self.image, max(0, round(x) - shift), round(y), line, size, ink)

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
