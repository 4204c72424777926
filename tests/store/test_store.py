"""The Zarr store: its layout, and where tiles go in it."""

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from fake_tiles import FLOAT, PROVENANCE, X0, Y0, check, fake, listing, tile, window, write
from tessera_fast.errors import StoreError
from tessera_fast.store.output import open_output

zarr = pytest.importorskip("zarr", minversion="3", reason="the store needs zarr >= 3")
pytest.importorskip("pyproj", reason="the store needs pyproj")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.zarr"


def test_layout_and_attributes(path):
    key = tile()
    write(path, {key: fake(key)})
    root = zarr.open_group(str(path), mode="r", use_consolidated=True)
    group = root["utm31"]
    assert root.metadata.consolidated_metadata is not None
    assert root.attrs["geoemb:dimensions"] == 24
    assert root.attrs["tessera_fast:untrained"] is True
    assert "untrained" in root.attrs["geoemb:model"]
    assert root.attrs["tessera_fast:provenance"]["weights_sha256"] == "ab" * 32
    assert [d["array"] for d in root.attrs["geoemb:depths"]] == [
        "embeddings_d8",
        "embeddings_d16",
        "embeddings",
    ]
    expected = {
        "embeddings": ("int8", (1, 24, 45, 61), ("time", "band", "y", "x"), 0),
        "embeddings_d8": ("int8", (1, 8, 45, 61), ("time", "band_d8", "y", "x"), 0),
        "scales": ("float32", (1, 45, 61), ("time", "y", "x"), np.inf),
        "s2_obs_count": ("uint16", (1, 45, 61), ("time", "y", "x"), 0),
        "time": ("int32", (1,), ("time",), 0),
        "band": ("int32", (24,), ("band",), 0),
        "x": ("float64", (61,), ("x",), 0),
        "spatial_ref": ("int32", (), (), 0),
    }
    for name, (dtype, shape, dims, fill) in expected.items():
        array = group[name]
        found = (str(array.dtype), array.shape, array.metadata.dimension_names or (), fill)
        assert found == (dtype, shape, dims, array.fill_value), name
    assert group["embeddings"].shards == (1, 24, 256, 256)
    assert [type(c).__name__ for c in group["scales"].compressors] == ["ZstdCodec"]
    for node in (group, group["embeddings"], group["scales"], group["s2_obs_count"]):
        assert node.attrs["proj:code"] == "EPSG:32631"
        assert node.attrs["spatial:transform"] == [10.0, 0.0, X0, 0.0, -10.0, Y0]
        assert node.attrs["spatial:bbox"] == [X0, Y0 - 450, X0 + 610, Y0]
        names = [c["name"] for c in node.attrs["zarr_conventions"]]
        assert names == ["proj", "spatial", "proj:", "spatial:"]
    # Nothing but Zarr within the store.
    assert {p.name for p in path.iterdir()} == {"zarr.json", "utm31"}


def test_trained_weights_are_not_called_untrained(path):
    key = tile()
    write(path, {key: fake(key)}, replace(PROVENANCE, trained=True, weights_source="n.pt"))
    attrs = zarr.open_group(str(path), mode="r").attrs
    assert attrs["tessera_fast:untrained"] is False
    assert "untrained" not in attrs["geoemb:model"]


def test_xarray_reads_it(path):
    xr = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    key = tile()
    codes, scales, counts = fake(key)
    write(path, {key: (codes, scales, counts)})
    with xr.open_zarr(path, group="utm31") as ds:
        for name in ("embeddings", "scales", "s2_obs_count"):
            assert ds[name].rio.crs.to_epsg() == 32631
            assert tuple(ds[name].rio.transform())[:6] == key.transform
        np.testing.assert_array_equal(ds.x[:2], [X0 + 5, X0 + 15])
        np.testing.assert_array_equal(ds.y[:2], [Y0 - 5, Y0 - 15])
        ds.load()
        with np.errstate(invalid="ignore"):  # 0 x inf where there is no data
            found = (ds.embeddings * ds.scales).sel(time=2020).transpose("y", "x", "band").values
        valid = np.isfinite(scales)
        expected = codes[valid] * scales[valid][:, None]
        np.testing.assert_array_equal(found[valid], expected)
        assert np.isnan(found[~valid]).all()


def test_model_without_prefixes(path):
    key = tile()
    codes, scales, counts = fake(key, dims=200)
    write(path, {key: (codes, scales, counts)}, replace(PROVENANCE, dims=200, prefixes=()))
    root = zarr.open_group(str(path), mode="r")
    assert "geoemb:depths" not in root.attrs
    assert sorted(n for n in root["utm31"].array_keys() if "embed" in n) == ["embeddings"]
    np.testing.assert_array_equal(window(path, key)["embeddings"], codes)


def test_two_tiles_two_zones_two_years(path):
    keys = [
        tile("a", 300, 61),
        tile("b", 45, 333, x0=X0 + 2570, y0=Y0 - 130),
        tile("c", zone=32632),
        tile("d", 300, 61, year=2018),
        tile("e", zone=32731, y0=9_999_990.0),  # just south of the equator, in zone 31
    ]
    tiles = {k: fake(k, seed=n) for n, k in enumerate(keys)}
    write(path, tiles)
    for key, data in tiles.items():
        check(path, key, data, "utm32" if key.name == "c" else "utm31")
    root = zarr.open_group(str(path), mode="r")
    for group in ("utm31", "utm32"):
        assert root[group].attrs["proj:code"] == f"EPSG:326{group[3:]}"
        assert list(root[group]["time"][:]) == [2018, 2020]


@pytest.mark.parametrize("dx", [-610, 0, 5000])
@pytest.mark.parametrize("dy", [450, 0, -2990])
def test_later_tile_in_any_direction(path, dx, dy):
    """Growth keeps what is there: earlier edges are inside shards, not at their borders."""
    first, year = tile("first"), tile("year", year=2019)
    second = tile("second", 45, 61, x0=X0 + dx, y0=Y0 + dy, year=2021)
    tiles = {first: fake(first), second: fake(second, seed=1), year: fake(year, seed=2)}
    for key, data in tiles.items():
        write(path, {key: data})
    for key, data in tiles.items():
        check(path, key, data)
    group = zarr.open_group(str(path), mode="r")["utm31"]
    assert list(group["time"][:]) == [2019, 2020, 2021]
    assert np.isfinite(group["scales"][:]).sum() == sum(
        np.isfinite(s).sum() for _, s, _ in tiles.values()
    )
    # North and west are whole shards, south and east exact.
    _, _, x0, _, _, y0 = group.attrs["spatial:transform"]
    assert (X0 - x0) % 2560 == 0 == (y0 - Y0) % 2560
    assert group["y"][-1] == min(Y0, Y0 + dy) - 445
    assert group["x"][-1] == max(X0, X0 + dx) + 605


@pytest.mark.parametrize("first", ["left", "right"])
def test_overlap_does_not_depend_on_the_order(path, first):
    """Data goes before no data, and more observations before fewer, whichever came first."""
    left, right = tile("left"), tile("right", x0=X0 + 300)
    data = {left: fake(left, seed=1), right: fake(right, seed=2)}
    write(path, data if first == "left" else {right: data[right], left: data[left]})
    seen = {key: data[key][2].astype(int).sum(-1) for key in data}  # 0 where there is no data
    shared = {left: np.s_[:, 30:], right: np.s_[:, :31]}
    assert (seen[left][shared[left]] != seen[right][shared[right]]).any()
    for mine, other in ((left, right), (right, left)):
        codes, scales, counts = data[mine]
        found = window(path, mine)
        kept = np.isfinite(scales)
        kept[shared[mine]] &= seen[mine][shared[mine]] > seen[other][shared[other]]
        np.testing.assert_array_equal(found["embeddings"][kept], codes[kept])
        np.testing.assert_array_equal(found["embeddings_d8"][kept], codes[kept][:, :8])
        np.testing.assert_array_equal(found["scales"][kept], scales[kept])
        np.testing.assert_array_equal(found["s2_obs_count"][kept], counts[kept][:, 0])
        assert kept[shared[mine]].any()


def test_ties_of_an_overlap_do_not_depend_on_the_order(tmp_path):
    """As many observations and the same scales: the codes decide, pixel by pixel."""
    left, right = tile("left"), tile("right", x0=X0 + 300)
    data = {}
    for seed, key in enumerate((left, right)):
        codes, scales, counts = fake(key, seed=seed, empty=0)
        data[key] = codes, np.full_like(scales, 0.5), np.ones_like(counts)
    write(tmp_path / "a.zarr", data)
    write(tmp_path / "b.zarr", {right: data[right], left: data[left]})
    assert listing(tmp_path / "a.zarr") == listing(tmp_path / "b.zarr")


def test_a_tile_made_again_without_an_orbit(path):
    """Its shard of that orbit's counts has nothing left, and does not stay as it was."""
    key, again = tile(), tile(fingerprint="other inputs")
    codes, scales, counts = fake(key, empty=0)
    write(path, {key: (codes, scales, counts)})
    counts = counts.copy()
    counts[..., 2] = 0
    write(path, {again: (codes, scales, counts)})
    check(path, again, (codes, scales, counts))


def test_a_tile_that_moved_is_made_again(path):
    """As roi.tiff was corrected, say: the observations are the same."""
    first, beside, moved = tile(), tile("b", x0=X0 + 600), tile(x0=X0 + 20)
    write(path, {first: fake(first), beside: fake(beside, seed=1)})
    with closing(open_output(path, [moved], PROVENANCE)) as out:
        assert out.is_done(beside) and not out.is_done(moved)
    write(path, {moved: fake(moved)})
    found, (codes, scales, _) = window(path, moved), fake(moved)
    valid = np.isfinite(scales)
    np.testing.assert_array_equal(found["embeddings"][valid], codes[valid])


def test_a_part_of_a_shard_is_as_if_all_were_written(tmp_path):
    """Tiles of a few pixels, one by one, and the land they are cut from at once."""
    land = tile("land", 70, 90)
    codes, scales, counts = fake(land)
    parts = {}
    for row in range(0, 70, 14):
        for col in range(0, 90, 18):
            key = tile(f"p{row}.{col}", 14, 18, x0=X0 + 10 * col, y0=Y0 - 10 * row)
            at = np.s_[row : row + 14, col : col + 18]
            parts[key] = codes[at], scales[at], counts[at]
    write(tmp_path / "parts.zarr", parts)
    write(tmp_path / "whole.zarr", {land: (codes, scales, counts)})
    assert listing(tmp_path / "parts.zarr") == listing(tmp_path / "whole.zarr")


def test_growth_keeps_what_others_wrote_about_the_store(path):
    first, second = tile("first"), tile("second", zone=32632)
    write(path, {first: fake(first)})
    zarr.open_group(str(path), mode="r+", use_consolidated=False).attrs["mine"] = 1
    group = zarr.open_group(str(path), mode="r+", use_consolidated=False).create_group("notes")
    group.create_array("n", shape=(3,), dtype="int8")
    write(path, {second: fake(second)})
    root = zarr.open_group(str(path), mode="r", use_consolidated=True)
    assert root.attrs["mine"] == 1 and root["notes/n"].shape == (3,)
    check(path, first, fake(first))
    check(path, second, fake(second), "utm32")


def test_growth_refuses_foreign_arrays(path):
    first, second = tile("first"), tile("second", x0=X0 + 610)
    write(path, {first: fake(first)})
    group = zarr.open_group(str(path), mode="r+", use_consolidated=False)["utm31"]
    group.create_array("mine", shape=(3,), dtype="int8")
    with pytest.raises(StoreError, match="also holds mine"):
        write(path, {second: fake(second)})
    check(path, first, fake(first))


BAD = {
    "no year": (tile(year=None), "year is not known"),
    "no crs": (tile(crs=None), "no CRS"),
    "no transform": (tile(transform=None), "no CRS and transform"),
    "geographic": (tile(crs="EPSG:4326"), "WGS 84 UTM"),
    "other datum": (tile(crs="EPSG:25832"), "WGS 84 UTM"),
    "zone 61": (tile(crs="EPSG:32661"), "WGS 84 UTM"),
    "nonsense": (tile(crs="nonsense"), "WGS 84 UTM"),
    "20 m": (tile(transform=(20.0, 0.0, X0, 0.0, -20.0, Y0)), "10 m tiles"),
    "south up": (tile(transform=(10.0, 0.0, X0, 0.0, 10.0, Y0)), "10 m tiles"),
    "rotated": (tile(transform=(10.0, 0.1, X0, -0.1, -10.0, Y0)), "10 m tiles"),
    "not finite": (tile(transform=(float("nan"), 0.0, X0, 0.0, -10.0, Y0)), "10 m tiles"),
    "off the earth": (tile(y0=-9.2e18), "corner within UTM"),
    "name": (tile("../a"), "plain file name"),
}


@pytest.mark.parametrize("case", BAD)
def test_tiles_that_a_store_cannot_hold(tmp_path, path, case):
    key, message = BAD[case]
    with pytest.raises(StoreError, match=message) as caught:
        open_output(path, [key], PROVENANCE)
    assert case == "name" or ".npy files" in str(caught.value)
    assert not list(tmp_path.iterdir())
    if case != "name":  # the folder takes it
        write(tmp_path / "folder", {key: fake(key)})


def test_a_store_whose_corner_is_damaged(path):
    """A grid from there to the tile would have 10^18 rows."""
    write(path, {tile(): fake(tile())})
    file = path / "utm31" / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["spatial:transform"][5] = 9.2e18
    file.write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match="corner within UTM"):
        open_output(path, [tile("b", x0=X0 + 610)], PROVENANCE)


def test_store_needs_int8_and_one_lattice(tmp_path, path):
    with pytest.raises(StoreError, match="int8"):
        open_output(path, [tile()], FLOAT)
    off = tile("off", x0=X0 + 4.0)
    with pytest.raises(StoreError, match="multiples of 10 m"):
        open_output(path, [tile(), off], PROVENANCE)
    assert not list(tmp_path.iterdir())
    write(path, {tile(): fake(tile())})
    with pytest.raises(StoreError, match="multiples of 10 m"):
        open_output(path, [off], PROVENANCE)
    near = tile("near", x0=X0 + 610.0 + 1e-5)
    write(path, {near: fake(near)})


def test_crs_as_wkt(path):
    import pyproj

    key = tile(crs=pyproj.CRS.from_epsg(32631).to_wkt())
    write(path, {key: fake(key)})
    check(path, replace(key, crs="EPSG:32631"), fake(key))
