"""What a tile lacks to be placed on a map, and where its own form takes that from."""

from .tile import Tile

_CRS = (
    "the CRS comes from spatial_ref or an attribute proj:code or crs, the transform from regular "
)
_CRS += "coordinates x and y of the pixel centres"
_SOURCES = {
    "folder": "the CRS and transform come from roi.tiff, the year from files of dates, the "
    "folder's name or --year",
    "cube": f"{_CRS}, the year from its dates, its name or --year",
    "Dataset": f"{_CRS}, the year from its dates or year=",
    "arrays": "pass crs=, transform= and year= to open_tile",
}
_FLIPS = {
    "folder": "flip the rows of every array (array[:, ::-1]) and write roi.tiff north-up",
    "cube": "write it again after dataset.sortby('y', ascending=False)",
    "Dataset": "give dataset.sortby('y', ascending=False)",
    "arrays": "flip the rows of every array (array[:, ::-1]) and give the transform of that",
}


def unplaced(tile: Tile) -> str | None:
    """Why a Zarr store cannot place ``tile`` and what to do, or None where CRS, transform and year
    are known and rows run from north to south. Raises TesseraError if roi.tiff cannot be read."""
    place = {"CRS": tile.crs, "transform": tile.transform, "year": tile.year}
    missing = [what for what, value in place.items() if value is None]
    if missing == ["year"] and len(tile.years) > 1:
        text = " and ".join(map(str, tile.years))
        return (
            f"a Zarr store holds single years, and the dates are of {text}; choose those of one "
            f"with period={tile.years[-1]} (--period {tile.years[-1]})"
        )
    if missing:
        return f"a Zarr store needs its {' and '.join(missing)}: {_SOURCES[tile.form]}"
    transform = tile.transform
    if transform is not None and transform[1] == 0 and transform[4] > 0:
        return (
            "a Zarr store holds rows from north to south, and these run from south to north (y "
            f"ascends); {_FLIPS[tile.form]}"
        )
    return None
