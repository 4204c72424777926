"""What the colours of a map of classes mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import letters
from .palette import Colour

_PAPER, _INK = (250, 250, 248), (30, 30, 30)
_LETTER, _LINE, _MARGIN = 10, 24, 6  # pixels: a capital, a line, at the sides
_BOX, _GAP = 24, 8  # width of a colour, and between it and its name


def legend(entries: Sequence[tuple[str, Colour]], width: int) -> np.ndarray:
    """Colours with their names, (h, ``width``, 3) uint8: in one line if they fit, else in columns.

    A name that is longer than the picture is cut off.
    """
    wide = [_BOX + _GAP + letters.width(name, _LETTER) + 3 * _GAP for name, _ in entries]
    room = width - 2 * _MARGIN + 3 * _GAP
    if sum(wide) > room:
        wide = [max(wide)] * len(entries)
    across = len(entries) if sum(wide) <= room else max(1, room // wide[0])
    image = np.full((-(-len(entries) // across) * _LINE + 8, width, 3), _PAPER, np.uint8)
    for k, (name, colour) in enumerate(entries):
        x, y = _MARGIN + sum(wide[k - k % across : k]), 4 + k // across * _LINE
        image[y + 3 : y + 19, x : x + _BOX] = colour
        letters.write(image, x + _BOX + _GAP, y + 6, name, _LETTER, _INK)
    return image
