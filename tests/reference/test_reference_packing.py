"""The naive packing rules against facts worked out by hand."""

import numpy as np
import pytest

from tessera_fast.errors import InputError
from tessera_fast.packing import Observations
from tessera_fast.reference import packing
from tessera_fast.spec import released
from windows import small_window


@pytest.mark.parametrize("sampling", ["v2", "v1.1"])
def test_sequence_keeps_every_date_in_order_then_fills(sampling):
    for n in range(301):
        steps = packing.sequence(n, sampling)
        assert len(steps) == min((n + 7) // 8 * 8, 256)
        if n <= 256:
            assert np.array_equal(steps[:n], np.arange(n))
            assert n == 0 or (steps.min() >= 0 and steps.max() < n)
        else:
            assert (np.diff(steps) > 0).all() and steps[0] >= 0 and steps[-1] < n


@pytest.mark.parametrize(
    ("sampling", "n", "fillers"),
    [
        ("v2", 1, [0] * 7),
        ("v2", 3, [0, 1, 2, 0, 1]),  # multiplicities 3, 3, 2
        ("v2", 4, [0, 1, 2, 3]),  # four chunks of one date
        ("v2", 5, [1, 3, 4]),  # chunks 01 23 4
        ("v2", 6, [1, 4]),
        ("v2", 9, [1, 3, 4, 5, 6, 7, 8]),
        ("v2", 15, [7]),
        ("v1.1", 1, [0] * 7),
        ("v1.1", 3, [0, 1, 1, 1, 2]),  # 0.33 0.67 1 1.33 1.67
        ("v1.1", 5, [1, 2, 3]),
        ("v1.1", 6, [2, 3]),
        ("v1.1", 8, []),
    ],
)
def test_sequence_fillers(sampling, n, fillers):
    assert packing.sequence(n, sampling)[n:].tolist() == fillers


def test_v2_cut_is_floating_point():
    """Truncating k (n - 1) / 255 in integers is right up to n = 294 and wrong from 295."""

    def in_integers(n):
        return np.arange(256) * (n - 1) // 255

    for n in range(257, 295):
        assert np.array_equal(packing.sequence(n, "v2"), in_integers(n))
    assert not np.array_equal(packing.sequence(295, "v2"), in_integers(295))
    for n in (257, 295, 1000, 65535):
        steps = packing.sequence(n, "v2")
        assert steps[0] == 0 and steps[-1] == n - 1


def test_v1_1_cut_takes_the_middle_of_each_chunk():
    assert packing.sequence(512, "v1.1").tolist() == list(range(1, 512, 2))
    steps = packing.sequence(300, "v1.1")  # 44 chunks of two dates, then 212 of one
    assert steps.tolist() == [*range(1, 88, 2), *range(88, 300)]


def test_unknown_sampling():
    with pytest.raises(InputError, match="sampling"):
        packing.sequence(3, "v3")


def test_mix_is_splitmix64():
    """Its published outputs for seed 0."""
    gamma = 0x9E3779B97F4A7C15
    words = [packing.mix(k * gamma % 2**64) for k in range(3)]
    assert words == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_draw():
    assert packing.draw(40, 1, 2, 3, 0).tolist() == list(range(40))
    for n in (1, 3, 39, 40, 41, 90, 500):
        dates = packing.draw(n, 5, 6, 7, 1)
        assert len(dates) == 40 and dates.min() >= 0 and dates.max() < n
        assert (np.diff(dates) >= (1 if n >= 40 else 0)).all()
    base = (9, 10, 11, 0)
    assert np.array_equal(packing.draw(100, *base), packing.draw(100, *base))
    for i in range(4):
        other = tuple(value + (i == j) for j, value in enumerate(base))
        assert not np.array_equal(packing.draw(100, *base), packing.draw(100, *other))


@pytest.mark.parametrize("n", [10, 60])
def test_draw_is_even(n):
    """No date is drawn half or twice as often as the average over 1,000 pixels."""
    counts = np.zeros(n)
    for pixel in range(1000):
        np.add.at(counts, packing.draw(n, 0, pixel, 0, 0), 1)
    average = counts.sum() / n
    assert average == 40_000 / n
    assert counts.min() > average / 2 and counts.max() < average * 2


def test_pack_v2():
    s2, s1 = packing.pack(small_window(), released("v2-nano"))
    assert s2.bands.tolist() == [list(range(1, 11)), list(range(41, 51))]
    assert s2.doy.tolist() == [100, 102] and s2.multiplicity.tolist() == [4, 4]
    assert s2.offsets.tolist() == [0, 2, 2] and s2.orbit.tolist() == [0, 0]
    assert s1.bands.tolist() == [[0, 5], [6, 0], [7, 8]]
    assert s1.doy.tolist() == [60, 20, 30] and s1.orbit.tolist() == [0, 1, 1]
    assert s1.multiplicity.tolist() == [3, 3, 2] and s1.offsets.tolist() == [0, 3, 3]
    for packed, dtype in ((s2, np.uint16), (s1, np.int16)):
        assert packed.steps is None and packed.step_offsets is None
        assert [
            packed.bands.dtype,
            packed.doy.dtype,
            packed.orbit.dtype,
            packed.multiplicity.dtype,
            packed.offsets.dtype,
        ] == [dtype, np.uint16, np.uint8, np.uint16, np.int64]


def test_pack_v1_1_has_steps():
    s2, s1 = packing.pack(small_window(), released("v1.1-mpc"))
    assert s2.steps.dtype == np.int32 and s2.step_offsets.tolist() == [0, 8, 8]
    assert s2.steps.tolist() == [0, 1, 0, 0, 0, 1, 1, 1]
    assert s1.steps.tolist() == [0, 1, 2, 0, 1, 1, 1, 2] and s1.multiplicity.tolist() == [2, 4, 2]


def test_pack_without_masks_days_per_pixel_and_without_an_orbit():
    window = small_window(np.float32)
    doys = np.arange(1, 7, dtype=np.int32).reshape(3, 1, 2)
    s2, s1 = packing.pack(Observations(window.s2_bands, None, doys, ()), released("v2-nano"))
    assert s2.bands.dtype == np.float32 and s2.offsets.tolist() == [0, 3, 6]
    assert s2.doy.tolist() == [1, 3, 5, 2, 4, 6]
    assert s1.bands.shape == (0, 2) and s1.offsets.tolist() == [0, 0, 0]


def test_pack_v1_0():
    window = small_window()
    spec = released("v1.0")
    s2, s1 = packing.pack(window, spec, seed=4, row0=7)
    drawn = packing.draw(2, 4, 7, 0, 0)  # pixel 0: two clear dates, fewer than 40
    assert s2.multiplicity[:2].tolist() == np.bincount(drawn).tolist()
    assert s2.steps[:40].tolist() == drawn.tolist() and s2.step_offsets.tolist() == [0, 40, 80]
    cloudy = packing.draw(3, 4, 7, 1, 0)  # pixel 1: none clear, drawn from all dates, raw
    first = s2.offsets[1]
    assert s2.doy[first:][s2.steps[40:]].tolist() == (100 + cloudy).tolist()
    assert s2.bands[first].tolist() == window.s2_bands[cloudy[0], 0, 1].tolist()
    unseen = packing.draw(4, 4, 7, 1, 1)  # Sentinel-1 of pixel 1: all four zero dates
    days = np.array([50, 60, 20, 30])
    assert s1.doy[s1.offsets[1] :][s1.steps[40:]].tolist() == days[unseen].tolist()
    assert not s1.bands[s1.offsets[1] :].any()


def test_pack_v1_0_without_replacement():
    s2_dates = 50
    window = small_window(s2_dates=s2_dates)
    window.s2_masks[:] = 1
    s2, _ = packing.pack(window, released("v1.0"))
    assert (s2.multiplicity == 1).all() and s2.offsets.tolist() == [0, 40, 80]
    assert s2.steps.tolist() == [*range(40)] * 2


def test_pack_v1_0_skips_a_pixel_without_sentinel_2_values():
    window = small_window()
    window.s2_bands[:, 0, 0] = 0
    for packed in packing.pack(window, released("v1.0")):
        assert packed.offsets[1] == 0 and packed.step_offsets.tolist() == [0, 0, 40]


def test_pack_v1_0_dummy_orbit():
    window = small_window()
    ascending_only = Observations(
        window.s2_bands, window.s2_masks, window.s2_doys, window.orbits[:1]
    )
    _, s1 = packing.pack(ascending_only, released("v1.0-qat"))
    assert s1.doy[: s1.offsets[1]].tolist() == [60], "the dummy row is zero, so it is not valid"
    dummy = s1.doy[s1.offsets[1] :] == 180  # pixel 1 has no valid date: drawn from all three
    assert dummy.any() and (s1.orbit[s1.offsets[1] :] == dummy).all()
    _, s1 = packing.pack(ascending_only, released("v1.0"))
    assert 180 not in s1.doy

    no_orbit = Observations(window.s2_bands, window.s2_masks, window.s2_doys, ())
    _, s1 = packing.pack(no_orbit, released("v1.0-qat"))
    assert set(s1.doy.tolist()) == {180} and not s1.bands.any()
    with pytest.raises(InputError, match="Sentinel-1"):
        packing.pack(no_orbit, released("v1.0"))
