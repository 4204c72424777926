"""Wrong units, orders and masks are told, and right ones are left alone."""

import numpy as np
import pytest

from places import SHARED
from tessera_fast.spec import S2_BANDS
from tessera_fast.synthetic import synthetic_tile
from tessera_fast.tile import open_tile
from tessera_fast.tile.detect import suspicions
from tile_sources import NAMES, flat, in_db, in_power

DATA = SHARED / "data"
REAL = ("flanders_2018", "flanders_2019", "abies_2020")
TILES = (*REAL, "synthetic", "synthetic of 12 x 9")
_arrays: dict[str, dict[str, np.ndarray]] = {}


def arrays_of(name: str) -> dict[str, np.ndarray]:
    if name in REAL and not (DATA / name).is_dir():
        pytest.skip(f"real tiles are not at {DATA}")
    if name not in _arrays:
        made = {"synthetic": (48, 48), "synthetic of 12 x 9": (12, 9)}
        tile = synthetic_tile(*made[name]) if name in made else open_tile(DATA / name)
        _arrays[name] = flat(tile)
    return dict(_arrays[name])


def ordered(order: str):
    columns = [S2_BANDS.index(band) for band in order.split()]
    assert sorted(columns) == list(range(10))
    return lambda data: {"bands": data["bands"][..., columns]}


def radar(change):
    return lambda data: {name: change(data[name]) for name in NAMES if name in data}


ORDER = "bands: expected the order B04 B02 B03 B08 B8A B05 B06 B07 B11 B12, got "
WRONG = {  # what is wrong, and how the sentence begins and goes on
    "reversed": (ordered("B12 B11 B07 B06 B05 B8A B08 B03 B02 B04"), ORDER, "fit: reversed;"),
    "by wavelength": (
        ordered("B02 B03 B04 B05 B06 B07 B08 B8A B11 B12"),
        ORDER,
        "fit: wavelengths;",
    ),
    "10 m first": (
        ordered("B02 B03 B04 B08 B05 B06 B07 B8A B11 B12"),
        ORDER,
        "fit: 10 m before 20 m;",
    ),
    "B04 for B08": (
        ordered("B08 B02 B03 B04 B8A B05 B06 B07 B11 B12"),
        ORDER,
        "fit: B04 and B08 swapped;",
    ),
    "B11 for B08": (
        ordered("B04 B02 B03 B11 B8A B05 B06 B07 B08 B12"),
        ORDER,
        "fit: B08 and B11 swapped;",
    ),
    "B12 for B11": (
        ordered("B04 B02 B03 B08 B8A B05 B06 B07 B12 B11"),
        ORDER,
        "fit: B11 and B12 swapped;",
    ),
    "blue green red": (
        ordered("B02 B03 B04 B08 B8A B05 B06 B07 B11 B12"),
        ORDER,
        "blue green red first",
    ),
    "red green blue": (
        ordered("B04 B03 B02 B08 B8A B05 B06 B07 B11 B12"),
        ORDER,
        "red green blue first",
    ),
    "an order of no product": (
        ordered("B08 B12 B05 B02 B11 B04 B8A B03 B07 B06"),
        ORDER,
        "spectrum of leaves",
    ),
    "offset": (
        lambda data: {"bands": data["bands"] + np.uint16(1000)},
        "bands: clear pixels are nowhere darker than about 1000",
        "s2_offset='present'",
    ),
    "reflectance": (
        lambda data: {"bands": (data["bands"] / 10_000).astype(np.float32)},
        "bands: nearly all values are from 0 to 2",
        "multiply by 10,000",
    ),
    "dB": (radar(in_db), "sar_ascending: values are from", "s1_units='db'"),
    "power": (radar(in_power), "sar_ascending: values are from", "s1_units='power'"),
    "hundredths of dB": (
        radar(lambda v: (100 * np.nan_to_num(in_db(v))).astype(np.int16)),
        "sar_ascending: values are from",
        "s1_units='db'",
    ),
    "VH before VV": (radar(lambda v: v[..., ::-1]), "sar_ascending: VH is stronger", "swap"),
    "inverted masks": (
        lambda data: {"masks": 1 - data["masks"]},
        "masks: clear pixels are brighter",
        "invert",
    ),
    "masks of zeros": (lambda data: {"masks": 0 * data["masks"]}, "masks: none of", "1 means"),
}


@pytest.mark.parametrize("name", TILES)
def test_a_good_tile_is_not_suspected(name):
    assert suspicions(open_tile(arrays_of(name))) == []


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", TILES)
def test_what_is_wrong_is_told(name, case):
    change, begins, goes_on = WRONG[case]
    data = arrays_of(name)
    found = suspicions(open_tile(data | change(data)))
    assert found and found[0].startswith(begins) and goes_on in found[0], found
    assert len(found) == (sum(n in data for n in NAMES) if begins.startswith("sar") else 1)


@pytest.mark.parametrize("name", ["flanders_2018", "flanders_2019", "synthetic"])
def test_blue_for_red_is_told_where_there_is_bare_soil(name):
    data = arrays_of(name)
    found = suspicions(open_tile(data | ordered("B02 B04 B03 B08 B8A B05 B06 B07 B11 B12")(data)))
    assert len(found) == 1 and found[0].startswith(ORDER) and "brighter in B02" in found[0]


def test_several_faults_are_told_together():
    data = arrays_of("synthetic")
    wrong = data | {"bands": data["bands"] + np.uint16(1000)} | radar(in_db)(data)
    found = suspicions(open_tile(wrong | {"masks": 1 - data["masks"]}))
    starts = [s.partition(":")[0] for s in found]
    assert starts == ["masks", "bands", *NAMES]


@pytest.mark.parametrize("name", TILES)
def test_parts_of_a_good_tile_are_not_suspected(name):
    """Windows of any size and place, seasons, and every other date."""
    data = arrays_of(name)
    random = np.random.RandomState(0)
    height, width = data["masks"].shape[1:]
    for _ in range(60):
        h, w = random.randint(1, min(height, 12) + 1), random.randint(1, min(width, 12) + 1)
        y, x = random.randint(0, height - h + 1), random.randint(0, width - w + 1)
        part = {k: v[:, y : y + h, x : x + w] if v.ndim > 1 else v for k, v in data.items()}
        first, count = random.randint(0, len(data["doys"]) // 2), random.randint(8, 40)
        for key in ("bands", "masks", "doys"):
            part[key] = part[key][first : first + count]
        found = suspicions(open_tile(part))
        if part["masks"].any():  # else it is right to say so
            assert found == [], (y, x, h, w, first, count)


def spectra(*percent, pixels=30):
    """A tile of these surfaces by band in the official order, clear on four of five dates."""
    random = np.random.RandomState(1)
    surface = np.array(percent)[np.arange(pixels) % len(percent)] * 100.0
    bands = surface * random.normal(1, 0.05, (5, 1, pixels, 10))
    masks = np.ones((5, 1, pixels), np.uint8)
    bands[2], masks[2] = 6000, 0
    data = {"bands": bands.clip(1).astype(np.uint16), "masks": masks, "doys": np.arange(1, 6)}
    return open_tile(data, allow_missing_s1=True)


#          B04 B02 B03 B08 B8A B05 B06 B07 B11 B12
SAND = (34, 14, 23, 42, 43, 38, 40, 41, 52, 48)
RED_SOIL = (21, 4, 8, 31, 33, 24, 27, 30, 43, 37)
SALT = (50, 40, 46, 53, 53, 51, 52, 53, 40, 33)
SNOW = (85, 88, 87, 80, 78, 84, 82, 80, 8, 6)
WATER = (2, 4, 4, 1, 1, 2, 1.5, 1.4, 0.6, 0.4)
ROOFS = (12, 9, 10.5, 18, 19, 13.5, 15, 16, 21, 18)


@pytest.mark.parametrize("surface", [SAND, RED_SOIL, SALT, SNOW, WATER, ROOFS])
def test_places_without_leaves_are_not_suspected(surface):
    assert suspicions(spectra(surface)) == []


def test_the_offset_is_told_over_water_and_not_of_sand():
    tile = spectra(tuple(v + 10 for v in WATER))
    assert "s2_offset='present'" in suspicions(tile)[0]


def test_what_cannot_be_judged_is_left():
    """A few pixels, zeros outside the swath, NaN that was cut away."""
    data = arrays_of("synthetic")
    few = {k: v[:3, :1, 10:15] if v.ndim > 1 else v[:3] for k, v in data.items()}
    few["masks"] = 0 * few["masks"]
    assert suspicions(open_tile(few)) == []
    swath = data | {"bands": data["bands"].copy(), "masks": data["masks"].copy()}
    swath["bands"][:, :, :30] = 0
    swath["masks"][:, :, :30] = 0
    assert suspicions(open_tile(swath)) == []
    holes = data | {"bands": data["bands"].astype(np.float32)}
    holes["bands"][:, ::3] = np.nan
    assert suspicions(open_tile(holes)) == []


def test_little_is_read(monkeypatch):
    data = {
        k: np.repeat(np.repeat(v, 5, 1), 12, 2) if v.ndim > 1 else v
        for k, v in arrays_of("synthetic").items()
    }
    tile = open_tile(data)
    assert (tile.height, tile.width) == (240, 576)
    taken = []
    for array in (tile.s2_bands, tile.s2_masks, *(orbit.bands for orbit in tile.orbits)):

        def lines(*args, _whole=array.lines):
            taken.append(_whole(*args))
            return taken[-1]

        monkeypatch.setattr(array, "lines", lines)
    assert suspicions(tile) == []
    assert len(taken) == 4 and sum(part.nbytes for part in taken) < 1 << 20
