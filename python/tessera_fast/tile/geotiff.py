"""The georeference of a plain GeoTIFF, read and written by its tags, without rasterio.

Plain is what the official preprocessing writes: north-up, in WGS 84 / UTM by its EPSG code. Of
anything else nothing is said, and rasterio reads it. TIFF 6.0 and OGC GeoTIFF 1.1 have the numbers.
"""

import itertools
import math
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

START_BYTES = 16 << 10  # of a file: enough for the tags, which GDAL writes before the pixels
_WIDTH, _HEIGHT, _SCALE, _TIEPOINT, _TRANSFORM, _KEYS = 256, 257, 33550, 33922, 34264, 34735
_MODEL_TYPE, _RASTER_TYPE, _PROJECTED, _UNITS = 1024, 1025, 3072, 3076  # geo keys
_METRE = 9001
_SHORT, _LONG, _DOUBLE = 3, 4, 12
_TYPES = {_SHORT: "H", _LONG: "I", _DOUBLE: "d"}
# Type and number of values of the tags that are read.
_READ = {
    _WIDTH: ((_SHORT, _LONG), 1, 1),
    _HEIGHT: ((_SHORT, _LONG), 1, 1),
    _SCALE: ((_DOUBLE,), 3, 3),
    _TIEPOINT: ((_DOUBLE,), 6, 6),
    _KEYS: ((_SHORT,), 4, 4096),
}
_UTM = {*range(32601, 32661), *range(32701, 32761)}
_STRIP = 1 << 20  # bytes of pixels that are compressed together


class PlainGeoTiff(NamedTuple):
    """Height and width, EPSG code, and (a, b, c, d, e, f) as in Georeference."""

    shape: tuple[int, int]
    epsg: int
    transform: tuple[float, ...]


def read_plain(data: bytes) -> PlainGeoTiff | None:
    """What a file that begins with ``data`` says, or None if it is not a plain GeoTIFF."""
    try:
        tags = _tags(data[:START_BYTES])
    except struct.error:  # an offset beyond the file
        return None
    if tags is None:
        return None
    keys, scale, tie = tags[_KEYS], tags[_SCALE], tags[_TIEPOINT]
    # Rows of four: key, where its value is (0: in the row itself), count, value.
    values = {k: v for k, place, _, v in zip(*[iter(keys[4:])] * 4, strict=False) if place == 0}
    kinds = values.get(_MODEL_TYPE), values.get(_RASTER_TYPE), values.get(_UNITS, _METRE)
    if kinds != (1, 1, _METRE) or values.get(_PROJECTED) not in _UTM:  # projected, pixel is area
        return None
    transform = scale[0], 0.0, tie[3], 0.0, -scale[1], tie[4]
    if tie[:2] != (0, 0) or not _north_up(transform):
        return None
    return PlainGeoTiff((tags[_HEIGHT][0], tags[_WIDTH][0]), values[_PROJECTED], transform)


def _north_up(transform: Sequence[float]) -> bool:
    a, b, _, d, e, _ = transform
    return all(map(math.isfinite, transform)) and b == d == 0 and a > 0 > e


def _tags(data: bytes) -> dict[int, tuple[Any, ...]] | None:
    """Values of the tags in _READ of the first image, None unless all are there and nothing else
    says where it lies; struct.error where the file is cut."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return None
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    tags: dict[int, tuple[Any, ...]] = {}
    for k in range(count):
        at = first + 2 + 12 * k
        tag, kind, number = struct.unpack_from(order + "HHI", data, at)
        if tag == _TRANSFORM or tag in tags:
            return None
        if tag not in _READ:
            continue
        kinds, least, most = _READ[tag]
        if kind not in kinds or not least <= number <= most:
            return None
        form = f"{order}{number}{_TYPES[kind]}"
        place = at + 8  # values of at most 4 bytes are in the tag itself
        if struct.calcsize(form) > 4:
            (place,) = struct.unpack_from(order + "I", data, at + 8)
        tags[tag] = struct.unpack_from(form, data, place)
    return tags if len(tags) == len(_READ) else None


def plain(shape: tuple[int, int], crs: str, transform: Sequence[float]) -> PlainGeoTiff | None:
    """What ``write_plain`` writes, or None where the place of a tile is none of a plain file."""
    code = re.fullmatch(r"epsg:(\d{5})", crs, re.IGNORECASE | re.ASCII)
    if code is None or int(code[1]) not in _UTM or not _north_up(transform):
        return None
    return PlainGeoTiff(shape, int(code[1]), tuple(transform))


def write_plain(of: PlainGeoTiff) -> bytes:
    """A whole file: one band uint8, all ones, which GDAL, rasterio and `read_plain` read alike."""
    height, width = of.shape
    a, _, x0, _, e, y0 = of.transform
    rows = max(1, min(height, _STRIP // width))  # of a strip
    heights = [min(rows, height - top) for top in range(0, height, rows)]
    packed = {h: zlib.compress(bytes([1]) * (h * width)) for h in set(heights)}
    sizes = [len(packed[h]) for h in heights]
    geo = {_MODEL_TYPE: 1, _RASTER_TYPE: 1, _PROJECTED: of.epsg, _UNITS: _METRE}
    keys = [1, 1, 1, len(geo), *(n for key, value in geo.items() for n in (key, 0, 1, value))]
    # In the order of their numbers, as TIFF wants it. The offsets of strips are not known yet.
    tags: dict[int, tuple[int, Sequence[Any]]] = {
        _WIDTH: (_LONG, [width]),
        _HEIGHT: (_LONG, [height]),
        258: (_SHORT, [8]),
        259: (_SHORT, [8]),  # bits of a value; deflate
        262: (_SHORT, [1]),
        273: (_LONG, [0] * len(sizes)),  # black is 0; where strips begin
        277: (_SHORT, [1]),
        278: (_LONG, [rows]),
        279: (_LONG, sizes),  # bands; strips
        284: (_SHORT, [1]),
        339: (_SHORT, [1]),  # bands together; unsigned
        _SCALE: (_DOUBLE, (a, -e, 0.0)),
        _TIEPOINT: (_DOUBLE, (0.0, 0.0, 0.0, x0, y0, 0.0)),
        _KEYS: (_SHORT, keys),
    }
    forms = {tag: f"<{len(v)}{_TYPES[kind]}" for tag, (kind, v) in tags.items()}
    # Values that a tag has no room for; those of the georeference first, near the start.
    long = [tag for tag in sorted(tags, reverse=True) if struct.calcsize(forms[tag]) > 4]
    places, end = {}, 8 + 2 + 12 * len(tags) + 4
    for tag in long:
        places[tag] = end
        end += struct.calcsize(forms[tag])
    tags[273] = (_LONG, list(itertools.accumulate(sizes[:-1], initial=end)))
    out = bytearray(struct.pack("<2sHIH", b"II", 42, 8, len(tags)))
    for tag, (kind, values) in tags.items():
        out += struct.pack("<HHI", tag, kind, len(values))
        if tag in places:
            out += struct.pack("<I", places[tag])
        else:
            out += struct.pack(forms[tag], *values).ljust(4, b"\0")
    out += struct.pack("<I", 0)  # no further image
    for tag in long:
        out += struct.pack(forms[tag], *tags[tag][1])
    return bytes(out) + b"".join(packed[h] for h in heights)
