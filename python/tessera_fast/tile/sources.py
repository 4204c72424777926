"""What a tile may be given as: which form a source has, and the tiles that sources stand for."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import InputError
from .arrays import MemoryArray, RowArray
from .cube import NETCDF, read_cube
from .fields import ARRAYS, DAYS, SCL, Fields
from .folder import is_cube, names_in, read_folder
from .nodata import NoData, declared
from .plain import plain, unmasked
from .remote import is_url, read_url

_log = logging.getLogger("tessera_fast")


def read_source(source: Any) -> Fields:
    """The arrays of a folder, cube, URL, dict or Dataset; InputError if it is none of them."""
    if is_url(source):
        return read_url(source)
    if isinstance(source, str | PathLike):
        return _read_path(Path(source))
    # xarray is heavy, and whoever holds a Dataset has imported it: its name is enough to tell.
    if type(source).__module__.partition(".")[0] == "xarray":
        from .dataset import read_dataset

        return read_dataset(source)
    if isinstance(source, Mapping):
        return _read_mapping(source)
    raise InputError(
        "tile: expected a folder, a dict of arrays, an xarray.Dataset or a Tile, or the path or "
        f"URL of a cube, got {type(source).__name__}"
    )


def name_of(source: Any) -> str:
    """What the tile of ``source`` is called: the folder's name, or the cube's without its end."""
    if not isinstance(source, str | PathLike):
        return "tile"
    if is_url(source):
        name = str(source).rstrip("/").rpartition("/")[2]
    else:
        name = Path(source).resolve().name
    return name.removesuffix(".zarr") if name.endswith(".zarr") else _without(name, NETCDF)


def _without(name: str, ends: Iterable[str]) -> str:
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)


def _read_path(path: Path) -> Fields:
    if path.suffix in NETCDF and path.is_file():
        return read_cube(str(path))
    try:
        names = names_in(path)
    except NotADirectoryError:
        raise _no_tile(path, "a file") from None
    except FileNotFoundError:
        raise _no_tile(path, "nothing there") from None
    except OSError as error:
        raise _no_tile(path, str(error)) from error
    if is_cube(path.name, names):
        return read_cube(str(path))
    return read_folder(path, names)


def _no_tile(path: Path, got: str) -> InputError:
    return InputError(
        f"{path}: expected a folder with bands.npy, masks.npy, ..., or a cube (.zarr, .nc), got "
        f"{got}"
    )


def _read_mapping(arrays: Mapping[str, Any]) -> Fields:
    known = (*ARRAYS, SCL)
    unknown = sorted(str(key) for key in arrays if key not in known)
    if unknown:
        raise InputError(f"dict: expected keys among {', '.join(known)}, got {', '.join(unknown)}")
    fields = Fields("dict", {}, {}, form="arrays")
    for name, value in arrays.items():
        if value is None:
            continue
        if name in DAYS.values():
            fields.days[name] = unmasked(value, name)
            continue
        array, mask = plain(value, name)
        fields.arrays[name] = MemoryArray(array)
        beside: tuple[RowArray, ...] = () if mask is None else (MemoryArray(mask),)
        nodata = NoData((), beside, "masked values" if beside else "")
        if hasattr(value, "attrs"):
            nodata |= _declared(name, value, array.dtype)
        if nodata:
            fields.nodata[name] = nodata
    return fields


def _declared(name: str, value: Any, dtype: Any) -> NoData:
    """What a DataArray, or a variable of h5py, says of the values it is given for."""
    if getattr(value, "coords", None):
        raise InputError(
            f"{name}: expected a plain array, got a {type(value).__name__} with coordinates "
            f"({', '.join(map(str, value.coords))}), which would be ignored; give an "
            f"xarray.Dataset, or {name}.values"
        )
    try:
        return declared(value.attrs, getattr(value, "encoding", {}), dtype)
    except ValueError as error:
        raise InputError(f"{name}: {error}; correct the attribute") from error


def expand(sources: Iterable[str | PathLike[str]] | str | PathLike[str]) -> Iterator[str]:
    """The tiles that paths stand for, one at a time, as `open_tile` takes them.

    A folder with bands.npy, a cube (.zarr, .nc) and a URL stand for themselves. Any other folder
    stands for the tiles and cubes in it, by name, and no deeper; hidden ones are left out.
    ``@list.txt`` stands for its lines, without empty ones and those that begin with #. A path that
    is not there is passed on: opening it says so. Raises InputError for a folder without a tile
    and for a list that cannot be read.
    """
    paths = [sources] if isinstance(sources, str | PathLike) else sources
    for source in paths:
        text = os.fspath(source)
        if text.startswith("@"):
            yield from _lines(text[1:])
        elif is_url(text) or text.endswith(NETCDF) or not os.path.isdir(text):
            yield text
        else:
            yield from _expand_folder(text)


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"@{path}: expected a text file with one tile a line, got {error}"
        ) from error
    yield from (line for line in lines if line and not line.startswith("#"))


def _expand_folder(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    names = {entry.name for entry in entries}
    # with any of its arrays it is a tile: opening it says what is missing
    if names & {f"{name}.npy" for name in ARRAYS} or is_cube(Path(folder).name, names):
        yield folder
        return
    tiles: list[str] = []
    others: list[str] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.name.endswith((".zarr", *NETCDF)):
            tiles.append(entry.path)
        elif entry.is_dir():
            inside = os.path.exists(os.path.join(entry.path, "bands.npy"))
            (tiles if inside else others).append(entry.path)
    if not tiles:
        got = f"{len(others)} folders without it" if others else f"{len(names)} files"
        raise InputError(
            f"{folder}: expected a tile (a folder with bands.npy, masks.npy, ...), a folder of "
            f"tiles, or a cube (.zarr, .nc), got {got if names else 'an empty folder'}"
        )
    if others:
        some = ", ".join(itertools.islice((Path(p).name for p in others), 5))
        _log.warning("%s: %d folders without bands.npy are left out (%s%s)", folder, len(others),
                     some, ", ..." if len(others) > 5 else "")  # fmt: skip
    yield from tiles
