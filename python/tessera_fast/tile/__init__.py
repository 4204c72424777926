"""Inputs: a folder, arrays or a Dataset, checked once and read by rows."""

from .tile import Tile, open_tile

__all__ = ["Tile", "open_tile"]
