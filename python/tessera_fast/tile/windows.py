"""A large tile or cube as windows of bounded size, each a Tile that reads its own pixels."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..untrusted.suggest import checks_keywords, keywords_of
from .arrays import ALL, Part, RowArray
from .tile import Tile, open_tile


@checks_keywords(*keywords_of(open_tile))
def open_windows(source: Any, side: int = 1024, **options: Any) -> Iterator[Tile]:
    """Cut a tile into windows of at most ``side`` x ``side`` pixels, row by row from the top left.

    ``source`` and ``options`` are those of `open_tile`. A window is called <name>_y<row>_x<column>
    after its first pixel, and has the transform of its own corner. A tile no larger than ``side``
    is passed as it is. Of v1.0, whose dates are drawn by a pixel's place in its tile, windows give
    other embeddings than the whole. Raises InputError as `open_tile` does.
    """
    if side < 1:
        raise InputError(f"side: expected at least 1 pixel, got {side}")
    tile = open_tile(source, **options)
    if tile.height <= side and tile.width <= side:
        yield tile
        return
    for y in range(0, tile.height, side):
        for x in range(0, tile.width, side):
            yield _window(
                tile, slice(y, min(y + side, tile.height)), slice(x, min(x + side, tile.width))
            )


def _window(tile: Tile, rows: slice, columns: slice) -> Tile:
    def part(array: RowArray) -> RowArray:
        return Part(array, ALL, rows, columns)

    place = tile.georeference
    if place.transform is not None:
        a, b, c, d, e, f = place.transform
        corner = c + a * columns.start + b * rows.start, f + d * columns.start + e * rows.start
        place = replace(place, transform=(a, b, corner[0], d, e, corner[1]))
    return replace(
        tile,
        name=f"{tile.name}_y{rows.start}_x{columns.start}",
        s2_bands=part(tile.s2_bands),
        s2_masks=part(tile.s2_masks),
        orbits=tuple(replace(orbit, bands=part(orbit.bands)) for orbit in tile.orbits),
        georeference=place,
        where=f"{tile.where} from row {rows.start} and column {columns.start}",
    )
