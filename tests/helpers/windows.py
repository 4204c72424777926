"""Windows of made-up observations, in every layout that a caller's arrays may have."""

from dataclasses import replace

import numpy as np

from tessera_fast.packing import MAX_DATES, Observations, Orbit
from tessera_fast.spec import released

SPECS = {name: released(name) for name in ("v2-nano", "v1.1-mpc", "v1.0", "v1.0-qat")}
# v2's rule with the padded sequence written out, so that its order is compared too
SPECS["v2 with steps"] = replace(SPECS["v1.1-mpc"], name="v2 with steps", sampling="v2")


EVERY_N = [*range(301), *range(301, 2000, 37), 4096, 65_534, 65_535]


def day(date: int) -> int:
    return date % 366 + 1


def one_pixel(n: int) -> Observations:
    """n clear Sentinel-2 dates after one cloudy one; no Sentinel-1."""
    bands = np.broadcast_to(np.uint16(7), (n + 1, 1, 1, 1)).repeat(10, axis=-1)
    masks = np.ones((n + 1, 1, 1), np.uint8)
    masks[0] = 0
    days = np.array([day(k - 1) for k in range(n + 1)], np.int32)
    if n == MAX_DATES:  # the cloudy date would be one too many
        return Observations(bands[1:], masks[1:], days[1:], ())
    return Observations(bands, masks, days, ())


def random_window(
    seed: int,
    shape=(3, 5),
    dates=(9, 6, 4),
    clear=0.6,
    s2_dtype=np.uint16,
    s1_dtype=np.int16,
    per_pixel_days=False,
    masked=True,
    dummy=(),
) -> Observations:
    """Random series; ``dates`` of Sentinel-2, ascending, descending, None = no such orbit."""
    rng = np.random.default_rng(seed)

    def days(n: int) -> np.ndarray:
        return rng.integers(1, 367, (n, *shape) if per_pixel_days else n, dtype=np.int32)

    def values(n: int, channels: int, top: int, dtype: type) -> np.ndarray:
        return rng.integers(0, top, (n, *shape, channels)).astype(dtype)

    bands = values(dates[0], 10, 20_000, s2_dtype)
    masks = (rng.random((dates[0], *shape)) < clear).astype(np.uint8)
    masks *= rng.choice(np.array([1, 255], np.uint8), masks.shape)  # not 0 is clear
    orbits = []
    for index, n in enumerate(dates[1:]):
        if n is not None:
            sar = values(n, 2, 3, s1_dtype)  # a third of the values 0: one band, or both
            sar[rng.random((n, *shape)) >= clear] = 0
            orbits.append(Orbit(index, sar, days(n)))
    return Observations(bands, masks if masked else None, days(dates[0]), tuple(orbits))


def strided(a):
    """Every second row and third column of a larger array, dates backwards."""
    big = np.full((a.shape[0], 2 * a.shape[1], 3 * a.shape[2], *a.shape[3:]), 1, a.dtype)
    view = big[::-1, ::2, ::3]
    view[:] = a
    return view


def transposed(a):
    """(H, W, T, C) in memory: what a list of pixel series is."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, 2)), 2, 0)


def unaligned(a):
    raw = np.frombuffer(b"\0" + a.tobytes(), a.dtype, offset=1).reshape(a.shape)
    assert a.itemsize == 1 or not raw.flags.aligned
    return raw


LAYOUTS = [strided, transposed, unaligned]


def laid_out(window: Observations, layout, **days) -> Observations:
    orbits = tuple(
        replace(o, bands=layout(o.bands), doys=layout(o.doys) if o.doys.ndim == 3 else o.doys)
        for o in window.orbits
    )
    doys = window.s2_doys
    return replace(
        window,
        s2_bands=layout(window.s2_bands),
        s2_masks=layout(window.s2_masks),
        orbits=orbits,
        s2_doys=layout(doys) if doys.ndim == 3 else doys,
    )


def small_window(dtype=np.uint16, s2_dates=3):
    """1 x 2 pixels. Pixel 0: dates 0 and 2 clear, one ascending and two descending dates seen.
    Pixel 1: nothing seen.
    """
    s2 = (np.arange(s2_dates * 20).reshape(s2_dates, 1, 2, 10) + 1).astype(dtype)
    masks = np.zeros((s2_dates, 1, 2), np.uint8)
    masks[[0, 2], 0, 0] = 1, 255
    asc, desc = np.zeros((2, 1, 2, 2), np.int16), np.zeros((2, 1, 2, 2), np.int16)
    asc[1, 0, 0] = 0, 5  # VV is 0, VH is not: observed
    desc[0, 0, 0], desc[1, 0, 0] = (6, 0), (7, 8)
    doys = np.arange(100, 100 + s2_dates, dtype=np.int32)
    orbits = (
        Orbit(0, asc, np.array([50, 60], np.int32)),
        Orbit(1, desc, np.array([20, 30], np.int32)),
    )
    return Observations(s2, masks, doys, orbits)
