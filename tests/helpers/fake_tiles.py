"""Tiles with random codes for the tests of outputs, and how to write and read them."""

import re
from contextlib import closing
from dataclasses import replace

import numpy as np

from tessera_fast.store.base import COUNT_NAMES, Provenance, TileKey
from tessera_fast.store.output import open_output

PROVENANCE = Provenance(
    model="v2-nano",
    weights_sha256="ab" * 32,
    weights_source="untrained:1",
    trained=False,
    precision="fp32",
    dims=24,
    prefixes=(8, 16),
    backend="cpu",
    isa="avx2",
    package_version="0.1",
)
FLOAT = replace(PROVENANCE, dtype="float32")
X0, Y0 = 501360.0, 5629680.0


def tile(name="a", height=45, width=61, x0=X0, y0=Y0, zone=32631, year=2020, **changes):
    crs, transform = f"EPSG:{zone}", (10.0, 0.0, x0, 0.0, -10.0, y0)
    key = TileKey(name, height, width, f"inputs of {name}", year, crs, transform)
    return replace(key, **changes)


def fake(key, dims=PROVENANCE.dims, seed=0, empty=0.2):
    """Random codes, scales and counts with a share of pixels without data."""
    rng = np.random.default_rng(seed)
    shape = (key.height, key.width)
    codes = rng.integers(-127, 128, (*shape, dims), dtype=np.int8)
    scales = rng.uniform(0.001, 0.1, shape).astype(np.float32)
    counts = rng.integers(1, 90, (*shape, 3), dtype=np.uint16)
    gone = rng.random(shape) < empty
    codes[gone], scales[gone], counts[gone] = 0, np.inf, 0
    return codes, scales, counts


def spool(writer, data, band=17):
    codes, scales, counts = data
    for start in range(0, len(codes), band):
        rows = slice(start, start + band)
        writer.write_rows(
            start, codes[rows], None if scales is None else scales[rows], counts[rows]
        )


def write(path, tiles, provenance=PROVENANCE):
    """``tiles``: {key: data}, committed one after the other as one job."""
    with closing(open_output(path, tiles, provenance)) as out:
        for key, data in tiles.items():
            writer = out.begin(key)
            spool(writer, data)
            writer.commit()
            assert out.is_done(key)


# What differs between two runs of one job: random identities and lineages, and times of change.
RANDOM = re.compile(rb'(": ")[0-9a-f]{32}(?=")')
CHANGED = re.compile(rb'(\[\s*"[0-9a-f]{32}",\s*\d+,\s*)\d+')


def listing(folder):
    """Every file below ``folder`` with its bytes, as if all runs were one."""
    return {p.relative_to(folder): _content(p) for p in folder.rglob("*") if p.is_file()}


def _content(path):
    data = path.read_bytes()
    if path.suffix == ".json":
        data = CHANGED.sub(rb"\g<1>0", RANDOM.sub(rb"\1", data))
    return data


def window(path, key, group="utm31"):
    """What the store holds at the tile's place, found by coordinates alone."""
    import zarr

    zone = zarr.open_group(str(path), mode="r")[group]
    x0, y0 = key.transform[2], key.transform[5]
    y0 -= 1e7 if key.crs.startswith("EPSG:327") else 0
    t = list(zone["time"][:]).index(key.year)
    row = list(zone["y"][:]).index(y0 - 5)
    col = list(zone["x"][:]).index(x0 + 5)
    y, x = slice(row, row + key.height), slice(col, col + key.width)
    return {n: zone[n][t, ..., y, x] for n in (*COUNT_NAMES, "scales")} | {
        n: np.moveaxis(zone[n][t, :, y, x], 0, -1)
        for n in zone.array_keys()
        if n.startswith("embeddings")
    }


def check(path, key, data, group="utm31"):
    codes, scales, counts = data
    found = window(path, key, group)
    np.testing.assert_array_equal(found["embeddings"], codes)
    np.testing.assert_array_equal(found["scales"], scales)
    for n, name in enumerate(COUNT_NAMES):
        np.testing.assert_array_equal(found[name], counts[..., n])
    for k in (8, 16):
        np.testing.assert_array_equal(found[f"embeddings_d{k}"], codes[..., :k])


def remove_shards(path):
    """Every file with pixels of a store, so that all of its tiles are made again."""
    for array in path.glob("utm*/*"):
        if array.name.startswith("embeddings") or array.name in (*COUNT_NAMES, "scales"):
            for file in (array / "c").rglob("*"):
                if file.is_file():
                    file.unlink()
