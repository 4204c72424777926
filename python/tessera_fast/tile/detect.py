"""Units, orders and masks that look wrong: what the numbers of a tile tell before it is embedded.

Thresholds come from real tiles, two of farmland and one of forest, and the synthetic one, whole and
in parts of a few pixels; comments give the values they are between. P sampled pixels and dates.
"""

import numpy as np

from ..spec import S2_BANDS
from .arrays import RowArray
from .fields import ORBITS
from .tile import Tile
from .units import OFFSET

_SAMPLES = 2048  # pixels and dates judged of an array: shares to a few percent
_LINES = 64, 512  # at least and at most that many image rows of one date are read
_COLUMNS = 512  # of a line: 64 lines of ten bands are 640 KB
_LEAST = 40  # samples that a share or a median is believed of

_AT = {band: i for i, band in enumerate(S2_BANDS)}
_B02, _B03, _B04, _B05, _B08, _B8A, _B11, _B12 = (
    _AT[band] for band in ("B02", "B03", "B04", "B05", "B08", "B8A", "B11", "B12")
)
_PLATEAU = np.array([band in ("B06", "B07", "B08", "B8A") for band in S2_BANDS])


def _swapped(a: str, b: str) -> tuple[str, ...]:
    return tuple({a: b, b: a}.get(band, band) for band in S2_BANDS)


# Orders in which products and programs hold the bands, to name the one that a tile seems to have.
_ORDERS = {
    "wavelengths": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    "10 m before 20 m": ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12"),
    "reversed": S2_BANDS[::-1],
    "blue green red first": ("B02", "B03", "B04", *S2_BANDS[3:]),
    "red green blue first": ("B04", "B03", "B02", *S2_BANDS[3:]),
    "B04 and B08 swapped": _swapped("B04", "B08"),
    "B08 and B11 swapped": _swapped("B08", "B11"),
    "B11 and B12 swapped": _swapped("B11", "B12"),
}
_ORDER = "bands: expected the order " + " ".join(S2_BANDS)


def suspicions(tile: Tile) -> list[str]:
    """What looks wrong in ``tile``, a sentence each: seen, expected, what to do. Empty: nothing.

    Reads some lines of every array, about 1 MB at most. Sees Sentinel-2 bands in another order (not
    B08 for B8A or B03 for B04; B02 for B04 where there is bare soil), with ESA's offset, or as
    reflectance 0..1; Sentinel-1 in dB or linear power, or with VV and VH swapped; masks that are
    inverted, nowhere clear, or clear where Sentinel-2 has no data; dates of several years. A tile
    without land tells less. Raises InputError as reading does.
    """
    lines = _lines(tile.s2_bands)
    bands = _sampled(tile.s2_bands, lines)
    clear = _sampled(tile.s2_masks, lines) != 0
    # Zeros are outside the swath, NaN is what was cut away: of neither anything can be said.
    zero = (bands == 0).all(1)
    seen = np.isfinite(bands).all(1) & ~zero
    found = _of_years(tile) + _of_zeros(zero, clear, _sampled_days(tile, lines))
    found += _of_sentinel2(bands[seen], clear[seen])
    for orbit in tile.orbits:
        found += _of_sentinel1(ORBITS[orbit.index], _sampled(orbit.bands, _lines(orbit.bands)))
    return found


def _lines(array: RowArray) -> tuple[np.ndarray, np.ndarray, slice]:
    """Dates, rows and columns of lines that are spread over an array."""
    dates, height, width = array.shape[:3]
    count = int(np.clip(_SAMPLES // width, *_LINES))
    if dates * height <= 4 * count:  # in one piece, which is quicker
        count = dates * height
    picks = np.linspace(0, dates * height - 1, count).astype(np.int64)
    left = max(0, (width - _COLUMNS) // 2)
    return picks // height, picks % height, slice(left, min(width, left + _COLUMNS))


def _sampled(array: RowArray, lines: tuple[np.ndarray, np.ndarray, slice]) -> np.ndarray:
    """Pixels of ``lines``, (P,) or (P, C) float32."""
    found = array.lines(*lines)
    values = found.reshape(found.shape[0] * found.shape[1], *found.shape[2:])
    return values[:: -(-len(values) // _SAMPLES)].astype(np.float32)


def _sampled_days(tile: Tile, lines: tuple[np.ndarray, np.ndarray, slice]) -> np.ndarray:
    """Days of year of what `_sampled` gives, (P,)."""
    dates, _, columns = lines
    width = len(range(tile.width)[columns])
    values = np.repeat(tile.s2_doys[dates], width)
    return values[:: -(-len(values) // _SAMPLES)]


def _of_years(tile: Tile) -> list[str]:
    if tile.period is not None or len(tile.years) < 2:
        return []
    return [
        f"dates: they are of {' and '.join(map(str, tile.years))}, expected those of one year, as "
        f"the models read days of year; choose with period={tile.years[-1]} "
        f"(--period {tile.years[-1]}), or the first and last day"
    ]


def _of_zeros(zero: np.ndarray, clear: np.ndarray, days: np.ndarray) -> list[str]:
    """0 in all bands is Sentinel-2's own value for no data; even water is not so dark."""
    wrong = zero & clear
    if not wrong.any():
        return []
    which = np.unique(days[wrong]).tolist()
    some = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
    share = 100 * wrong.sum() / clear.sum()
    return [
        f"bands: {share:.2g} % of sampled clear observations are 0 in all bands (days of year "
        f"{some}), expected the mask to be 0 where there is no data; set it so, or restore what is "
        "missing, such as chunks of a cube that were not copied"
    ]


def _of_sentinel2(bands: np.ndarray, clear: np.ndarray) -> list[str]:
    if len(clear) < _LEAST:
        return []
    found = []
    if not clear.any():
        return [
            f"masks: none of {len(clear)} sampled observations is clear, expected 1 where a pixel "
            "is; check that 1 means clear"
        ]
    # Clouds are bright in every band, snow is not in B11 and B12: the darkest band of ten tells, in
    # any order. Its median is 2400 to 3100 in clouds and 50 to 610 in clear pixels.
    darkest = bands.min(1)
    if min(clear.sum(), (~clear).sum()) >= max(_LEAST, len(clear) // 10):
        here, there = float(np.median(darkest[clear])), float(np.median(darkest[~clear]))
        if here > 1.5 * max(there, 1):
            found.append(
                f"masks: clear pixels are brighter than the others (darkest band {here:.0f} and "
                f"{there:.0f}), expected clouds to be; 1 means clear: invert the masks"
            )
            clear = ~clear
    values = bands[clear]
    if len(values) < _LEAST:
        return found
    if (values <= 2).mean() > 0.99:  # 99 % are at most 3300 to 9800
        return [
            *found,
            "bands: nearly all values are from 0 to 2, expected digital numbers (reflectance x "
            "10,000); multiply by 10,000",
        ]
    if _has_offset(values):
        found.append(
            f"bands: clear pixels are nowhere darker than about {OFFSET}, expected dark bands of "
            "vegetation and water below 500; if ESA's offset is still there, open the tile with "
            "s2_offset='present'"
        )
        values = values - OFFSET
    return found + _of_order(values)


def _has_offset(values: np.ndarray) -> bool:
    """Bright in all bands, and yet with pixels that are dark or green once OFFSET is subtracted.

    The tenth percentile of the darkest band is 25 to 320, and 1025 to 1320 with the offset (not the
    first: of a year some dates may be from before the offset). Bright desert is no lower, but does
    not have vegetation's contrast without OFFSET: at least 20 % of pixels of the real tiles do.
    """
    if (values.min(1) < 0.95 * OFFSET).mean() > 0.1:
        return False
    red, infrared = values[:, _B04] - OFFSET, values[:, _B08] - OFFSET
    green = (infrared >= 1500) & (infrared >= 4 * np.maximum(red, 0))  # NDVI of at least 0.6
    dark = values[:, _B12] < 1.3 * OFFSET
    return bool((green | dark).mean() >= 0.05)


def _of_order(values: np.ndarray) -> list[str]:
    """Leaves have four bright bands, B06 B07 B08 B8A, and at least five dark ones. Which pixels are
    leaves is told from sorted values, and so does not depend on the order that is in question."""
    ordered = np.partition(values, (4, 7), axis=1)
    # The third brightest against the fifth darkest: soil, sand, snow and water have no such step.
    leaves = values[(ordered[:, 7] >= 1500) & (ordered[:, 7] >= 2.5 * ordered[:, 4])]
    if len(leaves) >= _LEAST:
        share = _as_leaves(leaves)  # at least 0.98 in the right order, at most 0.04 in another
        if share < 0.5:
            fits = [n for n, o in _ORDERS.items() if _as_leaves(leaves[:, _official(o)]) > 0.8]
            seen = f"; they fit: {' or '.join(fits)}" if fits else ""
            return [
                f"{_ORDER}, got {100 * (1 - share):.0f} % of vegetated pixels that do not have the "
                f"spectrum of leaves (brightest in B06 B07 B08 B8A){seen}; reorder the bands"
            ]
    # Soil is brighter towards longer waves. Picked by bands whose order was just found right.
    step = values[:, _B8A] / np.maximum(values[:, _B05], 1)
    soil = values[
        (step > 1.05) & (step < 1.8) & (values[:, _B11] > np.maximum(values[:, _B8A], 1500))
    ]
    if len(soil) >= _LEAST:
        share = float((soil[:, _B04] > soil[:, _B02]).mean())  # 0.75 to 1
        if share < 0.2:
            return [
                f"{_ORDER}, got {100 * (1 - share):.0f} % of bare pixels brighter in B02 than in "
                "B04; swap the two"
            ]
    return []


def _as_leaves(leaves: np.ndarray) -> float:
    """Share of pixels that are brightest in the plateau, rise to it, and are green, not blue."""
    brightest = leaves.argpartition(7, axis=1)[:, 7:]
    right = _PLATEAU[brightest].all(1)
    right &= leaves[:, _B05] <= leaves[:, _PLATEAU].min(1)
    right &= leaves[:, _B03] >= leaves[:, _B02]
    right &= leaves[:, _B11] >= leaves[:, _B12]
    return float(right.mean())


def _official(order: tuple[str, ...]) -> list[int]:
    """Where the bands of the official order are in ``order``."""
    return [order.index(band) for band in S2_BANDS]


def _of_sentinel1(name: str, values: np.ndarray) -> list[str]:
    values = values[np.isfinite(values).all(1) & (values != 0).any(1)]
    if len(values) < _LEAST:
        return []
    found = []
    below = float((values < 0).mean())  # 0, as the official scale is cut there
    # 99 % of values of the official scale are at most 7500 to 10400.
    if below > 0.05 or (values < 100).mean() > 0.99:
        units = "dB (s1_units='db')" if below > 0.05 else "linear power (s1_units='power')"
        found.append(
            f"{name}: values are from {values.min():.3g} to {values.max():.3g}, expected the "
            f"official scale, thousands from 0 to 32767; they look like {units}"
        )
    vv, vh = values[(values != 0).all(1)].T
    # VH is the stronger in less than 5 % of pixels: its median is 2200 to 3100 lower.
    if len(vv) >= _LEAST and (vh > vv).mean() > 0.8:
        found.append(
            f"{name}: VH is stronger than VV (medians {np.median(vh):.4g}, {np.median(vv):.4g}), "
            "expected VV before VH, and VV the stronger over land; swap them"
        )
    return found
