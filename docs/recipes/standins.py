"""Small stand-ins for the recipes' data, so that each can be run before anything is downloaded.

    python docs/recipes/standins.py canopy_height work

makes work/tile_2024 (a tile in the official layout), work/labels.tif and work/canopy_height.toml.
Observations are those of the synthetic tile and labels are simulated from what made it: what a
probe finds here says that the recipe runs, and nothing of canopies. crop_type and vegetation_index
can begin from a real tile instead: `--tile FOLDER --labels LABELS.npy`.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import rasterio

from tessera_fast.synthetic import CLASSES, synthetic_tile, write_tile
from tessera_fast.synthetic.landscape import landscape
from tessera_fast.tile import Tile, open_tile

SEED, YEAR, DAY_OF_FIRE = 5, 2024, 215
DECIDUOUS, CONIFEROUS = CLASSES.index("deciduous forest"), CLASSES.index("coniferous forest")
# Reflectance x 10,000 of ash and char in the official order, in round numbers.
CHAR = np.array([620, 480, 540, 900, 980, 700, 780, 840, 1500, 1400])
NAMES = ("crop_type", "canopy_height", "biomass", "burned_area", "stocking", "vegetation_index")


def arrays_of(tile: Tile) -> dict[str, np.ndarray]:
    """A tile's observations under the official names, in memory."""
    seen = tile.rows(0, tile.height)
    arrays = {
        "bands": np.array(seen.s2_bands),
        "masks": np.array(seen.s2_masks),
        "doys": seen.s2_doys,
    }
    for orbit in seen.orbits:
        name = ("sar_ascending", "sar_descending")[orbit.index]
        arrays[name], arrays[f"{name}_doy"] = np.array(orbit.bands), orbit.doys
    return arrays


def height(side: int) -> np.ndarray:
    """Simulated canopy height in m, (H, W) float32: darker canopies are taller, and noise."""
    land = landscape(side, side, SEED, YEAR)
    base = np.select([land.classes == DECIDUOUS, land.classes == CONIFEROUS], [19.0, 25.0], 0.0)
    noise = np.random.default_rng(1).normal(0, 1, base.shape)
    tall = base * (1 - 2.5 * (land.texture - 1)) + 1.2 * noise
    return np.where(base > 0, tall, 0.3 * np.abs(noise)).clip(0).astype(np.float32)


def biomass(side: int) -> np.ndarray:
    """Simulated above-ground biomass in Mg/ha: a power of the height, denser in broadleaves."""
    classes = landscape(side, side, SEED, YEAR).classes
    dense = np.where(classes == DECIDUOUS, 0.52, 0.40)
    return (dense * height(side) ** 1.9).astype(np.float32)


def stocking(side: int) -> np.ndarray:
    """Simulated growing stock in m3/ha, one value a stand of up to 8 x 8 pixels; NaN elsewhere."""
    classes = landscape(side, side, SEED, YEAR).classes
    stand = (np.arange(side)[:, None] // 8) * side + np.arange(side) // 8
    stand = stand * len(CLASSES) + classes
    out = np.full(classes.shape, np.nan, np.float32)
    tall = height(side)
    for number in np.unique(stand[np.isin(classes, (DECIDUOUS, CONIFEROUS))]):
        out[stand == number] = 15 * tall[stand == number].mean() + number / 1e4
    return out


def burned(side: int, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Two round fires on a day in summer, in place: char from then on, fading by a third in 100
    days. 2 where it burned, 1 elsewhere."""
    y, x = np.mgrid[:side, :side]
    fire = np.hypot(y - 0.3 * side, x - 0.3 * side) < 0.17 * side
    fire |= np.hypot(y - 0.75 * side, x - 0.65 * side) < 0.14 * side
    severity = np.random.default_rng(2).uniform(0.5, 1, fire.shape) * fire
    for image, day in zip(arrays["bands"], arrays["doys"], strict=True):
        if day >= DAY_OF_FIRE:
            share = (severity * max(1 - (day - DAY_OF_FIRE) / 300, 0))[..., None]
            image[:] = np.rint(image + share * (CHAR - image.astype(np.float64)))
    for name in ("sar_ascending", "sar_descending"):
        after = arrays[f"{name}_doy"] >= DAY_OF_FIRE
        there = fire & (arrays[name][after] != 0).any(axis=-1)
        arrays[name][after] -= (there[..., None] * np.array([200, 500])).astype(np.int16)
    return np.where(fire, 2, 1).astype(np.uint8)


def ndvi(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Mean NDVI of the clear dates from May to September, (H, W) float32, NaN without one."""
    summer = (arrays["doys"] >= 121) & (arrays["doys"] <= 273)
    red, nir = (arrays["bands"][summer][..., i].astype(np.float64) for i in (0, 3))
    clear = arrays["masks"][summer] != 0
    index = np.where(clear, (nir - red) / np.maximum(nir + red, 1), 0).sum(axis=0)
    count = clear.sum(axis=0)
    return np.where(count > 0, index / np.maximum(count, 1), np.nan).astype(np.float32)


def make(name: str, folder: Path, side: int, tile: Path | None, given: Path | None) -> None:
    source = open_tile(tile) if tile else synthetic_tile(side, side, seed=SEED, year=YEAR)
    arrays = arrays_of(source)
    if name == "crop_type":
        crops = landscape(side, side, SEED, YEAR).classes + 1
        labels = np.load(given) if given else np.where(crops <= 6, crops, 0).astype(np.uint8)
    elif name == "burned_area":
        labels = burned(side, arrays)
    elif name == "vegetation_index":
        labels = ndvi(arrays)
        # Sentinel-1 alone: no date is clear. v1.0 reads all dates of a pixel without a clear one,
        # so the bands, of which the label is made, go too
        arrays["masks"][:] = 0
        arrays["bands"][:] = 0
    else:
        labels = {"canopy_height": height, "biomass": biomass, "stocking": stocking}[name](side)
    folder.mkdir(parents=True, exist_ok=True)
    place = {"crs": source.crs, "transform": source.transform}
    write_tile(open_tile(arrays, year=source.year or YEAR, **place), folder / "tile_2024")
    with rasterio.open(
        folder / "labels.tif",
        "w",
        driver="GTiff",
        height=source.height,
        width=source.width,
        count=1,
        dtype=labels.dtype,
        crs=source.crs,
        transform=rasterio.Affine(*source.transform),
        nodata=0 if labels.dtype.kind in "iu" else np.nan,
    ) as raster:
        raster.write(labels, 1)
    shutil.copy(Path(__file__).with_name(f"{name}.toml"), folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=96, help="pixels of the synthetic tile")
    parser.add_argument("--tile", type=Path, help="a real tile instead")
    parser.add_argument("--labels", type=Path, help="its crop types, .npy")
    args = parser.parse_args()
    make(args.name, args.folder, args.side, args.tile, args.labels)
