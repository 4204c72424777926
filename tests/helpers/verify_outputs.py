"""Stores and folders of random codes that obey every rule, for the tests of `verify`."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from fake_tiles import FLOAT, PROVENANCE, tile, write
from tessera_fast.quantization import quantize

INT8 = PROVENANCE
BF16 = replace(PROVENANCE, precision="bf16")
HERE = tile("a", 45, 61)
DIMS = PROVENANCE.dims


def values(key=HERE, seed=0, empty=0.2):
    """(H, W, E) float32, NaN where there is no data."""
    rng = np.random.default_rng(seed)
    out = rng.standard_normal((key.height, key.width, DIMS), np.float32)
    out[rng.random((key.height, key.width)) < empty] = np.nan
    return out


def sound(key=HERE, seed=0, empty=0.2):
    """Codes, scales and counts as a run writes them."""
    codes, scales = quantize(values(key, seed, empty))
    counts = np.random.default_rng(seed).integers(1, 90, (*scales.shape, 3), dtype=np.uint16)
    counts[np.isinf(scales)] = 0
    return codes, scales, counts


def store(path, tiles=None, provenance=INT8):
    """A store of ``tiles`` {key: data}, by default one tile of 45 x 61."""
    write(path, {HERE: sound()} if tiles is None else tiles, provenance)
    return path


def folder(path, tiles):
    """The same as .npy files of codes and scales."""
    write(path, tiles, INT8)
    return path


def float_folder(path, tiles):
    """.npy files of ``tiles`` {key: float32 values}."""
    write(
        path, {k: (v, None, np.ones((*v.shape[:2], 3), np.uint16)) for k, v in tiles.items()}, FLOAT
    )
    return path


def copy(path, to):
    """A store with its state."""
    shutil.copytree(path, to)
    shutil.copytree(f"{path}.state", f"{to}.state")
    return Path(to)


def arrays(path, group="utm31"):
    import zarr

    return zarr.open_group(str(path), mode="r+", use_consolidated=False)[group]


def marker(path, name="a.2020"):
    return Path(f"{path}.state") / "done" / f"{name}.json"


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def geotessera_like(path, source, *, shard, margin, zone=32631, shift=0.0):
    """A store as geotessera publishes it: other shards, a wider extent, no record of a run."""
    import zarr

    old = arrays(source)
    _, e, h, w = old["embeddings"].shape
    transform = list(old.attrs["spatial:transform"])
    transform[2] += shift - 10 * margin
    transform[5] += 10 * margin + (1e7 if zone > 32700 else 0)
    root = zarr.create_group(str(path), zarr_format=3, attributes={"geoemb:dimensions": e})
    shape = (h + 2 * margin, w + 2 * margin)
    attributes = {
        "proj:code": f"EPSG:{zone}",
        "spatial:transform": transform,
        "spatial:shape": list(shape),
    }
    group = root.create_group("utm31", attributes=attributes)
    inner = np.s_[..., margin : margin + h, margin : margin + w]
    for name, depth, fill in (("embeddings", (e,), 0), ("scales", (), np.inf)):
        array = group.create_array(
            name,
            shape=(1, *depth, *shape),
            dtype=old[name].dtype,
            fill_value=fill,
            chunks=(1, *depth, 32, 32),
            shards=(1, *depth, shard, shard),
        )
        array[inner] = old[name][:]
    lines = {
        "time": old["time"][:],
        "x": transform[2] + (np.arange(shape[1]) + 0.5) * 10,
        "y": transform[5] - (np.arange(shape[0]) + 0.5) * 10,
    }
    for name, values in lines.items():
        group.create_array(name, data=values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(str(path))
    return path
