"""Where an xarray.Dataset lies: its CRS and transform, and embeddings that lie there too."""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError
from ..packages import require
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import shown
from .georeference import Georeference, affine

# Attributes and scalar coordinates that name a CRS: those of STAC's projection extension, and what
# people write.
_KEYS = ("proj:code", "proj:epsg", "proj:wkt2", "crs", "epsg")


def read_values(array: xr.DataArray) -> np.ndarray:
    """The values of a small variable; InputError where its source cannot be read."""
    try:
        return array.values
    except damaged() as error:
        raise cannot_be_read(error) from error


def cannot_be_read(error: Exception) -> InputError:
    """The error of a Dataset whose file, network or codec fails."""
    return InputError(f"Dataset: cannot be read ({first_line(error)}); check its source")


def as_data_array(values: np.ndarray, dataset: xr.Dataset) -> xr.DataArray:
    """Embeddings (H, W, E) as a DataArray (y, x, band) with the spatial coordinates of ``dataset``.

    Coordinates over time are dropped; a CRS that ``dataset`` carries, in whatever place, is found
    by rioxarray in ``spatial_ref``.
    """
    coords = {
        name: coord.variable
        for name, coord in dataset.coords.items()
        if set(coord.dims) <= {"y", "x"} and name != "band"
    }
    mapping = _grid_mapping(dataset)
    attrs = dataset.variables[mapping].attrs if mapping in dataset.variables else {}
    if mapping not in coords or not {"crs_wkt", "spatial_ref"} & attrs.keys():
        crs = _crs(dataset)
        if crs is not None:
            coords[mapping] = _mapping_of(crs, attrs)
    out = xr.DataArray(values, coords, dims=("y", "x", "band"), name="embeddings")
    if mapping in out.coords:
        out.encoding["grid_mapping"] = mapping
    return out


def _mapping_of(crs: str, attrs: dict[str, Any]) -> xr.Variable:
    """A scalar coordinate as rioxarray writes it."""
    found = require("pyproj", "the CRS of a Dataset", InputError).CRS.from_user_input(crs)
    made = {**found.to_cf(), "spatial_ref": found.to_wkt()}
    if "GeoTransform" in attrs:
        made["GeoTransform"] = attrs["GeoTransform"]
    return xr.Variable((), 0, made)


def _grid_mapping(dataset: xr.Dataset) -> str:
    """Name of the variable that holds the CRS."""
    named = (
        v.attrs.get("grid_mapping", v.encoding.get("grid_mapping"))
        for v in dataset.variables.values()
    )
    mappings = {name for name in named if isinstance(name, str) and name}
    return mappings.pop() if len(mappings) == 1 else "spatial_ref"


def georeference_of(dataset: xr.Dataset) -> Georeference:
    """Where ``dataset`` lies; InputError where its CRS cannot be read or contradicts itself."""
    name = _grid_mapping(dataset)
    attrs = dataset.variables[name].attrs if name in dataset.variables else {}
    transform = _transform_of_centres(dataset) or _transform_of_attribute(attrs)
    return Georeference(_crs(dataset), transform)


def _crs(dataset: xr.Dataset) -> str | None:
    """The CRS that the grid mapping, attributes or scalar coordinates agree on."""
    found: dict[str, str] = {}
    first_error: InputError | None = None
    for where, value in _said(dataset):
        if isinstance(value, float | np.number) and value in range(1, 10**6):  # as proj:epsg comes
            value = int(value)
        if not _may_be_crs(value):
            continue
        try:
            found.setdefault(_short_crs(value), where)
        except InputError as error:
            first_error = first_error or error
    if first_error is not None and not found:
        raise first_error
    if len(found) > 1:
        text = ", ".join(f"{crs[:60]} in {where}" for crs, where in found.items())
        raise InputError(f"Dataset: expected one CRS, got {text}; correct one of them")
    return next(iter(found), None)


def _may_be_crs(value: Any) -> bool:
    """Whether an attribute, which may be of any type, says something of a CRS."""
    return (isinstance(value, str | int | dict) and bool(value)) or hasattr(value, "to_wkt")


def _said(dataset: xr.Dataset) -> Iterator[tuple[str, Any]]:
    """Where a CRS is said, and what is said there."""
    for name in dict.fromkeys((_grid_mapping(dataset), "spatial_ref", "crs")):
        if name in dataset.variables:
            attrs = dataset.variables[name].attrs
            yield from ((name, attrs.get(key)) for key in ("crs_wkt", "spatial_ref"))
            if "grid_mapping_name" in attrs and not {"crs_wkt", "spatial_ref"} & attrs.keys():
                yield name, dict(attrs)
    yield from ((f"the attribute {key}", dataset.attrs.get(key)) for key in _KEYS)
    for name, variable in dataset.variables.items():
        if {"y", "x"} <= set(variable.dims):
            yield from (
                (f"the attribute {key} of {name}", variable.attrs.get(key)) for key in _KEYS
            )
    for key in _KEYS:
        if key in dataset.coords and dataset.coords[key].ndim == 0:
            yield f"the coordinate {key}", read_values(dataset.coords[key]).item()


@functools.lru_cache(maxsize=64)
def _named(text: str | int) -> str:
    return _short_name(text)


def _short_crs(crs: Any) -> str:
    return _named(crs) if isinstance(crs, str | int) else _short_name(crs)


def _short_name(crs: Any) -> str:
    what = "the CRS of a Dataset"
    unreadable = require("pyproj.exceptions", what, InputError).CRSError
    CRS = require("pyproj", what, InputError).CRS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "+init=epsg:..."
            cf = isinstance(crs, dict) and "grid_mapping_name" in crs
            parsed = CRS.from_cf(crs) if cf else CRS.from_user_input(crs)
            code = parsed.to_epsg()
            return f"EPSG:{code}" if code else str(parsed.to_wkt())
    except (unreadable, *damaged()) as error:
        raise InputError(
            f"Dataset: expected a CRS that pyproj reads, got {shown(crs)} ({first_line(error)})"
        ) from error


def _transform_of_centres(dataset: xr.Dataset) -> tuple[float, ...] | None:
    """From regular x and y coordinates. They come before the GeoTransform attribute, which xarray
    leaves as it was when a Dataset is cropped."""
    steps, origins = [], []
    for dim in ("x", "y"):
        if dim not in dataset.coords or dataset.coords[dim].dtype.kind not in "iuf":
            return None
        centres = read_values(dataset.coords[dim]).astype(np.float64)
        if centres.size < 2 or not np.isfinite(centres).all():
            return None
        step = (centres[-1] - centres[0]) / (centres.size - 1)
        # A thousandth of a pixel: coordinates stored as float32 are no more regular than this.
        if step == 0 or np.abs(np.diff(centres) - step).max() > abs(step) / 1000:
            return None
        steps.append(float(step))
        origins.append(float(centres[0] - step / 2))
    return steps[0], 0.0, origins[0], 0.0, steps[1], origins[1]


def _transform_of_attribute(attrs: dict[str, Any]) -> tuple[float, ...] | None:
    """From GDAL's GeoTransform: x0, a, b, y0, d, e."""
    numbers = affine(str(attrs["GeoTransform"]).split()) if "GeoTransform" in attrs else None
    if numbers is None:
        return None
    x0, a, b, y0, d, e = numbers
    return a, b, x0, d, e, y0
