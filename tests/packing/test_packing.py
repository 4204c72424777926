"""The native packer against the naive statement of every rule: all integers equal."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_fast.errors import InputError
from tessera_fast.packing import MAX_DATES, Observations, Orbit, PackedTokens, pack
from tessera_fast.reference import packing as naive
from windows import EVERY_N, LAYOUTS, SPECS, day, laid_out, one_pixel, random_window

EXACT = settings(deadline=None, derandomize=True, max_examples=300)


# ---- the rule of a sequence, in plain Python


def rule(n: int, sampling: str) -> list[int]:
    """The padded sequence of n dates, stated without numpy."""
    length = min(-(-n // 8) * 8, 256)
    fillers = length - n
    if fillers < 0:
        if sampling == "v1.1":
            return middles(n, 256)
        step = (n - 1) / 255.0
        return [*(int(k * step) for k in range(255)), n - 1]
    if sampling == "v1.1":
        step = (n - 1) / (fillers + 1)
        spread = [round((k + 1) * step) for k in range(fillers)]  # half to even
    else:
        spread = middles(n, fillers) if fillers <= n else [k % n for k in range(fillers)]
    return [*range(n), *spread]


def middles(n: int, chunks: int) -> list[int]:
    """Element len // 2 of each of ``chunks`` parts of 0..n-1, the first n % chunks one longer."""
    found, start = [], 0
    for c in range(chunks):
        size = n // chunks + (c < n % chunks)
        found.append(start + size // 2)
        start += size
    return found


@pytest.mark.parametrize("sampling", ["v2", "v1.1"])
def test_the_reference_states_the_rule(sampling):
    for n in EVERY_N:
        assert naive.sequence(n, sampling).tolist() == rule(n, sampling), n


@pytest.mark.parametrize("name", ["v2 with steps", "v1.1-mpc"])
def test_sequence_of_every_length(name):
    spec = SPECS[name]
    for n in EVERY_N:
        s2, _, counts = pack(one_pixel(n), spec)
        expected = rule(n, spec.sampling)
        kept = sorted(set(expected))
        assert s2.doy.tolist() == [day(k) for k in kept], n
        assert [kept[k] for k in s2.steps] == expected, n
        assert s2.multiplicity.tolist() == [expected.count(k) for k in kept], n
        assert counts.tolist() == [[n, 0, 0]]


# ---- whole windows


def check(observations: Observations, spec, seed=0, row0=0, threads=(1, 2)) -> None:
    """Native and naive results are the same arrays, for every number of threads."""
    expected = naive.pack(observations, spec, seed, row0)
    for n in threads:
        s2, s1, counts = pack(observations, spec, row0=row0, seed=seed, threads=n)
        assert_same(s2, expected[0])
        assert_same(s1, expected[1])
        assert counts.dtype == np.uint16
        assert np.array_equal(counts, observed_dates(observations))


def assert_same(got: PackedTokens, expected: PackedTokens) -> None:
    for field in fields(PackedTokens):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name)
            assert a.shape == b.shape and a.flags.c_contiguous, field.name
        else:
            assert a is b, field.name


def observed_dates(observations: Observations) -> np.ndarray:
    counts = np.zeros((*observations.shape, 3), int)
    masks = observations.s2_masks
    counts[..., 0] = len(observations.s2_bands) if masks is None else (masks != 0).sum(0)
    for orbit in observations.orbits:
        counts[..., 1 + orbit.index] = (orbit.bands != 0).any(-1).sum(0)
    return counts.reshape(-1, 3)


@EXACT
@given(
    name=st.sampled_from(sorted(SPECS)),
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 5), (1, 13), (7, 2), (11, 1)]),
    s2_dates=st.one_of(st.integers(1, 24), st.integers(36, 60), st.integers(250, 300)),
    asc=st.one_of(st.none(), st.integers(0, 45)),
    desc=st.one_of(st.none(), st.integers(0, 45)),
    clear=st.sampled_from([0.0, 0.1, 0.6, 0.95, 1.0]),
    s2_dtype=st.sampled_from([np.uint16, np.float32, np.int16]),
    s1_dtype=st.sampled_from([np.int16, np.float32, np.uint16]),
    per_pixel_days=st.booleans(),
    masked=st.booleans(),
    row0=st.integers(0, 100_000),
)
def test_window_equals_reference(
    name, seed, shape, s2_dates, asc, desc, clear, s2_dtype, s1_dtype, per_pixel_days, masked, row0
):
    window = random_window(
        seed, shape, (s2_dates, asc, desc), clear, s2_dtype, s1_dtype, per_pixel_days, masked
    )
    spec = SPECS[name]
    if spec.sampling == "v1.0" and not spec.dummy_orbit and not (asc or desc):
        for packer in (naive.pack, pack):
            with pytest.raises(InputError, match="Sentinel-1"):
                packer(window, spec)
    else:
        check(window, spec, seed=seed, row0=row0, threads=(1, 3))


@pytest.mark.parametrize("name", ["v2-nano", "v2 with steps", "v1.1-mpc", "v1.0"])
def test_every_number_of_dates_in_one_window(name):
    """Pixel k has k valid dates of both streams, 0..300, in the order of the list."""
    n, rng = 300, np.random.default_rng(0)
    order = rng.permuted(np.broadcast_to(np.arange(n), (n + 1, n)), axis=1).T  # (T, W)
    seen = (order < np.arange(n + 1))[:, None]
    assert (seen.sum(0) == np.arange(n + 1)).all()
    window = random_window(1, (1, n + 1), (n, 200, n - 200), clear=1)
    orbits = tuple(
        replace(o, bands=np.where(part[..., None], np.maximum(o.bands, 1), 0).astype(np.int16))
        for o, part in zip(window.orbits, (seen[:200], seen[200:]), strict=True)
    )
    check(replace(window, s2_masks=seen.astype(np.uint8), orbits=orbits), SPECS[name], seed=3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 97), (97, 1), (13, 17)])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_threads_and_windows_of_any_shape(name, shape):
    check(random_window(5, shape), SPECS[name], seed=9, row0=2, threads=(1, 2, 3, 100))


# ---- memory layouts


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["v1.1-mpc", "v1.0-qat"])
def test_views_of_any_layout(name, layout, dtype):
    window = random_window(2, (5, 4), (12, 7, 3), s2_dtype=dtype, per_pixel_days=True)
    expected = naive.pack(window, SPECS[name], 4)
    for got, want in zip(
        pack(laid_out(window, layout), SPECS[name], seed=4), expected, strict=False
    ):
        assert_same(got, want)


def test_broadcast_views():
    """One series for all pixels: strides of 0."""
    window = random_window(3, (1, 1), (40, 20, 10), per_pixel_days=True)

    def spread(a):
        return np.broadcast_to(a, (a.shape[0], 3, 4, *a.shape[3:]))

    for spec in SPECS.values():
        check(laid_out(window, spread), spec)


def test_memory_mapped_rows(tmp_path):
    window = random_window(4, (8, 6), (15, 5, 5))

    numbers = itertools.count()

    def mapped(a):
        path = tmp_path / f"{next(numbers)}.npy"
        np.save(path, a)
        return np.load(path, mmap_mode="r")

    rows = laid_out(window, mapped).window(slice(2, 7), slice(None))
    assert isinstance(rows.s2_bands, np.memmap)
    for spec in SPECS.values():
        check(rows, spec, row0=2)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_bands_of_rows_are_the_rows_of_the_tile(name):
    window, spec = random_window(6, (9, 4), (50, 30, 20)), SPECS[name]
    whole = pack(window, spec, seed=7, row0=100)
    for start, stop in ((0, 1), (1, 5), (5, 9)):
        part = pack(window.window(slice(start, stop), slice(None)), spec, seed=7, row0=100 + start)
        assert np.array_equal(part[2], whole[2][start * 4 : stop * 4])
        for got, tile in zip(part[:2], whole[:2], strict=True):
            tokens = slice(tile.offsets[start * 4], tile.offsets[stop * 4])
            assert np.array_equal(got.bands, tile.bands[tokens])
            assert np.array_equal(got.doy, tile.doy[tokens])
            assert np.array_equal(got.multiplicity, tile.multiplicity[tokens])
            if got.steps is not None:
                steps = slice(tile.step_offsets[start * 4], tile.step_offsets[stop * 4])
                assert np.array_equal(got.steps, tile.steps[steps])


# ---- orbits that are not there


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize(
    "dates",
    [(5, None, None), (5, 3, None), (5, None, 3), (5, 0, 0), (5, 0, 3), (5, 3, 0), (5, 0, None)],
)
@pytest.mark.parametrize("name", sorted(SPECS))
def test_orbits_that_are_absent_or_without_dates(name, dates, dtype):
    spec = SPECS[name]
    s1_dtype = np.int16 if dtype == np.uint16 else np.float32
    window = random_window(8, (3, 3), dates, s2_dtype=dtype, s1_dtype=s1_dtype)
    if spec.sampling == "v1.0" and not spec.dummy_orbit and not sum(d or 0 for d in dates[1:]):
        with pytest.raises(InputError, match="Sentinel-1"):
            pack(window, spec)
    else:
        check(window, spec, seed=1)


def test_an_orbit_without_dates_does_not_decide_the_dtype():
    window = random_window(8, (2, 2), (5, 3, None))
    none = Orbit(1, np.zeros((0, 2, 2, 2), np.float32), np.zeros(0, np.int32))
    s1 = pack(replace(window, orbits=(*window.orbits, none)), SPECS["v2-nano"])[1]
    assert s1.bands.dtype == np.int16


def test_orbits_of_two_dtypes_become_float32():
    window = random_window(8, (2, 2), (5, 3, 4))
    asc, desc = window.orbits
    mixed = (asc, replace(desc, bands=desc.bands.astype(np.float32)))
    s1 = pack(replace(window, orbits=mixed), SPECS["v2-nano"])[1]
    same = pack(window, SPECS["v2-nano"])[1]
    assert s1.bands.dtype == np.float32 and np.array_equal(s1.bands, same.bands)


def test_pixel_with_all_zero_sentinel_2_is_not_drawn():
    window = random_window(9, (2, 3), (50, 3, 3), s2_dtype=np.float32)
    window.s2_bands[:, 1, 2] = -0.0
    for name in ("v1.0", "v1.0-qat"):
        check(window, SPECS[name], seed=2)
        s2, s1, _ = pack(window, SPECS[name])
        assert s2.offsets[-1] == s2.offsets[-2] and s1.offsets[-1] == s1.offsets[-2]


# ---- bad input


def test_mask_beyond_one_is_named_with_its_place():
    window = random_window(1, (3, 4))
    masks = np.minimum(window.s2_masks, 1)
    pack(replace(window, s2_masks=masks), SPECS["v2-nano"], binary_masks=True)
    masks[5, 2, 3] = 2
    broken = replace(window, s2_masks=masks)
    with pytest.raises(InputError, match=r"got 2 at date 5, row 12, column 3"):
        pack(broken, SPECS["v2-nano"], binary_masks=True, row0=10)
    check(broken, SPECS["v2-nano"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    window = random_window(1, (3, 4), clear=1, s2_dtype=np.float32, s1_dtype=np.float32)
    window.s2_masks[2, 1, 1] = 0
    window.s2_bands[2, 1, 1] = value
    expected = naive.pack(window, SPECS["v2-nano"])
    for got, want in zip(pack(window, SPECS["v2-nano"])[:2], expected, strict=True):
        assert_same(got, want)  # a date that is not observed may hold anything
    window.s2_masks[2, 1, 1] = 1
    with pytest.raises(InputError, match=r"Sentinel-2.*date 2, row 8, column 1, band 0"):
        pack(window, SPECS["v2-nano"], row0=7)
    window.s2_masks[2, 1, 1] = 0
    window.orbits[1].bands[3, 0, 2, 1] = value
    with pytest.raises(InputError, match=r"Sentinel-1.*date 3, row 0, column 2, band 1"):
        pack(window, SPECS["v2-nano"], threads=3)


def test_too_many_dates():
    def dates(n):
        return np.broadcast_to(np.uint16(1), (n, 1, 1, 10)), np.ones(n, np.int32)

    bands, doys = dates(MAX_DATES + 1)
    with pytest.raises(InputError, match="Sentinel-2: expected at most 65,535 dates, got 65,536"):
        pack(Observations(bands, None, doys, ()), SPECS["v2-nano"])
    orbits = tuple(Orbit(i, bands[:32_768, ..., :2], doys[:32_768]) for i in (0, 1))
    few = Observations(bands[:5], None, doys[:5], orbits)
    with pytest.raises(InputError, match="Sentinel-1: expected at most 65,535 dates, got 65,536"):
        pack(few, SPECS["v2-nano"])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits(seed):
    with pytest.raises(InputError, match="seed"):
        pack(random_window(1), SPECS["v1.0"], seed=seed)
