"""A tile behind an xarray.Dataset: bands by name in any order, dimensions in any order, lazy.

Two forms, stream by stream:
  stacked     bands (time, y, x, band) with a coordinate ``band``; sar_ascending and sar_descending
              (time, y, x, polarization) with a coordinate ``polarization``
  by variable B02 ... B12 (time, y, x); sar_ascending_VV, sar_ascending_VH and so on
and in both ``masks`` (or ``mask``) or scene classes ``SCL``, and the days of year, from variables
with the official names or from the coordinate of the stream's time dimension, which may have any
name. The attribute ``units`` of a Sentinel-1 variable declares what it is in; fill values are
declared by attributes, or by the encoding to which xarray moves them.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..errors import InputError
from ..spec import S1_BANDS, S2_BANDS
from ..untrusted.damage import damaged
from ..untrusted.readers import shown
from .arrays import ALL, Picks, RowArray, packable
from .dataset_place import cannot_be_read, georeference_of, read_values
from .dates import are_dates, decoded
from .fields import ARRAYS, DAYS, ORBITS, SCL, Fields
from .nodata import NoData, declared
from .plain import unmasked

MASKS = ("masks", "mask")
CLASSES = ("SCL", "scl")
# Attributes by which CF says that what is stored is not the value.
_PACKED = {"scale_factor": 1, "add_offset": 0}
# Values picked at once by points: a Zarr store is told the place of each, 32 bytes.
_POINTS = 1 << 20


class DatasetArray(RowArray):
    """One stream: DataArrays of (time, y, x), or one of (time, y, x, channel), in any order."""

    def __init__(self, parts: Sequence[xr.DataArray], time: str, channel: "Channel | None") -> None:
        self.variables = [part.variable for part in parts]  # quicker than with coordinates
        self.names = [str(part.name) for part in parts]
        self._time = time
        self._channel = channel
        sizes = parts[0].sizes
        self.shape = (sizes[time], sizes["y"], sizes["x"])
        if channel is not None:
            self.shape += (sizes[channel.dim] if channel.dim else len(parts),)
        self._dtypes = [_meant(variable) for variable in self.variables]
        self.dtype = np.result_type(*self._dtypes).newbyteorder("=")

    @property
    def time(self) -> str:
        """The name of its time dimension."""
        return self._time

    @property
    def nodata(self) -> NoData:
        """What its attributes declare to be no value, with fill values in the model's order."""
        found = []
        for name, variable, dtype in zip(self.names, self.variables, self._dtypes, strict=True):
            try:
                found.append(declared(variable.attrs, variable.encoding, dtype))
            except ValueError as error:
                raise InputError(f"{name}: {error}; correct the attribute") from error
        why = next((nodata.why for nodata in found if nodata), "")
        return NoData(tuple(n.fills[0] if n else () for n in found), (), why)

    def _read(self, index: dict[str, Any], *leading: str) -> np.ndarray:
        """The picked part with dimensions (leading, x[, channel]); read only after picking."""
        channel = self._channel
        dims = [*leading, "x", *([channel.dim] if channel and channel.dim else [])]
        try:
            values = [
                self._plain(k, variable.isel(index).transpose(*dims))
                for k, variable in enumerate(self.variables)
            ]
        except InputError:
            raise
        except damaged() as error:  # of a file, a network, a codec
            raise cannot_be_read(error) from error
        if channel is None:
            return values[0]
        if not channel.dim:
            return np.stack(values, axis=-1)
        # Indexing by a list copies, so it is left out where the order is already the model's.
        if channel.order == tuple(range(len(channel.order))):
            return values[0]
        return values[0][..., list(channel.order)]

    def _plain(self, k: int, picked: xr.Variable) -> np.ndarray:
        """The values of variable ``k``: ``values`` of xarray would drop masks and units."""
        data = picked.compute().data if picked.chunks is not None else picked.data
        values = unmasked(data, self.names[k])
        return values if values.dtype == self._dtypes[k] else values.view(self._dtypes[k])

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


def _meant(variable: xr.Variable) -> np.dtype:
    """The dtype of the values: CF stores unsigned integers as signed ones and says so."""
    dtype, unsigned = variable.dtype, str(variable.attrs.get("_Unsigned", "")).lower()
    if dtype.kind in "iu" and unsigned in ("true", "false"):
        return np.dtype(f"{dtype.byteorder}{'u' if unsigned == 'true' else 'i'}{dtype.itemsize}")
    return dtype


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
    fields = Fields("Dataset", {}, {}, form="Dataset")
    streams = (("bands", "band", S2_BANDS), *((o, "polarization", S1_BANDS) for o in ORBITS))
    for name, dim, members in streams:
        found = _stream(dataset, name, dim, members)
        if found is None:
            continue
        parts, channel, time = found
        array = _add(fields, name, parts, time, channel)
        own_days = DAYS[name] in dataset.variables
        if own_days:
            fields.days[DAYS[name]] = _days(dataset[DAYS[name]], name, array)
        _add_dates(fields, dataset, name, time, own_days)
        if name in ORBITS and (units := _units(name, parts)):
            fields.s1_units[name] = units
    for official, spellings in (("masks", MASKS), (SCL, CLASSES)):
        there = [name for name in spellings if name in dataset.variables]
        if len(there) == 2:
            raise InputError(f"Dataset: expected one of {' and '.join(there)}, got both; drop one")
        if there:
            fields.aliases[official] = there[0]
            mask = dataset[there[0]]
            time = _time_dim(mask, there[0], ())
            _add(fields, official, [mask], time, None)
            bands = fields.arrays.get("bands")
            if isinstance(bands, DatasetArray) and time != bands.time:
                _add_dates(fields, dataset, "masks", time, False)
    fields.georeference = georeference_of(dataset)
    read = {*ARRAYS, *MASKS, *CLASSES}
    fields.others = tuple(sorted({str(v) for v in dataset.data_vars} - read))
    return fields


def _add(
    fields: Fields, name: str, parts: list[xr.DataArray], time: str, channel: "Channel | None"
) -> DatasetArray:
    for part in parts:
        _check_plain(part)
    fields.arrays[name] = array = DatasetArray(parts, time, channel)
    if nodata := array.nodata:
        fields.nodata[name] = nodata
    return array


def _check_plain(part: xr.DataArray) -> None:
    packed = {
        k: shown(part.attrs[k])
        for k, none in _PACKED.items()
        if not np.array_equal(part.attrs.get(k, none), none)
    }
    if packed:
        raise InputError(
            f"{part.name}: expected values as they are, got packed ones "
            f"({', '.join(f'{k} {v}' for k, v in packed.items())}); bring them to raw units, and "
            "drop the attributes, also where they only tell how to make reflectance of raw units"
        )


def _days(variable: xr.DataArray, name: str, array: DatasetArray) -> np.ndarray:
    if variable.ndim == 1 and variable.dims != (array.time,):
        raise InputError(
            f"{variable.name}: expected the dimension {array.time} of {name}, got "
            f"{variable.dims[0]}; the days of one axis do not tell those of another"
        )
    return unmasked(read_values(variable), str(variable.name))


def _add_dates(fields: Fields, dataset: xr.Dataset, stream: str, time: str, own_days: bool) -> None:
    """The dates of a stream from the coordinate of its time dimension, if that holds dates.

    Where the stream has days of its own, labels and positions are none; else they are refused.
    """
    if time not in dataset.coords:
        fields.undated[stream] = f"no coordinate {time}"
    else:
        coordinate = dataset.coords[time]
        try:
            values = decoded(np.asarray(read_values(coordinate)), coordinate.attrs)
        except ValueError as error:
            raise InputError(f"{time}: expected dates, got {error}; correct them") from error
        if are_dates(values) or (not own_days and values.dtype.kind in "OUSM"):
            fields.dates[stream] = lambda: values
            return
        first = f", the first {values.flat[0]}" if values.size else ""
        fields.undated[stream] = f"the coordinate {time} of {values.dtype}{first}"
    if stream == "masks":
        raise InputError(
            f"{fields.label(SCL if SCL in fields.arrays else 'masks')}: expected the time axis of "
            f"the bands, got another one with {fields.undated[stream]}; put both on one time axis, "
            "or give both dates"
        )


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
        names = [str(v).upper() for v in read_values(array.coords[dim])]
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


def _units(name: str, parts: list[xr.DataArray]) -> str | None:
    found = {str(part.attrs["units"]) if "units" in part.attrs else None for part in parts}
    if len(found) > 1:
        raise InputError(
            f"{name}: expected one attribute units for {' and '.join(S1_BANDS)}, got "
            f"{sorted(map(str, found))}; correct it"
        )
    return found.pop()
