"""The georeference of a plain GeoTIFF, read from its tags in a tenth of the time of rasterio.

Plain is what the official preprocessing writes: north-up, in WGS 84 / UTM by its EPSG code. Of
anything else nothing is said, and rasterio reads it. TIFF 6.0 and OGC GeoTIFF 1.1 have the numbers.
"""

import struct
from typing import Any, NamedTuple

_WIDTH, _HEIGHT, _SCALE, _TIEPOINT, _TRANSFORM, _KEYS = 256, 257, 33550, 33922, 34264, 34735
_MODEL_TYPE, _RASTER_TYPE, _PROJECTED, _UNITS = 1024, 1025, 3072, 3076  # geo keys
_METRE = 9001
_TYPES = {3: "H", 4: "I", 12: "d"}  # 16 and 32 bits unsigned, double
_UTM = {*range(32601, 32661), *range(32701, 32761)}


class PlainGeoTiff(NamedTuple):
    """Height and width, EPSG code, and (a, b, c, d, e, f) as in Georeference."""

    shape: tuple[int, int]
    epsg: int
    transform: tuple[float, ...]


def read_plain(data: bytes) -> PlainGeoTiff | None:
    """What a file that begins with ``data`` says, or None if it is not a plain GeoTIFF."""
    try:
        tags = _tags(data)
    except struct.error:  # an offset beyond the file
        return None
    needed = (_WIDTH, _HEIGHT, _SCALE, _TIEPOINT, _KEYS)
    if tags is None or not all(tag in tags for tag in needed) or _TRANSFORM in tags:
        return None
    keys, scale, tie = tags[_KEYS], tags[_SCALE], tags[_TIEPOINT]
    # Rows of four: key, where its value is (0: in the row itself), count, value.
    values = {k: v for k, place, _, v in zip(*[iter(keys[4:])] * 4, strict=False) if place == 0}
    kinds = values.get(_MODEL_TYPE), values.get(_RASTER_TYPE), values.get(_UNITS, _METRE)
    if kinds != (1, 1, _METRE) or values.get(_PROJECTED) not in _UTM:  # projected, pixel is area
        return None
    if len(scale) != 3 or len(tie) != 6 or tie[:2] != (0, 0):
        return None
    transform = scale[0], 0.0, tie[3], 0.0, -scale[1], tie[4]
    return PlainGeoTiff((tags[_HEIGHT][0], tags[_WIDTH][0]), values[_PROJECTED], transform)


def _tags(data: bytes) -> dict[int, tuple[Any, ...]] | None:
    """Values of the first image's tags of numbers; struct.error where the file is cut."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return None
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    tags = {}
    for k in range(count):
        at = first + 2 + 12 * k
        tag, kind, number = struct.unpack_from(order + "HHI", data, at)
        if kind not in _TYPES or number > len(data):
            continue
        form = f"{order}{number}{_TYPES[kind]}"
        place = at + 8  # values of at most 4 bytes are in the tag itself
        if struct.calcsize(form) > 4:
            (place,) = struct.unpack_from(order + "I", data, at + 8)
        tags[tag] = struct.unpack_from(form, data, place)
    return tags
