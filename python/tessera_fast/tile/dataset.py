"""A tile behind an xarray.Dataset: bands by name in any order, dimensions in any order, lazy.

Two forms, stream by stream:
  stacked     bands (time, y, x, band) with a coordinate ``band``; sar_ascending and sar_descending
              (time, y, x, polarization) with a coordinate ``polarization``
  by variable B02 ... B12 (time, y, x); sar_ascending_VV, sar_ascending_VH and so on
and in both ``masks`` (or ``mask``) or scene classes ``SCL``, and the days of year, from variables
with the official names or from the datetime64 coordinate of the stream's time dimension, which may
have any name. The attribute ``units`` of a Sentinel-1 variable declares what it is in.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..damage import damaged, first_line
from ..errors import InputError
from ..spec import S1_BANDS, S2_BANDS
from ..untrusted import shown
from .arrays import ALL, Picks, RowArray, packable
from .fields import DAYS, ORBITS, SCL, Fields
from .georeference import Georeference, affine

MASKS = ("masks", "mask")
CLASSES = ("SCL", "scl")
# Values picked at once by points: a Zarr store is told the place of each, 32 bytes.
_POINTS = 1 << 20


class DatasetArray(RowArray):
    """One stream: DataArrays of (time, y, x), or one of (time, y, x, channel), in any order."""

    def __init__(self, parts: Sequence[xr.DataArray], time: str, channel: "Channel | None") -> None:
        self._parts = [part.variable for part in parts]  # indexed quicker than with coordinates
        self._time = time
        self._channel = channel
        sizes = parts[0].sizes
        self.shape = (sizes[time], sizes["y"], sizes["x"])
        if channel is not None:
            self.shape += (sizes[channel.dim] if channel.dim else len(parts),)
        self.dtype = np.result_type(*(p.dtype for p in parts)).newbyteorder("=")

    def _read(self, index: dict[str, Any], *leading: str) -> np.ndarray:
        """The picked part with dimensions (leading, x[, channel]); read only after picking."""
        channel = self._channel
        dims = [*leading, "x", *([channel.dim] if channel and channel.dim else [])]
        try:
            values = [part.isel(index).transpose(*dims).values for part in self._parts]
        except damaged() as error:  # of a file, a network, a codec
            raise _cannot_be_read(error) from error
        if channel is None:
            return values[0]
        if not channel.dim:
            return np.stack(values, axis=-1)
        # Indexing by a list copies, so it is left out where the order is already the model's.
        if channel.order == tuple(range(len(channel.order))):
            return values[0]
        return values[0][..., list(channel.order)]

    def read(self, dates: Picks, rows: slice, columns: slice) -> np.ndarray:
        index = {self._time: dates, "y": rows, "x": columns}
        return packable(self._read(index, self._time, "y"))

    def lines(self, dates: np.ndarray, rows: np.ndarray, columns: slice = ALL) -> np.ndarray:
        name = "line of the fingerprint"  # no dimension of a Dataset has this name
        width = len(range(self.shape[2])[columns]) * math.prod(self.shape[3:])
        step = max(1, _POINTS // max(1, width))
        found = []
        for k in range(0, len(dates), step):
            picks = {
                self._time: xr.Variable(name, dates[k : k + step]),
                "y": xr.Variable(name, rows[k : k + step]),
            }
            found.append(self._read({**picks, "x": columns}, name))
        return np.concatenate(found).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Channel:
    """How the bands of a stream are held: a dimension ``dim`` (positions of the model's bands in
    ``order``), or one DataArray per band in the model's order (``dim`` empty)."""

    dim: str
    order: tuple[int, ...]


def read_dataset(dataset: Any) -> Fields:
    """The arrays, days, year and georeference of ``dataset``; InputError lists what is wrong."""
    if not isinstance(dataset, xr.Dataset):
        raise InputError(
            f"tile: expected an xarray.Dataset, got xarray.{type(dataset).__name__}; name its "
            "variables, e.g. array.to_dataset(name='bands')"
        )
    if unnamed := [d for d in dataset.dims if not isinstance(d, str)]:
        raise InputError(
            f"Dataset: expected names of dimensions, got {shown(unnamed)}; rename them"
        )
    fields = Fields("Dataset", {}, {})
    times: dict[str, str] = {}
    streams = (("bands", "band", S2_BANDS), *((o, "polarization", S1_BANDS) for o in ORBITS))
    for name, dim, members in streams:
        found = _stream(dataset, name, dim, members)
        if found is None:
            continue
        parts, channel, times[name] = found
        fields.arrays[name] = DatasetArray(parts, times[name], channel)
        if times[name] in dataset.coords and dataset.coords[times[name]].dtype.kind == "M":
            fields.dates[name] = functools.partial(_values, dataset.coords[times[name]])
        if name in ORBITS and (units := _units(name, parts)):
            fields.s1_units[name] = units
    for official, spellings in (("masks", MASKS), (SCL, CLASSES)):
        there = [name for name in spellings if name in dataset.variables]
        if len(there) == 2:
            raise InputError(f"Dataset: expected one of {' and '.join(there)}, got both; drop one")
        if there:
            fields.aliases[official] = there[0]
            array = dataset[there[0]]
            fields.arrays[official] = DatasetArray([array], _time_dim(array, there[0], ()), None)
    for day in (DAYS[name] for name in times if DAYS[name] in dataset.variables):
        fields.days[day] = _values(dataset[day])
    fields.year = _year(fields.dates)
    fields.georeference = _georeference(dataset)
    return fields


def _stream(
    dataset: xr.Dataset, name: str, dim: str, members: tuple[str, ...]
) -> tuple[list[xr.DataArray], "Channel", str] | None:
    """DataArrays of a stream, how they hold its bands, and its time dimension."""
    if name in dataset.variables:
        array = dataset[name]
        if dim not in array.dims or dim not in array.coords:
            raise InputError(
                f"{name}: expected a dimension '{dim}' with a coordinate of names "
                f"({', '.join(members)}), got dimensions {array.dims}"
            )
        names = [str(v).upper() for v in _values(array.coords[dim])]
        _check_names(name, members, names)
        order = tuple(names.index(member) for member in members)
        time = _time_dim(array, name, (dim,))
        return [array], Channel(dim, order), time
    prefix = "" if name == "bands" else f"{name}_"
    pattern = r"B\d{1,2}A?" if name == "bands" else rf"{name}_(?!doy$).+"
    variables = [str(v) for v in dataset.data_vars if re.fullmatch(pattern, str(v))]
    if not variables:
        return None
    _check_names(name, members, [v.removeprefix(prefix) for v in variables])
    parts = [dataset[prefix + member] for member in members]
    time = _time_dim(parts[0], prefix + members[0], ())
    for member, part in zip(members, parts, strict=True):
        if set(part.dims) != {time, "y", "x"}:
            raise InputError(
                f"{prefix}{member}: expected dimensions ({time}, y, x) as {prefix}{members[0]} "
                f"has, got {part.dims}; put all bands on one grid and time axis"
            )
    return parts, Channel("", ()), time


def _check_names(name: str, expected: tuple[str, ...], found: list[str]) -> None:
    if sorted(found) == sorted(expected):
        return
    missing = [n for n in expected if n not in found]
    unknown = [n for n in found if n not in expected]
    twice = sorted({n for n in found if found.count(n) > 1})
    what = [
        f"{label} {', '.join(names)}"
        for label, names in (("missing", missing), ("unknown", unknown), ("repeated", twice))
        if names
    ]
    raise InputError(
        f"{name}: expected {', '.join(expected)} in any order, got {', '.join(found)} "
        f"({'; '.join(what)}); rename or drop what does not belong"
    )


def _time_dim(array: xr.DataArray, name: str, others: tuple[str, ...]) -> str:
    """The one dimension that is not y, x or in ``others``."""
    left = [str(d) for d in array.dims if d not in ("y", "x", *others)]
    if len(left) != 1 or not {"y", "x"} <= set(array.dims):
        raise InputError(
            f"{name}: expected one time dimension and {', '.join(('y', 'x', *others))}, got "
            f"{array.dims}; rename the dimensions"
        )
    return left[0]


def _values(array: xr.DataArray) -> np.ndarray:
    try:
        return array.values
    except damaged() as error:
        raise _cannot_be_read(error) from error


def _cannot_be_read(error: Exception) -> InputError:
    return InputError(f"Dataset: cannot be read ({first_line(error)}); check its source")


def _units(name: str, parts: list[xr.DataArray]) -> str | None:
    found = {str(part.attrs["units"]) if "units" in part.attrs else None for part in parts}
    if len(found) > 1:
        raise InputError(
            f"{name}: expected one attribute units for {' and '.join(S1_BANDS)}, got "
            f"{sorted(map(str, found))}; correct it"
        )
    return found.pop()


def _year(dates: dict[str, Callable[[], np.ndarray]]) -> int | None:
    """The calendar year of all dates, or None."""
    found = [read() for read in dates.values()]
    years = {int(y) for d in found for y in d[~np.isnat(d)].astype("M8[Y]").astype(np.int64)}
    return 1970 + years.pop() if len(years) == 1 else None


def as_data_array(values: np.ndarray, dataset: xr.Dataset) -> xr.DataArray:
    """Embeddings (H, W, E) as a DataArray (y, x, band) with the spatial coordinates of ``dataset``.

    Coordinates over time are dropped; a CRS that ``dataset`` carries is still found by rioxarray.
    """
    coords = {
        name: coord.variable
        for name, coord in dataset.coords.items()
        if set(coord.dims) <= {"y", "x"} and name != "band"
    }
    out = xr.DataArray(values, coords, dims=("y", "x", "band"), name="embeddings")
    mapping = _grid_mapping(dataset)
    if mapping in out.coords:
        out.encoding["grid_mapping"] = mapping
    return out


def _grid_mapping(dataset: xr.Dataset) -> str:
    """Name of the variable that holds the CRS."""
    named = (v.attrs.get("grid_mapping", v.encoding.get("grid_mapping"))
             for v in dataset.variables.values())  # fmt: skip
    mappings = {name for name in named if isinstance(name, str) and name}
    return mappings.pop() if len(mappings) == 1 else "spatial_ref"


def _georeference(dataset: xr.Dataset) -> Georeference:
    name = _grid_mapping(dataset)
    attrs = dataset.variables[name].attrs if name in dataset.variables else {}
    found = (
        *map(attrs.get, ("crs_wkt", "spatial_ref")),
        *map(dataset.attrs.get, ("proj:code", "crs")),
    )
    crs = next((value for value in found if _may_be_crs(value)), None)
    transform = _transform_of_centres(dataset) or _transform_of_attribute(attrs)
    return Georeference(None if crs is None else _short_crs(crs), transform)


def _may_be_crs(value: Any) -> bool:
    """Whether an attribute, which may be of any type, says something of a CRS."""
    return (isinstance(value, str | int | dict) and bool(value)) or hasattr(value, "to_wkt")


def _short_crs(crs: Any) -> str | None:
    from pyproj import CRS

    try:
        parsed = CRS.from_user_input(crs)
        code = parsed.to_epsg()
        return f"EPSG:{code}" if code else parsed.to_wkt()
    except damaged() as error:
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
        centres = _values(dataset.coords[dim]).astype(np.float64)
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
