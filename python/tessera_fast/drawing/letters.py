"""Letters as strokes, drawn at any size: how much of each pixel the ink covers.

A size is the height of a capital in pixels. Baselines and stems lie on whole pixels, so that small
letters are sharp.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_CAPITAL, _SMALL, _UP, _DOWN = 10.0, 7.0, 11.0, -3.0  # heights in the units of the strokes
_GAP = 2.6  # units between letters
_SPACE = 3.0  # units beyond a gap on each side
_PEN = 0.13  # width of a stroke, of the height of a capital
_CURVE = 6  # straight pieces of a curve

# Of each letter: its width, then its strokes, divided by "/": points x,y with y up from the
# baseline. "c" before a point: a curve is drawn towards it and on to the next, touching neither
# corner. A stroke of one point is a dot.
_RING = (
    "{x},{top} c{left},{top} {left},{y} c{left},{low} {x},{low} c{right},{low} {right},{y} "
    "c{right},{top} {x},{top}"
)


def _ring(x: float, y: float, rx: float, ry: float) -> str:
    return _RING.format(x=x, y=y, left=x - rx, right=x + rx, top=y + ry, low=y - ry)


_BOWL_RIGHT = "0,3.5 c0,7 3,7 c5.8,7 5.8,3.5 c5.8,0 3,0 c0,0 0,3.5"
_BOWL_LEFT = "5.8,3.5 c5.8,7 2.8,7 c0,7 0,3.5 c0,0 2.8,0 c5.8,0 5.8,3.5"
_ARCH = "0,4 c0.2,7 2.9,7 c5.4,7 5.4,4.2 5.4,0"
_S = (
    "5.8,8.3 c5,10 3,10 c0.3,10 0.3,7.6 c0.3,5.7 3.1,5.1 c6.2,4.5 6.2,2.5 c6.2,0 3.1,0 c0.8,0 0,1.9"
)
_STROKES = {
    "A": "8 0,0 4,10 8,0 / 1.3,3.3 6.7,3.3",
    "B": "6.5 0,0 0,10 3.3,10 c6,10 6,7.7 c6,5.3 3.3,5.3 0,5.3 / 3.3,5.3 c6.5,5.3 6.5,2.7 c6.5,0 "
    "3.3,0 0,0",
    "C": "7.5 7.5,8 c6.5,10 4.2,10 c0,10 0,5 c0,0 4.2,0 c6.5,0 7.5,2",
    "D": "7.5 0,0 0,10 3,10 c7.5,10 7.5,5 c7.5,0 3,0 0,0",
    "E": "5.5 5.5,10 0,10 0,0 5.5,0 / 0,5.2 4.8,5.2",
    "F": "5.5 5.5,10 0,10 0,0 / 0,5 4.6,5",
    "G": "8 7.6,8 c6.6,10 4.2,10 c0,10 0,5 c0,0 4.2,0 c8,0 8,4.4 4.8,4.4",
    "H": "7 0,0 0,10 / 7,0 7,10 / 0,5.2 7,5.2",
    "I": "0 0,0 0,10",
    "J": "4.5 4.5,10 4.5,3 c4.5,0 2.2,0 c0,0 0,2.4",
    "K": "6.8 0,0 0,10 / 6.4,10 0,4 / 2.2,6.1 6.8,0",
    "L": "5 0,10 0,0 5,0",
    "M": "8.6 0,0 0,10 4.3,3.5 8.6,10 8.6,0",
    "N": "7 0,0 0,10 7,0 7,10",
    "O": "8.4 " + _ring(4.2, 5, 4.2, 5),
    "P": "6.3 0,0 0,10 3.4,10 c6.3,10 6.3,7.3 c6.3,4.6 3.4,4.6 0,4.6",
    "Q": "8.4 " + _ring(4.2, 5, 4.2, 5) + " / 5.2,2.6 8.4,-0.8",
    "R": "6.6 0,0 0,10 3.4,10 c6.3,10 6.3,7.4 c6.3,4.8 3.4,4.8 0,4.8 / 3.2,4.8 6.6,0",
    "S": "6.2 " + _S,
    "T": "7 0,10 7,10 / 3.5,10 3.5,0",
    "U": "7 0,10 0,3.6 c0,0 3.5,0 c7,0 7,3.6 7,10",
    "V": "7.6 0,10 3.8,0 7.6,10",
    "W": "11 0,10 2.8,0 5.5,9 8.2,0 11,10",
    "X": "6.8 0,0 6.8,10 / 0,10 6.8,0",
    "Y": "7 0,10 3.5,4.8 7,10 / 3.5,4.8 3.5,0",
    "Z": "6.6 0,10 6.6,10 0,0 6.6,0",
    "a": "5.2 0.5,5.8 c1.1,7 2.8,7 c5.2,7 5.2,4.6 5.2,0 / 5.2,3.9 2.6,3.9 c0,3.9 0,1.9 c0,0 2.2,0 "
    "c4.2,0 5.2,2",
    "b": "5.8 0,10 0,0 / " + _BOWL_RIGHT,
    "c": "5.2 5.2,5.6 c4.4,7 2.9,7 c0,7 0,3.5 c0,0 2.9,0 c4.4,0 5.2,1.4",
    "d": "5.8 5.8,10 5.8,0 / " + _BOWL_LEFT,
    "e": "5.7 0,3.7 5.7,3.7 c5.7,7 2.9,7 c0,7 0,3.5 c0,0 3,0 c4.6,0 5.4,1.3",
    "f": "3.4 3.6,9.8 c3.2,10 2.9,10 c1.2,10 1.2,8 1.2,0 / 0,7 3.2,7",
    "g": "5.8 5.8,7 5.8,0 c5.8,-3 2.9,-3 c1.2,-3 0.4,-2.1 / " + _BOWL_LEFT,
    "h": "5.4 0,10 0,0 / " + _ARCH,
    "i": "0 0,7 0,0 / 0,9.7",
    "j": "1.3 1.3,7 1.3,-1.4 c1.3,-3 -0.3,-3 / 1.3,9.7",
    "k": "4.9 0,10 0,0 / 4.6,7 0,2.6 / 1.7,4.3 4.9,0",
    "l": "1.4 0,10 0,1.6 c0,0 1.5,0",
    "m": "9 0,7 0,0 / 0,4.2 c0.2,7 2.4,7 c4.5,7 4.5,4.6 4.5,0 / 4.5,4.2 c4.7,7 6.9,7 c9,7 9,4.6 "
    "9,0",
    "n": "5.4 0,7 0,0 / " + _ARCH,
    "o": "5.9 " + _ring(2.95, 3.5, 2.95, 3.5),
    "p": "5.8 0,7 0,-3 / " + _BOWL_RIGHT,
    "q": "5.8 5.8,7 5.8,-3 / " + _BOWL_LEFT,
    "r": "2.8 0,7 0,0 / 0,4 c0.2,7 3,6.9",
    "s": "4.7 4.4,5.8 c3.9,7 2.4,7 c0.2,7 0.2,5.3 c0.2,4 2.4,3.6 c4.7,3.2 4.7,1.8 c4.7,0 2.4,0 "
    "c0.6,0 0,1.2",
    "t": "3.2 1.2,9.3 1.2,1.9 c1.2,0 2.6,0 c3.1,0 3.4,0.2 / 0,7 3.2,7",
    "u": "5.4 0,7 0,2.8 c0,0 2.5,0 c5.2,0 5.4,3 / 5.4,7 5.4,0",
    "v": "5.4 0,7 2.7,0 5.4,7",
    "w": "8.4 0,7 2.1,0 4.2,6.4 6.3,0 8.4,7",
    "x": "5 0,7 5,0 / 0,0 5,7",
    "y": "5.4 0,7 2.8,0 / 5.4,7 2.5,-1.2 c1.8,-3 0.2,-3",
    "z": "4.8 0,7 4.8,7 0,0 4.8,0",
    "0": "5.8 " + _ring(2.9, 5, 2.9, 5),
    "1": "5.8 0.8,8 3.2,10 3.2,0",
    "2": "5.8 0.3,7.6 c0.5,10 2.9,10 c5.5,10 5.5,7.4 c5.5,5.6 3.6,3.7 0.2,0 5.8,0",
    "3": "5.8 0.4,8.2 c1.2,10 2.9,10 c5.3,10 5.3,7.7 c5.3,5.3 2.4,5.3 / 2.4,5.3 c5.8,5.3 5.8,2.7 "
    "c5.8,0 2.8,0 c0.8,0 0,1.9",
    "4": "5.8 4.4,0 4.4,10 0,3 5.9,3",
    "5": "5.8 5.2,10 1,10 0.6,5.4 c1.6,6.4 3,6.4 c5.8,6.4 5.8,3.2 c5.8,0 2.8,0 c0.8,0 0,1.8",
    "6": "5.8 5.2,8.6 c4.6,10 3.1,10 c0,10 0,3.1 / " + _ring(2.9, 3.1, 2.9, 3.1),
    "7": "5.8 0,10 5.8,10 2,0",
    "8": "5.8 " + _ring(2.9, 7.7, 2.4, 2.3) + " / " + _ring(2.9, 2.7, 2.9, 2.7),
    "9": "5.8 0.6,1.4 c1.2,0 2.7,0 c5.8,0 5.8,6.9 / " + _ring(2.9, 6.9, 2.9, 3.1),
    "!": "0 0,10 0,3 / 0,0.3",
    '"': "2 0,10 0,7 / 2,10 2,7",
    "#": "6.5 1.5,0 2.7,10 / 4,0 5.2,10 / 0,3.2 6,3.2 / 0.5,6.8 6.5,6.8",
    "$": "6.2 " + _S + " / 3.1,11 3.1,-1",
    "%": "9 " + _ring(1.9, 7.8, 1.9, 2.2) + " / " + _ring(7.1, 2.2, 1.9, 2.2) + " / 1.8,0 7.2,10",
    "&": "7.2 7.2,4.6 c6.4,0 2.9,0 c0,0 0,2.6 c0,4.4 2.4,5.6 c4.6,6.8 4.6,8.2 c4.6,10 3,10 c1.3,10 "
    "1.3,8.2 c1.3,7 2.6,5.4 7.2,0",
    "'": "0 0,10 0,7",
    "(": "2.2 2.2,11 c0,8.5 0,4.5 c0,0.5 2.2,-2",
    ")": "2.2 0,11 c2.2,8.5 2.2,4.5 c2.2,0.5 0,-2",
    "*": "4 2,10 2,6 / 0.2,9 3.8,7 / 0.2,7 3.8,9",
    "+": "6 3,1 3,7 / 0,4 6,4",
    ",": "0.6 0.7,0.3 0,-1.9",
    "-": "3.4 0,3.8 3.4,3.8",
    ".": "0 0,0.3",
    "/": "4.4 0,-1 4.4,11",
    ":": "0 0,0.3 / 0,5.9",
    ";": "0.6 0.7,0.3 0,-1.9 / 0.6,5.9",
    "<": "5.6 5.6,7 0,4 5.6,1",
    "=": "6 0,2.6 6,2.6 / 0,5.4 6,5.4",
    ">": "5.6 0,7 5.6,4 0,1",
    "?": "5 0.2,7.8 c0.4,10 2.6,10 c5,10 5,7.8 c5,6.2 3.7,5.4 c2.6,4.7 2.6,3 / 2.6,0.3",
    "@": "9.5 6.8,6.5 6.8,3.4 c6.8,1.8 8,1.8 c9.5,1.8 9.5,4.6 c9.5,10 4.8,10 c0,10 0,4.4 c0,-1 "
    "4.9,-1 c6.6,-1 8,-0.2 / " + _ring(4.8, 4.2, 2, 2.4),
    "[": "2 2,11 0,11 0,-2 2,-2",
    "\\": "4.4 0,11 4.4,-1",
    "]": "2 0,11 2,11 2,-2 0,-2",
    "^": "5 0,6.5 2.5,10 5,6.5",
    "_": "5.6 0,-1.5 5.6,-1.5",
    "`": "1.4 0,10 1.4,8",
    "{": "3 3,11 c1.3,11 1.3,9 1.3,6.4 c1.3,4.5 0,4.5 c1.3,4.5 1.3,2.6 1.3,0 c1.3,-2 3,-2",
    "|": "0 0,11 0,-2",
    "}": "3 0,11 c1.7,11 1.7,9 1.7,6.4 c1.7,4.5 3,4.5 c1.7,4.5 1.7,2.6 1.7,0 c1.7,-2 0,-2",
    "~": "6 0,3.3 c0.4,4.9 1.8,4.9 c2.6,4.9 3.1,4.2 c3.6,3.3 4.4,3.3 c5.6,3.3 6,4.9",
    # times, degree, en dash, middle dot, squared, plus or minus
    "\u00d7": "5 0,1.5 5,6.5 / 0,6.5 5,1.5",
    "\u00b0": "3 " + _ring(1.5, 8.5, 1.5, 1.5),
    "\u2013": "5.5 0,3.8 5.5,3.8",
    "\u00b7": "0 0,4",
    "\u00b2": "3.4 0.2,8.8 c0.3,10 1.7,10 c3.2,10 3.2,8.7 c3.2,7.8 2.2,6.9 0,5 3.4,5",
    "\u00b1": "6 3,2.6 3,8.4 / 0,5.5 6,5.5 / 0,0 6,0",
}
# other dashes and quotation marks
_ALIKE = str.maketrans("\u2014\u2212\u2019\u2018\u201c\u201d", "\u2013\u2013''\"\"")
_UNKNOWN = "5 0,0 0,10 5,10 5,0 0,0"  # a box


class _Glyph(NamedTuple):
    width: float
    pieces: np.ndarray  # (n, 4): x and y of the start, x and y of the end; a dot has both equal


@lru_cache(maxsize=1024)
def _glyph(letter: str) -> _Glyph:
    """Of a letter without its accents; a box for one that is not known."""
    if letter not in _STROKES:
        letter = unicodedata.normalize("NFKD", letter.translate(_ALIKE))[:1]
    width, _, strokes = _STROKES.get(letter, _UNKNOWN).partition(" ")
    lines = [list(_points(stroke.split())) for stroke in strokes.split("/")]
    pieces = [(*a, *b) for line in lines for a, b in zip(line, line[1:] or line, strict=False)]
    return _Glyph(float(width), np.array(pieces))


def _points(words: list[str]) -> Iterator[tuple[float, float]]:
    """The points of a stroke, those on curves among them."""
    at: tuple[float, float] | None = None
    corner: tuple[float, float] | None = None
    for word in words:
        x, y = (float(v) for v in word.removeprefix("c").split(","))
        if word.startswith("c"):
            corner = x, y
            continue
        if corner is not None and at is not None:
            for k in range(1, _CURVE):
                t = k / _CURVE
                a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
                yield a * at[0] + b * corner[0] + c * x, a * at[1] + b * corner[1] + c * y
        corner = None
        at = x, y
        yield at


def _pixels(size: float, units: float) -> int:
    return round(size * units / _CAPITAL)


def _advance(letter: str, size: float) -> int:
    """Pixels from the start of a letter to the start of the next."""
    gap = max(2, _pixels(size, _GAP))
    if letter.isspace():
        return gap + _pixels(size, _SPACE) - 1
    return gap + max(_pixels(size, _glyph(letter).width), 0)


def height(size: float) -> int:
    """Rows of a line: brackets and descending letters are in it."""
    return _pixels(size, _UP) + _pixels(size, -_DOWN) + 3


def width(line: str, size: float) -> int:
    """Columns of a line."""
    return sum(_advance(letter, size) for letter in line) + 1


def drawn(line: str, size: float) -> np.ndarray:
    """``line`` as (height, width) float32: the share of each pixel that is ink, 0..1."""
    out = np.zeros((height(size), width(line, size)), np.float32)
    x = 0
    for letter in line:
        if not letter.isspace():
            ink = _drawn_letter(letter, size)
            area = out[:, max(0, x - 1) : x - 1 + ink.shape[1]]
            np.maximum(area, ink[:, max(0, 1 - x) : max(0, 1 - x) + area.shape[1]], out=area)
        x += _advance(letter, size)
    return out


@lru_cache(maxsize=4096)
def _drawn_letter(letter: str, size: float) -> np.ndarray:
    """(height, w): a letter that begins in column 1 and may reach a column beyond its width."""
    glyph = _glyph(letter)
    # whole pixels for the width, and for the heights that most strokes end at
    across = _pixels(size, glyph.width)
    heights = [_DOWN, 0.0, _SMALL, _CAPITAL, _UP]
    rows = [_pixels(size, h) for h in heights]
    stretch = across / glyph.width if glyph.width else size / _CAPITAL
    x0, x1 = (1 + glyph.pieces[:, k] * stretch for k in (0, 2))
    baseline = rows[-1] + 1
    y0, y1 = (baseline - np.interp(glyph.pieces[:, k], heights, rows) for k in (1, 3))
    shape = (height(size), across + 4)
    y, x = (v[..., None] for v in np.mgrid[: shape[0], : shape[1]])
    length = np.maximum((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
    along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
    far = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    pen = max(1.0, _PEN * size)
    dot = (x0 == x1) & (y0 == y1)
    reach = np.where(dot, 0.62 * pen + 0.1, 0.5 * pen)
    cover: np.ndarray = np.clip(reach + 0.5 - far, 0, 1).max(axis=-1).astype(np.float32)
    return cover


def wrapped(text: str, size: float, columns: int) -> list[str]:
    """Lines of whole words that fit ``columns`` pixels; a word longer than a line is cut."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width(joined, size) <= columns:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and width(lines[-1] + letter, size) > columns:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def write(
    image: np.ndarray, x: int, y: int, line: str, size: float, ink: tuple[int, int, int]
) -> None:
    """Draw ``line`` into ``image`` (h, w, 3) uint8: its first letter begins at column ``x``, its
    capitals at row ``y``. What does not fit is cut off."""
    cover = drawn(line, size)
    y -= 1 + _pixels(size, _UP) - _pixels(size, _CAPITAL)
    cover = cover[max(0, -y) :, max(0, -x) :]
    area = image[max(0, y) :, max(0, x) :][: cover.shape[0], : cover.shape[1]]
    share = cover[: area.shape[0], : area.shape[1], None]
    area[:] = np.rint(area * (1 - share) + np.array(ink, np.float32) * share)
