"""Outputs: a Zarr store in geotessera's layout, or a folder of .npy files."""

from .output import Output, Provenance, TileKey, TileWriter, job_extent, open_output

__all__ = ["Output", "Provenance", "TileKey", "TileWriter", "job_extent", "open_output"]
