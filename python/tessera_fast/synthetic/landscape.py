"""The land under a synthetic tile: parcels, river, wood, village, and what grows where."""

import zlib
from dataclasses import dataclass

import numpy as np

CLASSES = (
    "winter wheat",
    "winter barley",
    "maize",
    "sugar beet",
    "potato",
    "grassland",
    "deciduous forest",
    "coniferous forest",
    "water",
    "built-up",
    "road",
)
_CROPS = 6  # leading classes that a parcel can carry
_SHARES = (0.24, 0.1, 0.22, 0.12, 0.12, 0.2)
_BLOCK = 42  # pixels between the centres of blocks of parcels


@dataclass(frozen=True)
class Landscape:
    """Per pixel (H, W): its class, and how its parcel differs from others of the class."""

    classes: np.ndarray  # uint8 into CLASSES
    delay: np.ndarray  # days after the calendar of the class
    vigour: np.ndarray  # factor of green cover
    brightness: np.ndarray  # factor of bare ground's reflectance
    texture: np.ndarray  # factor of reflectance, varies slowly within a parcel
    roughness: np.ndarray  # dB


def rng(seed: int, part: str) -> np.random.RandomState:
    """A stream of its own for every part, so that parts can be made alone."""
    return np.random.RandomState(zlib.crc32(f"{seed} {part}".encode()))


def smooth_noise(r: np.random.RandomState, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Periodic noise of mean 0 and variance 1 whose features are about ``scale`` pixels wide.

    White noise with amplitudes falling as wavenumber^-2 beyond 1 / scale.
    """
    fy = np.fft.fftfreq(shape[0])[:, None]
    fx = np.fft.rfftfreq(shape[1])[None, :]
    gain = 1 / (1 + (scale * scale) * (fy * fy + fx * fx))
    gain[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(r.standard_normal(shape)) * gain, s=shape)
    return noise / max(float(noise.std()), 1e-12)


def landscape(height: int, width: int, seed: int, year: int) -> Landscape:
    """Fields and their borders depend on ``seed``; crops and vigour also on ``year``."""
    shape = (height, width)
    r = rng(seed, "land")
    y, x = np.mgrid[:height, :width].astype(float)
    wave = [smooth_noise(r, shape, 90) * 2.5 for _ in range(2)]
    block, gap = _blocks(y + wave[0], x + wave[1], seed)
    parcel, hedge = _parcels(y + wave[1], x + wave[0], block, seed)
    n = int(parcel.max()) + 1

    crops = rng(seed, f"crops {year}")
    crop = crops.choice(_CROPS, n, p=_SHARES)
    # Meadows stay meadows: every fifth parcel carries grass whatever the year.
    meadow = rng(seed, "meadows").uniform(size=n) < 0.2
    classes = np.where(meadow, _CROPS - 1, crop)[parcel].astype(np.uint8)
    wood = smooth_noise(r, shape, 70)
    conifers = smooth_noise(r, shape, 40) > 0.4
    forest = wood > np.quantile(wood, 0.9)
    village = smooth_noise(r, shape, 50) - np.hypot(y - height * 0.3, x - width * 0.66) / 30
    built = (village > np.quantile(village, 0.95)) & (smooth_noise(r, shape, 3) > -0.9)
    river = _river(y, x, r, shape)
    _paint(classes, "grassland", hedge)
    _paint(classes, "deciduous forest", forest & ~conifers)
    _paint(classes, "coniferous forest", forest & conifers)
    _paint(classes, "built-up", built)
    _paint(classes, "grassland", (river < 7) & ~forest & ~built)
    _paint(classes, "deciduous forest", (river < 4) & (smooth_noise(r, shape, 12) > 0.3))
    _paint(classes, "road", (gap < 0.8) & ~forest)
    _paint(classes, "water", river < 2.2)

    field = np.where(np.isin(classes, range(_CROPS)), parcel, 0)
    fine = smooth_noise(r, shape, 14)
    rough = smooth_noise(r, shape, 2)
    town = np.isin(classes, [CLASSES.index("built-up"), CLASSES.index("road")])
    wooded = np.isin(classes, [CLASSES.index(f"{k} forest") for k in ("deciduous", "coniferous")])
    amplitude = np.where(town, 0.22, np.where(wooded, 0.08, 0.02))
    return Landscape(
        classes=classes,
        delay=crops.normal(0, 6, n)[field] + 2.5 * fine,
        vigour=np.clip(crops.normal(0.97, 0.06, n)[field] + 0.04 * fine, 0.6, 1.05),
        brightness=rng(seed, "soil").normal(1, 0.1, n).clip(0.7, 1.3)[field] + 0.05 * fine,
        texture=1 + np.clip(amplitude * rough + 0.025 * fine, -0.5, 0.8),
        roughness=np.where(town, 2.5, 0.35) * rough + crops.normal(0, 0.6, n)[field],
    )


def _paint(classes: np.ndarray, name: str, where: np.ndarray) -> None:
    classes[where] = CLASSES.index(name)


def _cell_values(i: np.ndarray, j: np.ndarray, seed: int, part: str, count: int) -> np.ndarray:
    """``count`` uniform numbers for every cell (i, j) of an unbounded grid, (..., count)."""
    table = rng(seed, part).uniform(size=(256, 256, count))
    return table[i % 256, j % 256]


def _blocks(y: np.ndarray, x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Voronoi cells of jittered grid points: (i, j) of the nearest, and the distance to the border.

    The border runs midway between the two nearest points, about (d2 - d1) / 2 away.
    """
    i0, j0 = np.floor(y / _BLOCK).astype(int), np.floor(x / _BLOCK).astype(int)
    nearest = np.full(y.shape, np.inf)
    second = np.full(y.shape, np.inf)
    owner = np.zeros((*y.shape, 2), int)
    for di in range(-2, 3):
        for dj in range(-2, 3):
            i, j = i0 + di, j0 + dj
            jitter = _cell_values(i, j, seed, "blocks", 2)
            d = np.hypot((i + jitter[..., 0]) * _BLOCK - y, (j + jitter[..., 1]) * _BLOCK - x)
            closer = d < nearest
            second = np.minimum(np.where(closer, nearest, d), second)
            owner[closer] = np.stack([i, j], axis=-1)[closer]
            nearest = np.minimum(d, nearest)
    return owner, (second - nearest) / 2


def _parcels(
    y: np.ndarray, x: np.ndarray, block: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut every block along its own direction: parcel number per pixel, and the grass between."""
    i, j = block[..., 0], block[..., 1]
    angle, across, along, offset = np.moveaxis(_cell_values(i, j, seed, "parcels", 4), -1, 0)
    angle, across, along = angle * np.pi, 8 + 10 * across, 18 + 22 * along
    u = (np.cos(angle) * x + np.sin(angle) * y) / across + 7 * offset
    v = (np.cos(angle) * y - np.sin(angle) * x) / along + 5 * offset
    u = u + 0.3 * np.sin(2.4 * np.floor(u) + 9 * offset)
    row = np.floor(u).astype(int)
    v = v + 0.37 * (row % 3)
    key = np.stack([i, j, row, np.floor(v).astype(int)], axis=-1)
    _, parcel = np.unique(key.reshape(-1, 4), axis=0, return_inverse=True)
    strip = np.minimum(u - np.floor(u), 1 - (u - np.floor(u))) * across
    return parcel.reshape(y.shape), (strip < 0.5) & (offset > 0.45)


def _river(
    y: np.ndarray, x: np.ndarray, r: np.random.RandomState, shape: tuple[int, int]
) -> np.ndarray:
    """Distance in pixels (roughly) to a winding line that crosses the tile from west to east."""
    phase = r.uniform(0, 2 * np.pi, 3)
    middle = r.uniform(0.6, 0.8) * shape[0]
    bends = 9 * np.sin(x / 17 + phase[0]) + 5 * np.sin(x / 7.5 + phase[1])
    slope = (9 / 17) * np.cos(x / 17 + phase[0]) + (5 / 7.5) * np.cos(x / 7.5 + phase[1])
    centre = middle + bends - 0.25 * (x - shape[1] / 2)
    return np.abs(y - centre) / np.hypot(1, slope - 0.25)
