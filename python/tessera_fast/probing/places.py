"""Which images show the same place, so that what is learned from one is not judged in another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..packages import require
from ..products.globe import near
from ..products.target import Target
from .images import Image, is_degrees

_SHARE = 0.01  # of a pixel: less is rounding
_SAMPLES = 64  # rows and columns of pixels that are looked at in another CRS
_Box = tuple[float, float, float, float]  # left, bottom, right, top


def places_of(images: Sequence[Image]) -> tuple[list[int], bool]:
    """A number for each image, equal for images of the same pixels (CRS, transform and size), and
    whether two places have an edge or a corner in common.

    Images without a place are places of their own. InputError for images that overlap in another
    way: their pixels cannot be matched.
    """
    known: dict[object, int] = {}
    first: list[Image] = []
    out = []
    for i, image in enumerate(images):
        placed = image.crs is not None and image.transform is not None
        key = (image.crs, image.transform, image.height, image.width) if placed else i
        if key not in known:
            known[key] = len(known)
            if placed:
                first.append(image)
        out.append(known[key])
    boxes = [_box(image) for image in first]
    globe = (
        boxes
        if len({i.crs for i in first}) < 2
        else [_on_the_globe(*pair) for pair in zip(first, boxes, strict=True)]
    )
    touch = False
    for i, k in itertools.combinations(range(len(first)), 2):
        a, b = first[i], first[k]
        if a.crs == b.crs:
            gap = _gap(boxes[i], _beside(boxes[k], boxes[i], is_degrees(a.crs))) / _side(a)
            touch, overlap = touch or abs(gap) <= _SHARE, gap < -_SHARE
        else:
            overlap = _gap(globe[i], _beside(globe[k], globe[i], True)) < 0 and _overlap_elsewhere(
                a, b
            )
        if overlap:
            raise InputError(
                f"embeddings: expected {a.name!r} and {b.name!r} to be of the same pixels or to "
                "have none in common, but they overlap, so what is learned from one would be "
                "judged in the other; leave one out, or give groups as split"
            )
    return out, touch


def _gap(a: _Box, b: _Box) -> float:
    """Between two boxes along x or y, whichever is more; negative where they overlap."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def _beside(box: _Box, other: _Box, degrees: bool) -> _Box:
    """The box as near to the other as the names of its longitudes allow, if x is in degrees."""
    if not degrees:
        return box
    middle = (box[0] + box[2]) / 2
    turn = float(near(middle, (other[0] + other[2]) / 2)) - middle
    return box[0] + turn, box[1], box[2] + turn, box[3]


def _side(image: Image) -> float:
    """Of a pixel, in units of the CRS."""
    assert image.transform is not None
    return float(np.hypot(image.transform[0], image.transform[3]))


def _box(image: Image) -> _Box:
    """Around an image's corners, in its CRS."""
    assert image.transform is not None
    a, b, c, d, e, f = image.transform
    corners = list(itertools.product((0, image.width), (0, image.height)))
    x = [a * column + b * row + c for column, row in corners]
    y = [d * column + e * row + f for column, row in corners]
    return min(x), min(y), max(x), max(y)


def _on_the_globe(image: Image, box: _Box) -> _Box:
    """The box in degrees; of all longitudes where it is over the 180th."""
    warp = require("rasterio.warp", "comparing places of two CRSs")
    left, bottom, right, top = warp.transform_bounds(image.crs, "EPSG:4326", *box)
    return (-180.0, bottom, 180.0, top) if left > right else (left, bottom, right, top)


def _overlap_elsewhere(a: Image, b: Image) -> bool:
    """True if pixels of ``a``, of a grid over it, are in ``b``, which has another CRS."""
    warp = require("rasterio.warp", "comparing places of two CRSs")
    assert a.crs is not None and a.transform is not None and b.transform is not None
    x, y = Target(a.crs, a.transform, a.height, a.width).centres(
        slice(0, a.height), slice(0, a.width)
    )
    rows, columns = (np.unique(np.linspace(0, n - 1, _SAMPLES).astype(int)) for n in x.shape)
    at = np.ix_(rows, columns)
    x, y = (np.asarray(v) for v in warp.transform(a.crs, b.crs, x[at].ravel(), y[at].ravel()))
    p, q, r, s, t, u = b.transform
    if is_degrees(b.crs):
        x = near(x, r + (p * b.width + q * b.height) / 2)
    determinant = p * t - q * s
    column = (t * (x - r) - q * (y - u)) / determinant
    row = (p * (y - u) - s * (x - r)) / determinant
    inside = (row >= 0) & (row < b.height) & (column >= 0) & (column < b.width)
    return bool(inside.any())
