"""Zeros of Sentinel-2 where the mask is clear, and chunk files of a cube that are not there."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tessera_fast.errors import InputError
from tessera_fast.tile import open_tile, suspicions
from tile_sources import H, T, W, arrays, assert_same, by_variable, flat, stacked, write_zarr

needs_zarr = pytest.mark.skipif(importlib.util.find_spec("zarr") is None, reason="no zarr")


def test_zeros_in_clear_dates_are_suspected():
    from tessera_fast.synthetic import synthetic_tile

    data = flat(synthetic_tile(16, 16))
    assert suspicions(open_tile(data)) == []
    data["bands"] = data["bands"].copy()
    data["bands"][3, :, :6] = 0
    data["masks"] = data["masks"].copy()
    data["masks"][3] = 1
    (found,) = suspicions(open_tile(data))
    assert "observations are 0 in all bands" in found and f"({data['doys'][3]})" in found.replace(
        "days of year ", ""
    )
    data["masks"][3] = 0
    assert suspicions(open_tile(data)) == []


CHUNKS = {
    "format 2": ({"zarr_format": 2}, "bands/1.2.0.0"),
    "format 3": ({"zarr_format": 3}, "bands/c/1/2/0/0"),
}


@needs_zarr
@pytest.mark.parametrize("case", CHUNKS)
def test_a_lost_chunk_of_bands(case, tmp_path):
    options, name = CHUNKS[case]
    data = arrays()
    data["masks"][:] = 1
    dataset = stacked(data, dims=("time", "y", "x", "band"))
    encoding = {"bands": {"chunks": (2, 3, W, 10)}}
    path = write_zarr(dataset, tmp_path / "c.zarr", encoding=encoding, **options)
    tile = open_tile(path)
    assert_same(flat(tile), data)
    chunk = Path(path, name)
    kept = chunk.read_bytes()
    chunk.unlink()
    assert_same(
        flat(open_tile(path), 0, 6), {k: v[:, :6] if v.ndim > 1 else v for k, v in data.items()}
    )
    message = r"no data \(a chunk file that is not there\) at date 2, row 6, column 0, and at 12 of"
    with pytest.raises(InputError, match=message):
        open_tile(path).rows(0, H)
    with pytest.raises(InputError, match=message):
        tile.rows(0, H)  # the file went after the tile was opened
    chunk.write_bytes(kept)
    assert_same(flat(tile), data)


@needs_zarr
def test_a_lost_chunk_of_one_band(tmp_path):
    dataset = by_variable(arrays() | {"masks": np.ones((T, H, W), np.uint8)})
    encoding = {name: {"chunks": (W, H, T)} for name in ("B11",)}
    path = write_zarr(dataset, tmp_path / "c.zarr", encoding=encoding)
    (chunk,) = [p for p in Path(path, "B11", "c").rglob("*") if p.is_file()]
    chunk.unlink()
    with pytest.raises(InputError, match=r"chunk file that is not there\) at date 0, row 0, colu"):
        open_tile(path).rows(0, 1)


@needs_zarr
def test_chunks_that_zarr_leaves_out(tmp_path):
    """Where nothing is clear there may be no chunk, and a mask without one is not clear."""
    data = arrays()
    data["masks"][2:4] = 0
    data["bands"][2:4] = 0
    dataset = stacked(data, dims=("time", "y", "x", "band"))
    encoding = {"bands": {"chunks": (2, H, W, 10)}, "masks": {"chunks": (H, W, 2)}}
    path = write_zarr(dataset, tmp_path / "c.zarr", encoding=encoding, write_empty_chunks=False)
    assert not Path(path, "bands", "c", "1").exists() and not Path(path, "masks/c/0/0/1").exists()
    assert_same(flat(open_tile(path)), data)


@needs_zarr
def test_chunks_in_shards(tmp_path):
    data = arrays() | {"masks": np.ones((T, H, W), np.uint8)}
    dataset = stacked(data, dims=("time", "y", "x", "band"))
    encoding = {"bands": {"chunks": (1, 2, 3, 10), "shards": (2, 4, 6, 10)}}
    path = write_zarr(dataset, tmp_path / "c.zarr", encoding=encoding, zarr_format=3)
    assert_same(flat(open_tile(path)), data)
    Path(path, "bands/c/1/0/0/0").unlink()
    with pytest.raises(InputError, match=r"not there\) at date 2, row 0, column 0, and at 48 of"):
        open_tile(path).rows(0, H)
