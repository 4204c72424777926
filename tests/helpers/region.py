"""A region of tiles side by side, for the tests of jobs: folders in the official layout."""

from pathlib import Path

import numpy as np

from tessera_fast.synthetic import synthetic_tile, write_tile
from tessera_fast.tile import Tile, open_tile


def whole(side: int, count: int, year: int = 2024) -> Tile:
    """The region that `write_region` cuts up, as one tile."""
    return synthetic_tile(side * count, side * count, seed=3, year=year)


def write_region(
    folder: Path, side: int, count: int, overlap: int = 0, year: int = 2024
) -> list[Path]:
    """``count`` x ``count`` tiles of ``side`` pixels, ``overlap`` wider to the south and east."""
    land = whole(side, count, year)
    everything = land.rows(0, land.height)
    assert land.transform is not None
    a, _, x0, _, e, y0 = land.transform
    written = []
    for i in range(count):
        for j in range(count):
            rows = slice(i * side, min((i + 1) * side + overlap, land.height))
            columns = slice(j * side, min((j + 1) * side + overlap, land.width))
            part = everything.window(rows, columns)
            arrays = {"bands": part.s2_bands, "masks": part.s2_masks, "doys": part.s2_doys}
            for orbit in part.orbits:
                name = ("sar_ascending", "sar_descending")[orbit.index]
                arrays |= {name: orbit.bands, f"{name}_doy": orbit.doys}
            tile = open_tile(
                {name: np.ascontiguousarray(values) for name, values in arrays.items()},
                crs=land.crs,
                transform=(a, 0, x0 + a * columns.start, 0, e, y0 + e * rows.start),
            )
            written.append(write_tile(tile, folder / f"t{i}{j}_{year}"))
    return written
