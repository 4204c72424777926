"""Outputs: a Zarr store in geotessera's layout, or a folder of .npy files."""

from .base import Output, Provenance, TileKey, TileWriter
from .output import hold_output, job_extent, open_output

__all__ = [
    "Output",
    "Provenance",
    "TileKey",
    "TileWriter",
    "hold_output",
    "job_extent",
    "open_output",
]
