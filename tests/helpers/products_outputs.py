"""Outputs of random codes for the tests of products, and what limits the size of files."""

import resource
import struct
from contextlib import contextmanager

import numpy as np

import tessera_fast as tf
from fake_tiles import X0, Y0, fake, tile, write

# Two tiles side by side, wider together than a block of 256, and their neighbour's next year.
LEFT = tile("left", 70, 250)
RIGHT = tile("right", 70, 60, x0=X0 + 2500)
LATER = tile("left", 70, 250, year=2021)
# The next zone, where the same ground is: its tile overlaps the eastern edge of zone 31.
EAST = tile("east", 40, 50, x0=X0, y0=Y0, zone=32632)


def store(path, *keys):
    """A store of ``keys``, each with random data of its own; (path, {key: values})."""
    data = {key: fake(key, seed=k) for k, key in enumerate(keys)}
    write(path, data)
    return path, {key: tf.dequantize(*d[:2]) for key, d in data.items()}


def ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def rectangle(x0, y0, x1, y1, crs="EPSG:32631"):
    """A GeoJSON polygon with the member that names its CRS."""
    return {
        "type": "Polygon",
        "coordinates": [ring(x0, y0, x1, y1)],
        "crs": {"type": "name", "properties": {"name": crs}},
    }


def lonlat(polygon, source=32631):
    """The same polygon in longitude and latitude."""
    import pyproj

    to = pyproj.Transformer.from_crs(source, 4326, always_xy=True)
    rings = [[list(to.transform(*p)) for p in r] for r in polygon["coordinates"]]
    return {"type": "Polygon", "coordinates": rings}


def same(a, b):
    np.testing.assert_array_equal(a, b)  # NaN equals NaN


def tiff_directories(data):
    """(where it is, width, offset of the first stored block) of every directory of a TIFF."""
    (at,) = struct.unpack_from("<I", data, 4)
    assert data[:4] == b"II*\0"
    found = []
    while at:
        (count,) = struct.unpack_from("<H", data, at)
        tags = {}
        for k in range(count):
            tag, kind, number = struct.unpack_from("<HHI", data, at + 2 + 12 * k)
            form = {3: "H", 4: "I"}.get(kind)
            if form is not None:
                place = at + 10 + 12 * k
                if struct.calcsize(f"<{number}{form}") > 4:
                    (place,) = struct.unpack_from("<I", data, place)
                tags[tag] = struct.unpack_from(f"<{number}{form}", data, place)
        blocks = [offset for offset in tags[324] if offset]
        found.append((at, tags[256][0], min(blocks)))
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    return found


def assert_cog(path):
    """Directories first, then the pixels of the smallest overview, of the next, of the whole."""
    directories = tiff_directories(path.read_bytes())
    places, widths, blocks = zip(*directories, strict=True)
    assert places[0] < 1000 and max(places) < min(blocks)
    assert list(places) == sorted(places) and list(widths) == sorted(widths, reverse=True)
    assert list(blocks) == sorted(blocks, reverse=True)
    assert len(blocks) > 1 or widths[0] <= 256


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@contextmanager
def full_disk(size):
    """No file may grow beyond ``size`` bytes: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
