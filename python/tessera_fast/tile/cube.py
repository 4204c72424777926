"""A tile as a Zarr or netCDF cube on disk or behind a URL, opened with xarray and read lazily."""

import dataclasses
import warnings
from pathlib import Path, PurePath
from typing import Any

from ..errors import InputError
from ..packages import require
from ..untrusted.damage import damaged, first_line
from .chunks import lost_chunks
from .cube_metadata import check_chunks, check_netcdf, check_zarr
from .fields import Fields
from .folder import given_name, year_in
from .nodata import NoData

NETCDF = (".nc", ".nc4")


def read_cube(path: str) -> Fields:
    """The arrays, days, year and georeference of a cube in one of the forms of a Dataset.

    Its numbers are taken as stored. Raises InputError if it cannot be opened, is packed, or xarray
    or what it needs to open the file is not installed.
    """
    xr = require("xarray", f"{path}: reading a cube", InputError)
    engine = {} if PurePath(path).suffix in NETCDF else {"engine": "zarr"}
    if not engine:
        check_netcdf(Path(path))
    elif "://" not in path:
        check_zarr(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of stores without consolidated metadata, or damaged
            dataset = xr.open_dataset(
                path, chunks=None, cache=False, mask_and_scale=False, **engine
            )
            _check_chunks(dataset)
    except damaged() as error:
        hint = "pip install netCDF4 or h5netcdf" if not engine else "and zarr is needed"
        raise InputError(
            f"{path}: expected a cube that xarray opens, got {first_line(error)}; "
            f"write it again, or install what reads it ({hint})"
        ) from error
    from .dataset import DatasetArray, read_dataset

    try:
        fields = read_dataset(dataset)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    bands = fields.arrays.get("bands")
    if engine and "://" not in path and isinstance(bands, DatasetArray):
        lost = lost_chunks(path, bands)
        if lost is not None:
            beside = NoData((), (lost,), "a chunk file that is not there")
            fields.nodata["bands"] = fields.nodata.get("bands", NoData()) | beside
    year = year_in(PurePath(given_name(Path(path))).stem)
    return dataclasses.replace(
        fields, where=f"cube {path}", form="cube", prefix=f"{path}/", year=year
    )


def _check_chunks(dataset: Any) -> None:
    for variable in dataset.variables.values():
        chunks = variable.encoding.get("chunks") or variable.encoding.get("chunksizes")
        if chunks:
            check_chunks(variable.shape, chunks, variable.dtype.itemsize)
