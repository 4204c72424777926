"""Which layers of two outputs show the same pixels, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..errors import StoreError
from ..store.reader import Embeddings, Layer
from ..store.zone import LATTICE_SLACK, PIXEL, Grid
from .places import TilePlace, is_store, layer_place, tiles

WINDOW = 256  # rows and columns read at once: 8 MiB of codes at E = 128


@dataclass(frozen=True)
class Pair:
    """The part of two layers that overlaps: ``height`` x ``width`` pixels of both."""

    name: str
    a: Layer
    b: Layer
    height: int
    width: int
    a_start: tuple[int, int] = (0, 0)  # row and column of the overlap's first pixel in a
    b_start: tuple[int, int] = (0, 0)
    lattice_shift: tuple[float, float] = (0.0, 0.0)  # rows and columns by which pixels are apart
    tiles: tuple[tuple[str, int, int, int, int], ...] = ()  # name, first row, stop, column, stop
    place: Grid | None = field(default=None, repr=False)  # of a

    def windows(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of the overlap to be read together, along a's shards."""
        side = min(self.a.tile_side, WINDOW)
        side *= WINDOW // side  # small chunks: several at once
        row, col = self.a_start
        for top in range(-(row % side), self.height, side):
            for left in range(-(col % side), self.width, side):
                yield (
                    slice(max(top, 0), min(top + side, self.height)),
                    slice(max(left, 0), min(left + side, self.width)),
                )

    @property
    def crs(self) -> str | None:
        return f"EPSG:{self.place.epsg}" if self.place else self.a.crs

    @property
    def transform(self) -> tuple[float, float, float, float, float, float] | None:
        """(a, b, c, d, e, f) of the overlap's pixel corners in ``crs``; None if not known."""
        row, col = self.a_start
        if self.place is not None:
            x0, y0 = self.place.x0 + col * PIXEL, self.place.y0 - row * PIXEL
            return PIXEL, 0.0, x0, 0.0, -PIXEL, y0
        if self.a.transform is None:
            return None
        a, b, c, d, e, f = self.a.transform
        return a, b, c + a * col + b * row, d, e, f + d * col + e * row

    def in_a(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        return _moved(rows, self.a_start[0]), _moved(columns, self.a_start[1])

    def in_b(self, rows: slice, columns: slice) -> tuple[slice, slice]:
        return _moved(rows, self.b_start[0]), _moved(columns, self.b_start[1])


@dataclass(frozen=True)
class Matching:
    """What of two outputs can be compared, and what is on one side alone, with the reason."""

    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unplaced: tuple[str, ...]


def match(a: Embeddings, b: Embeddings) -> Matching:
    """Pair the layers of two outputs; StoreError if nothing can be compared.

    Two folders are matched by the names of their tiles; with a store on either side, layers are
    matched by zone, year and coordinates.
    """
    stores = is_store(a.path), is_store(b.path)
    unplaced: list[str] = []
    if not any(stores):
        pairs = _by_name(a, b)
    else:
        sides = [_placed(a, b, unplaced), _placed(b, a, unplaced)]
        pairs = [
            pair
            for la, ga in sides[0]
            for lb, gb in sides[1]
            if (ga.zone, ga.years) == (gb.zone, gb.years)
            and (pair := _overlap(la, ga, lb, gb, named_by=la if stores[1] else lb)) is not None
        ]
        known = [*tiles(a), *tiles(b)] if all(stores) else []
        pairs = [replace(p, tiles=_tiles_of(p, known)) for p in pairs]
    for pair in pairs:
        if pair.a.dims != pair.b.dims:
            raise StoreError(
                f"{pair.name}: expected embeddings of one width, got {pair.a.dims} in {a.path} and "
                f"{pair.b.dims} in {b.path}. A prefix has scales of its own: embed both with the "
                "same --dims"
            )
    only = [
        tuple(x.name for x in side.layers if not any(x is getattr(p, s) for p in pairs))
        for s, side in (("a", a), ("b", b))
    ]
    if not pairs:
        why = "; ".join(unplaced[:3]) or (
            f"{a.path} has {_listed(only[0])}, {b.path} has {_listed(only[1])}"
        )
        raise StoreError(
            f"nothing to compare: no tile, or zone and year, is in both at the same place ({why})"
        )
    return Matching(tuple(pairs), only[0], only[1], tuple(unplaced))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _by_name(a: Embeddings, b: Embeddings) -> list[Pair]:
    others = {layer.name: layer for layer in b.layers}
    pairs = []
    for one in a.layers:
        two = others.get(one.name)
        if two is None:
            continue
        if (one.height, one.width) != (two.height, two.width):
            raise StoreError(
                f"tile {one.name}: expected the same size, got {one.height} x {one.width} in "
                f"{a.path} and {two.height} x {two.width} in {b.path}: these are different tiles"
            )
        whole = ((one.name, 0, one.height, 0, one.width),)
        pairs.append(Pair(one.name, one, two, one.height, one.width, tiles=whole))
    return pairs


def _placed(output: Embeddings, other: Embeddings, unplaced: list[str]) -> list[tuple[Layer, Grid]]:
    """Layers with their places; a tile whose own marker has none takes that of the other side's."""
    found = []
    elsewhere: dict[str, set[Grid]] = {}
    if not is_store(output.path):
        for tile in tiles(other):
            if tile.grid is not None:
                elsewhere.setdefault(tile.name, set()).add(tile.grid)
    for layer in output.layers:
        grid = layer_place(layer)
        if grid is None:
            places = elsewhere.get(layer.name, set())
            same_size = [g for g in places if (g.height, g.width) == (layer.height, layer.width)]
            grid = same_size[0] if len(places) == len(same_size) == 1 else None
        if grid is None:
            unplaced.append(
                f"{layer.name}: its CRS, transform and year are in no marker of {output.path} or "
                f"of {other.path}"
            )
            continue
        found.append((layer, grid))
    return found


def _overlap(a: Layer, ga: Grid, b: Layer, gb: Grid, named_by: Layer) -> Pair | None:
    """The common pixels of two placed layers; None if there are none."""
    exact = (ga.y0 - gb.y0) / PIXEL, (gb.x0 - ga.x0) / PIXEL  # of b's first pixel, in a
    row, col = (round(v) for v in exact)
    shift = tuple(
        0.0 if abs(v - r) * PIXEL <= LATTICE_SLACK else v - r
        for v, r in zip(exact, (row, col), strict=True)
    )
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + gb.height, ga.height), min(col + gb.width, ga.width)
    if bottom <= top or right <= left:
        return None
    pair = Pair(
        named_by.name,
        a,
        b,
        bottom - top,
        right - left,
        (top, left),
        (top - row, left - col),
        (shift[0], shift[1]),
        place=ga,
    )
    return replace(pair, tiles=((pair.name, 0, pair.height, 0, pair.width),))


def _tiles_of(pair: Pair, known: list[TilePlace]) -> tuple[tuple[str, int, int, int, int], ...]:
    """The finished tiles of either store that the overlap touches, each once."""
    grid = pair.place
    assert grid is not None
    found = set()
    for tile in known:
        place = tile.grid
        if place is None or (place.zone, place.years) != (grid.zone, (pair.a.year,)):
            continue
        row = round((grid.y0 - place.y0) / PIXEL) - pair.a_start[0]
        col = round((place.x0 - grid.x0) / PIXEL) - pair.a_start[1]
        if -place.height < row < pair.height and -place.width < col < pair.width:
            found.add((tile.name, row, row + place.height, col, col + place.width))
    return tuple(sorted(found))


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
