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
    """Colours with their names in columns of one width, (h, ``width``, 3) uint8.

    A name that is longer than the picture is cut off.
    """
    names = [letters.width(name, _LETTER) for name, _ in entries]
    column = _BOX + _GAP + max(names, default=0) + 3 * _GAP
    across = max(1, (width - 2 * _MARGIN + 3 * _GAP) // column)
    down = -(-len(entries) // across)
    image = np.full((down * _LINE + 8, width, 3), _PAPER, np.uint8)
    for k, (name, colour) in enumerate(entries):
        x, y = _MARGIN + k % across * column, 4 + k // across * _LINE
        image[y + 3 : y + 19, x : x + _BOX] = colour
        letters.write(image, x + _BOX + _GAP, y + 6, name, _LETTER, _INK)
    return image
