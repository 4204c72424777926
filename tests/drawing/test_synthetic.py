"""The synthetic tile: reproducible, plausible, and what is written reads back the same."""

import numpy as np
import pytest

from tessera_fast.errors import InputError, StoreError
from tessera_fast.spec import S2_BANDS
from tessera_fast.synthetic import (
    CLASSES,
    EDGE_PIXELS,
    synthetic_classes,
    synthetic_tile,
    write_tile,
)
from tessera_fast.synthetic import tile as synthetic_files
from tessera_fast.tile import open_tile


@pytest.fixture(scope="module")
def tile():
    return synthetic_tile(96, 80, seed=5)


@pytest.fixture(scope="module")
def band(tile):
    return tile.rows(0, tile.height)


@pytest.fixture(scope="module")
def classes():
    return synthetic_classes(96, 80, seed=5)


def test_description(tile, band):
    assert (tile.name, tile.year, tile.crs) == ("synthetic_5_2024", 2024, "EPSG:32631")
    assert tile.transform is not None and tile.transform[0] == 10 == -tile.transform[4]
    s2, ascending, descending = tile.dates
    assert 60 <= s2 <= 80 and 20 <= ascending <= 40 and 20 <= descending <= 40
    assert np.diff(band.s2_doys).min() >= 2
    assert band.s2_bands.dtype == np.uint16 and band.s2_masks.dtype == np.uint8
    assert [orbit.bands.dtype for orbit in band.orbits] == [np.int16] * 2


def test_same_arguments_same_tile_other_arguments_another():
    first = synthetic_tile(20, 16, seed=1).fingerprint()
    assert synthetic_tile(20, 16, seed=1).fingerprint() == first
    assert synthetic_tile(20, 16, seed=2).fingerprint() != first
    assert synthetic_tile(20, 16, seed=1, year=2023).fingerprint() != first


def test_classes(classes):
    assert classes.shape == (96, 80) and classes.dtype == np.uint8
    assert np.array_equal(classes, synthetic_classes(96, 80, seed=5))
    share = np.bincount(classes.ravel(), minlength=len(CLASSES)) / classes.size
    assert (share > 0.005).sum() >= 8, dict(zip(CLASSES, share, strict=True))
    # Fields, not noise: far more neighbours share a class than in a shuffled map.
    shuffled = np.random.RandomState(0).permutation(classes.ravel()).reshape(classes.shape)
    alike = [(c[:, 1:] == c[:, :-1]).mean() for c in (classes, shuffled)]
    assert alike[0] > 3 * alike[1]


def test_crops_rotate_but_woods_and_water_stay(classes):
    other = synthetic_classes(96, 80, seed=5, year=2023)
    stay = np.isin(classes, [CLASSES.index(c) for c in ("water", "road", "coniferous forest")])
    assert np.array_equal(classes[stay], other[stay])
    assert (classes != other).mean() > 0.2


def test_clouds(band):
    clear = band.s2_masks.mean(axis=(1, 2))
    assert 0.2 < clear.mean() < 0.7
    assert (clear < 0.01).any() and (clear > 0.95).any()
    mixed = band.s2_masks[(clear > 0.2) & (clear < 0.8)].astype(float)
    assert len(mixed) >= 5
    for mask in mixed:
        assert np.corrcoef(mask[:, 1:].ravel(), mask[:, :-1].ravel())[0, 1] > 0.7
    cloudy = (band.s2_masks == 0)[clear < 0.01]
    blue = band.s2_bands[..., S2_BANDS.index("B02")]
    assert blue[clear < 0.01][cloudy].mean() > 3 * blue[band.s2_masks == 1].mean()


def mean_ndvi(band, where, days):
    red, nir = (band.s2_bands[..., S2_BANDS.index(b)].astype(float) for b in ("B04", "B08"))
    season = (band.s2_doys >= days[0]) & (band.s2_doys <= days[1])
    use = (band.s2_masks == 1) & where & season[:, None, None]
    return float(((nir - red) / (nir + red))[use].mean())


def test_seasons_differ_by_class(band, classes):
    spring, autumn = (100, 150), (190, 240)
    wheat = classes == CLASSES.index("winter wheat")
    maize = classes == CLASSES.index("maize")
    assert mean_ndvi(band, wheat, spring) > mean_ndvi(band, wheat, autumn) + 0.2
    assert mean_ndvi(band, maize, autumn) > mean_ndvi(band, maize, spring) + 0.2
    assert mean_ndvi(band, classes == CLASSES.index("water"), autumn) < 0.1


def test_units(band, classes):
    clear = band.s2_bands[band.s2_masks == 1]
    assert clear.min() >= 1 and 500 < clear.mean() < 3500 and band.s2_bands.max() <= 16_000
    water = classes == CLASSES.index("water")
    town = classes == CLASSES.index("built-up")
    for orbit in band.orbits:
        seen = (orbit.bands != 0).all(axis=-1)
        vv, vh = orbit.bands[..., 0], orbit.bands[..., 1]
        # -12..-9 and -19..-15 dB, by (20 log10(power) + 50) x 200
        assert 5000 < vv[seen].mean() < 6500 and 2400 < vh[seen].mean() < 4100
        assert vv[seen & water].mean() + 1500 < vv[seen].mean() < vv[seen & town].mean()
        observed = (orbit.bands != 0).any(axis=-1).mean(axis=(1, 2))
        assert (observed > 0.95).any(), "a full pass"
        assert ((observed > 0.05) & (observed < 0.95)).any(), "a swath edge"


def test_edge_pixels(band):
    def observed(column):
        s1 = [int((o.bands[:, 0, column] != 0).any(axis=-1).sum()) for o in band.orbits]
        return int(band.s2_masks[:, 0, column].sum()), *s1

    s2, ascending, descending = zip(*(observed(c) for c in range(len(EDGE_PIXELS))), strict=True)
    assert [n > 0 for n in s2] == [False, True, False, True, True, True]
    assert (s2[3], ascending[3], descending[3]) == (1, 1, 0)
    assert [n > 0 for n in ascending] == [True, False, False, True, True, True]
    assert [n > 0 for n in descending] == [True, False, False, False, False, True]
    assert all((o.bands[:, 0, 5, 0] == 0).all() for o in band.orbits)


def test_too_narrow():
    with pytest.raises(InputError, match="expected at least 1 x 6 pixels, got 4 x 5"):
        synthetic_tile(4, 5)
    assert synthetic_tile(1, 6).height == 1


@pytest.mark.parametrize("write_bytes", [1, 256 << 20])
def test_written_tile_reads_back(tmp_path, tile, monkeypatch, write_bytes):
    monkeypatch.setattr(synthetic_files, "_WRITE_BYTES", write_bytes)
    folder = write_tile(tile, tmp_path / "deep" / "farm_2024")
    again = open_tile(folder)
    assert again.fingerprint() == tile.fingerprint()
    np.testing.assert_array_equal(again.rows(0, 96).s2_bands, tile.rows(0, 96).s2_bands)
    np.testing.assert_array_equal(again.rows(0, 96).s2_masks, tile.rows(0, 96).s2_masks)
    assert np.load(folder / "bands.npy").shape == (tile.dates[0], 96, 80, 10)
    assert [p.name for p in folder.parent.iterdir()] == ["farm_2024"]
    with pytest.raises(InputError, match="does not exist yet"):
        write_tile(tile, folder)


def test_written_georeference(tmp_path, tile):
    pytest.importorskip("rasterio")
    again = open_tile(write_tile(tile, tmp_path / "t"))
    assert (again.crs, again.transform) == (tile.crs, tile.transform)


def test_writes_arrays_of_one_orbit(tmp_path):
    tile = synthetic_tile(4, 8)
    band = tile.rows(0, 4)
    data = {
        "bands": band.s2_bands,
        "masks": band.s2_masks,
        "doys": band.s2_doys,
        "sar_descending": band.orbits[1].bands,
        "sar_descending_doy": band.orbits[1].doys,
    }
    folder = write_tile(data, tmp_path / "t")
    assert not (folder / "sar_ascending.npy").exists()
    assert open_tile(folder).fingerprint() == open_tile(data).fingerprint()


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic_files, "_write_band", full)
    with pytest.raises(StoreError, match="No space left"):
        write_tile(synthetic_tile(2, 6), tmp_path / "t")
    assert not list(tmp_path.iterdir())
