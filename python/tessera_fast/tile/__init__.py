"""Inputs: a folder, cube, URL, arrays or a Dataset, checked once and read by rows."""

from .detect import suspicions
from .period import period_of_year
from .placing import unplaced
from .sources import expand
from .tile import Tile, open_tile
from .windows import open_windows

__all__ = [
    "Tile",
    "expand",
    "open_tile",
    "open_windows",
    "period_of_year",
    "suspicions",
    "unplaced",
]
