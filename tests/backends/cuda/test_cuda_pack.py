"""Packing on the device against csrc/pack: all arrays and all messages equal.

The kernels run on CPU tensors by emulation, and on a GPU where there is one.
"""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_resources import by_architecture
from tessera_fast.errors import InputError
from tessera_fast.packing import MAX_DATES, Observations, Orbit, PackedTokens, pack
from windows import EVERY_N, LAYOUTS, SPECS, laid_out, one_pixel, random_window

torch = pytest.importorskip("torch", reason="device arrays are torch tensors")
from tessera_fast.backends.cuda.packer import DevicePacker  # noqa: E402

NARROW = {"doy": np.uint16, "multiplicity": np.uint16}  # bits of what is int16 on the device
LONG = {"offsets": np.int64, "step_offsets": np.int64}


@pytest.fixture(scope="module", params=["emulated", "cuda"])
def packer(request):
    """A function of (spec, bytes of a staging buffer) -> DevicePacker."""
    name = "_cuda_emulated" if request.param == "emulated" else "_cuda"
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    native = pytest.importorskip(
        f"tessera_fast.{name}", reason=f"built without {name}: see CMakeLists.txt"
    )
    device = torch.device("cpu" if request.param == "emulated" else "cuda")

    def make(spec, staging_bytes=1 << 16):
        return DevicePacker(spec, device, native, staging_bytes)

    return make


def check(packer, observations: Observations, spec, *, staging_bytes=1 << 16, **options) -> None:
    expected = pack(observations, spec, threads=1, **options)
    device_packer = packer(spec, staging_bytes)
    packed = device_packer.pack(observations, **options)
    with device_packer.on_stream():  # before the other stream may read them
        counts = packed[2].cpu().numpy()
    device_packer.hand_over(packed)
    for got, want in zip(packed[:2], expected[:2], strict=True):
        assert_same(got, want)
    assert counts.dtype == np.uint16
    np.testing.assert_array_equal(counts, expected[2])


def assert_same(got: PackedTokens, expected: PackedTokens) -> None:
    for field in fields(PackedTokens):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if not isinstance(b, np.ndarray):
            assert a is b, field.name
            continue
        a = a.cpu().numpy()
        if field.name in NARROW:
            assert a.dtype == np.int16
            a = a.view(np.uint16)
        elif field.name in LONG:
            assert a.dtype == np.int32
            a = a.astype(np.int64)
        assert a.dtype == b.dtype and a.shape == b.shape, field.name
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8), err_msg=field.name)


def check_error(packer, observations: Observations, spec, **options) -> str:
    """Both raise the same message, which is returned."""
    with pytest.raises(InputError) as expected:
        pack(observations, spec, threads=1, **options)
    with pytest.raises(InputError) as got:
        packer(spec).pack(observations, **options)
    assert str(got.value) == str(expected.value)
    return str(got.value)


# ---- the same tokens


@settings(deadline=None, derandomize=True, max_examples=250)
@given(
    name=st.sampled_from(sorted(SPECS)),
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 5), (1, 13), (7, 2), (11, 1), (5, 7)]),
    s2_dates=st.one_of(st.integers(1, 24), st.integers(31, 65), st.integers(250, 300)),
    asc=st.one_of(st.none(), st.integers(0, 45)),
    desc=st.one_of(st.none(), st.integers(0, 45)),
    clear=st.sampled_from([0.0, 0.1, 0.6, 0.95, 1.0]),
    s2_dtype=st.sampled_from([np.uint16, np.float32, np.int16]),
    s1_dtype=st.sampled_from([np.int16, np.float32, np.uint16]),
    per_pixel_days=st.booleans(),
    masked=st.booleans(),
    row0=st.integers(0, 100_000),
    staging_bytes=st.sampled_from([1, 100, 1000, 1 << 16]),
)
def test_window_equals_the_host(
    packer,
    name,
    seed,
    shape,
    s2_dates,
    asc,
    desc,
    clear,
    s2_dtype,
    s1_dtype,
    per_pixel_days,
    masked,
    row0,
    staging_bytes,
):
    window = random_window(
        seed, shape, (s2_dates, asc, desc), clear, s2_dtype, s1_dtype, per_pixel_days, masked
    )
    spec = SPECS[name]
    if spec.sampling == "v1.0" and not spec.dummy_orbit and not (asc or desc):
        assert "Sentinel-1" in check_error(packer, window, spec, seed=seed)
    else:
        check(packer, window, spec, staging_bytes=staging_bytes, seed=seed, row0=row0)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_number_of_dates(packer, name):
    """Pixel k has k valid dates of both streams, 0..300, in random places; k below 48 drawn often
    as v1.0 draws 40 with and without replacement."""
    n, rng = 300, np.random.default_rng(0)
    numbers = np.concatenate([np.arange(n + 1), np.arange(1, 48).repeat(3)])
    order = rng.permuted(np.broadcast_to(np.arange(n), (len(numbers), n)), axis=1).T  # (T, W)
    seen = (order < numbers)[:, None]
    assert (seen.sum(0) == numbers).all()
    window = random_window(1, (1, len(numbers)), (n, 200, n - 200), clear=1)
    orbits = tuple(
        replace(o, bands=np.where(part[..., None], np.maximum(o.bands, 1), 0).astype(np.int16))
        for o, part in zip(window.orbits, (seen[:200], seen[200:]), strict=True)
    )
    window = replace(window, s2_masks=seen.astype(np.uint8), orbits=orbits)
    check(packer, window, SPECS[name], seed=3)


@pytest.mark.parametrize("name", ["v2 with steps", "v1.1-mpc"])
def test_many_dates(packer, name):
    for n in (*(n for n in EVERY_N[::8] if n > 300), 4096, MAX_DATES):
        check(packer, one_pixel(n), SPECS[name])


@pytest.mark.parametrize("name", ["v1.0", "v1.0-qat"])
@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_draws_of_many_dates(packer, name, seed):
    n = 5000
    bands = np.ones((n, 1, 3, 10), np.uint16)
    days = np.arange(n, dtype=np.int32) % 366 + 1
    orbit = Orbit(1, np.ones((n, 1, 3, 2), np.int16), days)
    window = Observations(bands, None, days, (orbit,))
    check(packer, window, SPECS[name], seed=seed, row0=2**33)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_more_blocks_than_one(packer, name):
    check(packer, random_window(5, (13, 47), (9, 6, 4)), SPECS[name], seed=9, row0=2)


def test_orbits_that_are_absent_or_without_dates(packer):
    cases = [(5, None, None), (5, 3, None), (5, None, 3), (5, 0, 0), (5, 0, 3), (5, 3, 0)]
    for dates in cases:
        for dtype, s1_dtype in ((np.uint16, np.int16), (np.float32, np.float32)):
            window = random_window(8, (3, 3), dates, s2_dtype=dtype, s1_dtype=s1_dtype)
            for spec in SPECS.values():
                if spec.name == "v1.0" and not sum(d or 0 for d in dates[1:]):
                    check_error(packer, window, spec)
                else:
                    check(packer, window, spec, seed=1)


def test_orbits_of_two_dtypes_become_float32(packer):
    window = random_window(8, (2, 2), (5, 3, 4))
    asc, desc = window.orbits
    mixed = (asc, replace(desc, bands=desc.bands.astype(np.float32)))
    check(packer, replace(window, orbits=mixed), SPECS["v2-nano"])


def test_pixel_with_all_zero_sentinel_2_is_not_drawn(packer):
    for dtype in (np.uint16, np.float32):
        window = random_window(9, (2, 3), (50, 3, 3), s2_dtype=dtype)
        window.s2_bands[:, 1, 2] = np.array(-0.0 if dtype == np.float32 else 0, dtype)
        window.s2_bands[:49, 0, 1] = 0  # only the last date is not
        for name in ("v1.0", "v1.0-qat"):
            check(packer, window, SPECS[name], seed=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_of_any_layout(packer, layout):
    for dtype in (np.uint16, np.float32):
        window = random_window(2, (5, 4), (12, 7, 3), s2_dtype=dtype, per_pixel_days=True)
        for staging_bytes in (50, 500):
            check(packer, laid_out(window, layout), SPECS["v1.1-mpc"], staging_bytes=staging_bytes)


def test_one_packer_for_many_windows(packer):
    """Buffers are used again, also after a window without pixels and after an error."""
    spec = SPECS["v1.1-mpc"]
    device_packer = packer(spec, 300)
    for seed, shape in enumerate([(3, 5), (1, 1), (40, 2)]):
        window = replace(random_window(seed, shape), standardized=seed == 0)
        packed = device_packer.pack(window)
        device_packer.hand_over(packed)
        for got, want in zip(packed[:2], pack(window, spec)[:2], strict=True):
            assert_same(got, want)
        s2, s1, counts = device_packer.pack(random_window(seed, (0, 4)))
        assert s2.offsets.tolist() == s1.step_offsets.tolist() == [0]
        assert s2.bands.shape == (0, 10) and s1.bands.shape == (0, 2) and counts.shape == (0, 3)
        with pytest.raises(InputError, match="got 255"):
            device_packer.pack(random_window(seed), binary_masks=True)


# ---- the same errors


def test_the_first_mask_beyond_one_is_named(packer):
    window = random_window(1, (3, 40), (70, 6, 4))
    masks = np.minimum(window.s2_masks, 1)
    clean = replace(window, s2_masks=masks)
    check(packer, clean, SPECS["v2-nano"], binary_masks=True)
    for place, value in (((5, 2, 3), 2), ((69, 1, 39), 255), ((69, 1, 7), 3), ((40, 1, 30), 9)):
        masks[place] = value
        for name in ("v2-nano", "v1.0"):
            text = check_error(packer, clean, SPECS[name], binary_masks=True, row0=10)
            assert (
                f"got {value} at date {place[0]}, row {10 + place[1]}, column {place[2]};" in text
            )
    check(packer, clean, SPECS["v2-nano"])  # where any value but 0 is clear


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(packer, value):
    window = random_window(1, (3, 4), clear=1, s2_dtype=np.float32, s1_dtype=np.float32)
    spec = SPECS["v2-nano"]
    window.s2_masks[2, 1, 1] = 0
    window.s2_bands[2, 1, 1] = value
    check(packer, window, spec)  # a date that is not observed may hold anything
    window.orbits[1].bands[3, 0, 2, 1] = value
    text = check_error(packer, window, spec, row0=7)
    assert "Sentinel-1" in text and "date 3, row 7, column 2, band 1;" in text
    window.orbits[0].bands[5, 0, 2, 0] = value  # an earlier date of the same pixel
    assert "date 5, row 7, column 2, band 0;" in check_error(packer, window, spec, row0=7)
    window.s2_masks[2, 1, 1] = 1
    window.s2_bands[0, 2, 3, 9] = value
    text = check_error(packer, window, spec, row0=7)
    assert "Sentinel-2" in text and "date 2, row 8, column 1, band 0;" in text
    window.s2_bands[8, 0, 3, 4] = value
    assert "date 8, row 7, column 3, band 4;" in check_error(packer, window, spec, row0=7)


def test_a_value_that_is_not_read_may_be_anything(packer):
    """v2 cuts 300 dates to 256: those that are left out are not looked at."""
    window = random_window(1, (1, 3), (300, 3, 3), clear=1, s2_dtype=np.float32)
    kept = pack(window, SPECS["v2-nano"])[0].doy[:256]
    left_out = next(t for t in range(300) if window.s2_doys[t] != kept[t])
    window.s2_bands[left_out, 0] = np.nan
    check(packer, window, SPECS["v2-nano"])


def test_a_day_that_changed_after_its_check_stays_in_the_table(packer):
    window = random_window(3, (2, 3), (9, 6, 4))
    days = np.int32([-(2**31), -1, 0, 1, 366, 367, 65_535, 65_536, 2**31 - 1])
    s2, _, _ = packer(SPECS["v1.1-mpc"]).pack(replace(window, s2_masks=None, s2_doys=days))
    assert s2.doy.cpu().reshape(-1, 9).unique(dim=0).tolist() == [
        [0, 0, 0, 1, 366, 366, 366, 366, 366]
    ]


def test_arguments_that_are_refused(packer):
    window, spec = random_window(1), SPECS["v1.0"]
    check_error(packer, window, spec, seed=-1)
    check_error(packer, window, spec, seed=2**64)
    check_error(packer, replace(window, s2_bands=window.s2_bands.astype(np.int32)), spec)
    check_error(packer, replace(window, s2_masks=window.s2_masks.astype(bool)), spec)
    check_error(packer, replace(window, s2_masks=window.s2_masks[:, :2]), spec)
    narrow = replace(window.orbits[0], bands=window.orbits[0].bands[:, :, :4])
    check_error(packer, replace(window, orbits=(narrow,)), spec)
    bands, doys = np.broadcast_to(np.uint16(1), (MAX_DATES + 1, 1, 1, 10)), np.ones(MAX_DATES + 1)
    check_error(packer, Observations(bands, None, doys, ()), SPECS["v2-nano"])
    with pytest.raises(InputError, match=r"expected \(T, H, W, 10\)"):
        packer(spec).pack(replace(window, s2_bands=window.s2_bands[..., :9]))
    wide = np.broadcast_to(np.uint16(1), (1, 4096, 4096, 10))
    with pytest.raises(InputError, match=r"at most 8,388,607 pixels, got 16,777,216"):
        packer(SPECS["v2-nano"]).pack(Observations(wide, None, np.ones(1), ()))


def test_the_binding_refuses_impossible_sizes():
    native = pytest.importorskip("tessera_fast._cuda_emulated", reason="TESSERA_TEST_ISAS is off")
    good = {
        "series": [(64, 0, 64, False, 5, 0, 0)],
        "stream": 0,
        "is_float": False,
        "pixels": 6,
        "columns": 3,
        "row0": 0,
        "sampling": "v2",
        "seed": 0,
        "binary_masks": False,
        "bits": 64,
        "counts": 64,
        "skip": 0,
        "errors": 64,
    }
    native.PackInput(**good)
    twice = [(64, 0, 64, False, 5, 1, 0)] * 2
    bad = {
        "series": [],
        "stream": 2,
        "pixels": 0,
        "columns": 4,
        "sampling": "v3",
        "bits": 0,
        "counts": 0,
        "errors": 0,
    }
    for name, value in bad.items():
        with pytest.raises(ValueError):
            native.PackInput(**{**good, name: value})
    with pytest.raises(ValueError, match="column"):
        native.PackInput(**{**good, "stream": 1, "series": twice})
    with pytest.raises(ValueError, match="65,535"):
        native.PackInput(**{**good, "series": [(64, 0, 64, False, 65_536, 0, 0)]})
    with pytest.raises(ValueError, match="skip"):
        native.mark_all_zero(native.PackInput(**good), 0)


# ---- the emulation, and what nvcc makes of the source


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_the_order_of_threads_does_not_matter(order):
    native = pytest.importorskip("tessera_fast._cuda_emulated", reason="TESSERA_TEST_ISAS is off")

    def make(spec, staging_bytes):
        return DevicePacker(spec, torch.device("cpu"), native, staging_bytes)

    native.emulator.set_order(order, 5)
    try:
        for name, spec in SPECS.items():
            check(make, random_window(len(name), (3, 11), (70, 40, 35)), spec, seed=4)
            check(make, random_window(len(name), (1, 5), (290, 20, 20), clear=1), spec, seed=4)
    finally:
        native.emulator.set_order("forward")


def test_the_module_for_gpus_loads_without_one():
    native = pytest.importorskip("tessera_fast._cuda", reason="built without nvcc")
    assert native.runtime_version() >= 11_000
    assert native.arch_list() and all(name[0].isdigit() for name in native.arch_list())


def test_kernels_compile_without_spills():
    for architecture, found in by_architecture("pack").items():
        assert len(found) == 9
        for name, used in found.items():
            assert used.stack == 0, (architecture, name, used)
            assert used.registers <= 64, (architecture, name, used)  # four blocks of 256
