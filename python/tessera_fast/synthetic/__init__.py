"""A synthetic tile: realistic to look at and to time, and labelled synthetic everywhere."""

from .tile import CLASSES, EDGE_PIXELS, synthetic_classes, synthetic_tile, write_tile

__all__ = ["CLASSES", "EDGE_PIXELS", "synthetic_classes", "synthetic_tile", "write_tile"]
