"""Views: random draws of dates of pixels that are shuffled across tiles."""

import gc
import itertools
import weakref

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast.errors import InputError
from tessera_fast.spec import released
from tessera_fast.training.views import DATES, Views

SPEC = released("v2-nano")
H, W = 6, 5


def tile_of(number: int, dates: int = 60, height: int = H):
    """Band 0 is the pixel's number in all tiles, band 1 the date; S1's VV and VH likewise."""
    rng = np.random.default_rng(number)
    pixel = (number * 1000 + np.arange(height * W)).reshape(height, W)

    def series(n: int, bands: int, dtype: type):
        out = rng.integers(1, 9, (n, height, W, bands)).astype(dtype)
        out[..., 0] = pixel
        out[..., 1] = np.arange(1, n + 1)[:, None, None]
        return out

    return tf.open_tile(
        {
            "bands": series(dates, 10, np.uint16),
            "masks": rng.integers(0, 2, (dates, height, W)).astype(np.uint8),
            "doys": np.arange(1, dates + 1, dtype=np.int32) * 3,
            "sar_ascending": series(30, 2, np.int16),
            "sar_ascending_doy": np.arange(1, 31, dtype=np.int32) * 5,
            "sar_descending": series(20, 2, np.int16),
            "sar_descending_doy": np.arange(1, 21, dtype=np.int32) * 7,
        }
    )


TILES = [tile_of(0), tile_of(1, dates=52), tile_of(2, height=9)]
PIXELS = sum(t.height * t.width for t in TILES)


def raw(bands, mean, std):
    return np.rint(bands * (np.float32(std) + np.float32(1e-9)) + np.float32(mean)).astype(int)


def numbers(batch):
    """The pixels of a batch."""
    return np.concatenate([part.s2_bands[0, :, 0, 0] for part in batch.parts])


def equal(a, b):
    return np.array_equal(numbers(a), numbers(b)) and all(
        np.array_equal(getattr(v, name), getattr(w, name))
        for v, w in zip(a.views, b.views, strict=True)
        for name in ("s2", "s2_days", "s1", "s1_days")
    )


def first(count, **options):
    views = Views(TILES, SPEC, 16, min_dates=1, **options)
    return list(itertools.islice(views.batches(), count))


def test_a_view_holds_dates_of_its_pixel_that_were_observed():
    stats = SPEC.statistics
    for batch in first(4):
        pixels = numbers(batch)
        for view in batch.views:
            assert view.s2.shape == (16, DATES, 10) and view.s1.shape == (16, DATES, 2)
            s2 = raw(view.s2, stats.s2_mean, stats.s2_std)
            assert (s2[..., 0] == pixels[:, None]).all()
            dates = s2[..., 1]  # from 1
            assert np.array_equal(view.s2_days, dates * 3)
            assert (np.diff(dates) >= 0).all()
            for pixel, drawn in zip(pixels, dates, strict=True):
                tile = TILES[pixel // 1000]
                at = pixel % 1000
                mask = tile.s2_masks.rows(0, tile.height).reshape(len(tile.s2_doys), -1)[:, at]
                assert mask[drawn - 1].all()
                # fewer than DATES are clear here, so some come twice
                assert len(set(drawn)) <= mask.sum() < DATES or len(set(drawn)) == DATES


def test_radar_is_drawn_from_both_orbits_by_their_own_statistics():
    stats = SPEC.statistics
    for view in first(1)[0].views:
        ascending = raw(view.s1, stats.s1_mean[0], stats.s1_std[0])
        descending = raw(view.s1, stats.s1_mean[1], stats.s1_std[1])
        up, down = (view.s1_days == x[..., 1] * n for x, n in ((ascending, 5), (descending, 7)))
        assert (up ^ down).mean() > 0.99 and (up | down).all()
        assert up.any() and down.any()
        assert (np.diff(down.astype(int)) >= 0).mean() > 0.99  # ascending comes first


def test_the_draws_of_a_pixel_differ_and_are_not_repeated():
    batch, later = (first(9)[i] for i in (0, 8))
    assert not np.array_equal(batch.views[0].s2_days, batch.views[1].s2_days)
    again = {int(n): row for n, row in zip(numbers(later), later.views[0].s2_days, strict=True)}
    both = [n for n in numbers(batch) if int(n) in again]
    assert both
    rows = dict(zip(numbers(batch), batch.views[0].s2_days, strict=True))
    assert not any(np.array_equal(rows[n], again[int(n)]) for n in both)


def test_an_epoch_has_every_pixel_once_in_mixed_batches():
    views = Views(TILES, SPEC, PIXELS // 5, min_dates=1)
    epochs = [numbers(b) for b in itertools.islice(views.batches(), 10)]
    for epoch in (epochs[:5], epochs[5:]):
        seen = np.concatenate(epoch)
        assert len(set(seen)) == len(seen) == PIXELS // 5 * 5
        assert all(len(set(batch // 1000)) == 3 for batch in epoch)
    assert not np.array_equal(epochs[0], epochs[5])


@pytest.mark.parametrize("pool_bytes", [1 << 30, 60_000])
def test_a_batch_depends_on_its_number_alone(pool_bytes):
    options = {"pool_bytes": pool_bytes, "seed": 3}
    every = first(12, **options)
    views = Views(TILES, SPEC, 16, min_dates=1, **options)
    assert (views.pools > 1) == (pool_bytes < 1 << 30)
    for start, stride in ((5, 1), (1, 3), (0, 2)):
        got = itertools.islice(views.batches(start, stride), 4)
        for batch, expected in zip(got, every[start::stride], strict=False):
            assert equal(batch, expected)


def test_a_view_has_as_many_dates_as_asked_for():
    whole = first(6, seed=3)
    for dates, known in (((40,), {40}), ((7,), {7}), ((3, 5), {3, 4, 5})):
        batches = first(6, seed=3, dates=dates)
        assert {view.s2.shape[1] for b in batches for view in b.views} <= known
        assert len({b.views[0].s2.shape[1] for b in batches}) > (len(known) > 1)
        for batch, full in zip(batches, whole, strict=True):
            assert np.array_equal(numbers(batch), numbers(full))
            for view, of_all in zip(batch.views, full.views, strict=True):
                assert view.s1.shape[1] == view.s2_days.shape[1] == view.s2.shape[1]
                for bands, days, every in (
                    (view.s2, view.s2_days, of_all.s2_days),
                    (view.s1, view.s1_days, of_all.s1_days),
                ):
                    assert bands.shape[:2] == days.shape
                    assert all(np.isin(d, e).all() for d, e in zip(days, every, strict=True))
                assert (np.diff(view.s2_days) >= 0).all()
    a, b = first(1, dates=(7,))[0].views
    assert not np.array_equal(a.s1_days, b.s1_days)


def test_the_seed_decides():
    assert equal(first(1, seed=1)[0], first(1, seed=1)[0])
    assert not equal(first(1, seed=1)[0], first(1, seed=2)[0])


def test_threads_do_not_decide():
    assert all(map(equal, first(3, threads=1), first(3, threads=2)))


def test_a_small_pool_holds_few_bands_and_loses_few_pixels():
    views = Views(TILES, SPEC, 4, min_dates=1, pool_bytes=60_000)
    assert views.pools > 1
    seen = [numbers(b) for b in itertools.islice(views.batches(), PIXELS // 4 - views.pools)]
    assert len(np.unique(np.concatenate(seen))) == 4 * len(seen)


def test_one_pool_is_in_memory(monkeypatch):
    alive, most = [], []
    before = Views._read

    def read(self, index):
        gc.collect()
        band = before(self, index)
        alive.append(weakref.ref(band.observations))
        most.append(sum(there() is not None for there in alive))
        return band

    monkeypatch.setattr(Views, "_read", read)
    views = Views(TILES, SPEC, 4, min_dates=1, pool_bytes=60_000)
    for _ in itertools.islice(views.batches(), 3 * PIXELS // 4):
        pass
    assert views.pools > 2 and max(most) <= -(-len(views._places) // views.pools)


def test_pixels_with_few_dates_are_left_out():
    least = 28
    clear = {}
    for tile in TILES:
        rows = tile.rows(0, tile.height)
        ids = rows.s2_bands[0, :, :, 0].ravel()
        clear |= dict(zip(ids, rows.s2_masks.sum(0).ravel(), strict=True))
    enough = {n for n, count in clear.items() if count >= least}
    assert 8 < len(enough) < PIXELS
    views = Views(TILES, SPEC, len(enough), min_dates=least)
    assert set(numbers(next(views.batches()))) == enough
    with pytest.raises(InputError, match="51 observed"):
        next(Views(TILES, SPEC, 2, min_dates=51).batches())  # there are 50 dates of Sentinel-1


def test_what_cannot_be_drawn_from_is_refused():
    with pytest.raises(InputError, match="at least one to train on"):
        Views([], SPEC, 4)
    rows = TILES[0].rows(0, H)
    bare = tf.open_tile(
        {"bands": rows.s2_bands, "masks": rows.s2_masks, "doys": rows.s2_doys},
        allow_missing_s1=True,
    )
    with pytest.raises(InputError, match="expected Sentinel-1 dates"):
        Views([TILES[0], bare], SPEC, 4)
    with pytest.raises(InputError, match="at least 9999 pixels"):
        next(Views(TILES, SPEC, 9999).batches())


def test_a_value_that_is_not_finite_is_placed():
    rows = TILES[0].rows(0, H)
    bands = rows.s2_bands.astype(np.float32)
    y, x, t = 4, 2, int(np.flatnonzero(rows.s2_masks[:, 4, 2])[0])
    bands[t, y, x, 3] = np.nan
    bad = tf.open_tile(
        {
            "bands": bands,
            "masks": rows.s2_masks,
            "doys": rows.s2_doys,
            "sar_ascending": rows.orbits[0].bands,
            "sar_ascending_doy": rows.orbits[0].doys,
        },
        name="field",
    )
    with pytest.raises(InputError, match=r"field, pixels of rows 0 to 5 .*got NaN"):
        next(Views([bad], SPEC, 4, min_dates=1).batches())


def test_a_pixel_of_zeros_is_left_out():
    rows = TILES[0].rows(0, H)
    bands = rows.s2_bands.copy()
    bands[:, 4, 2] = 0
    black = tf.open_tile(
        {
            "bands": bands,
            "masks": rows.s2_masks,
            "doys": rows.s2_doys,
            "sar_ascending": rows.orbits[0].bands,
            "sar_ascending_doy": rows.orbits[0].doys,
        }
    )
    with pytest.raises(InputError, match=f"got {H * W - 1} in 1 parts"):
        next(Views([black], SPEC, H * W, min_dates=1).batches())
    assert 4 * W + 2 not in numbers(next(Views([black], SPEC, H * W - 1, min_dates=1).batches()))
