"""A tile as a Zarr or netCDF cube on disk or behind a URL, opened with xarray and read lazily."""

import dataclasses
import warnings
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..damage import damaged, first_line
from ..errors import InputError
from ..untrusted import shown
from .cube_metadata import check_chunks, check_zarr
from .fields import Fields
from .folder import year_in

NETCDF = (".nc", ".nc4")
# Attributes by which CF says that what is stored is not the value.
_PACKED = {"scale_factor": 1, "add_offset": 0}


def read_cube(path: str) -> Fields:
    """The arrays, days, year and georeference of a cube in one of the forms of a Dataset.

    Its numbers are taken as stored. Raises InputError if it cannot be opened, is packed, or xarray
    or what it needs to open the file is not installed.
    """
    try:
        import xarray as xr
    except ImportError as error:
        raise InputError(
            f"{path}: reading a cube needs xarray; pip install 'tessera_fast[geo]'"
        ) from error
    engine = {} if PurePath(path).suffix in NETCDF else {"engine": "zarr"}
    if engine and "://" not in path:
        check_zarr(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of stores without consolidated metadata, or damaged
            dataset = xr.open_dataset(
                path, chunks=None, cache=False, mask_and_scale=False, **engine
            )  # fmt: skip
            _check_chunks(dataset)
    except damaged() as error:
        hint = "pip install netCDF4 or h5netcdf" if not engine else "and zarr is needed"
        raise InputError(
            f"{path}: expected a cube that xarray opens, got {first_line(error)}; "
            f"write it again, or install what reads it ({hint})"
        ) from error
    _check_plain(path, dataset)
    from .dataset import read_dataset

    try:
        fields = read_dataset(dataset)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    year = fields.year if fields.dates else year_in(PurePath(path).stem)
    return dataclasses.replace(fields, where=f"cube {path}", prefix=f"{path}/", year=year)


def _check_chunks(dataset: Any) -> None:
    for variable in dataset.variables.values():
        chunks = variable.encoding.get("chunks") or variable.encoding.get("chunksizes")
        if chunks:
            check_chunks(variable.shape, chunks, variable.dtype.itemsize)


def _check_plain(path: str, dataset: Any) -> None:
    for name, variable in dataset.data_vars.items():
        packed = {k: shown(variable.attrs[k]) for k, none in _PACKED.items()
                  if not np.array_equal(variable.attrs.get(k, none), none)}  # fmt: skip
        if packed:
            raise InputError(
                f"{path}/{name}: expected values as they are, got packed ones "
                f"({', '.join(f'{k} {v}' for k, v in packed.items())}); open the cube with xarray, "
                "bring it to raw units and give the Dataset"
            )
