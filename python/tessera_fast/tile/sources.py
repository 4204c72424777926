"""What a tile may be given as: which form a source has, and the tiles that sources stand for."""

import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..untrusted.readers import Unreadable, local_path, printable, shown
from ..untrusted.suggest import closest
from .arrays import MemoryArray, RowArray
from .cube import NETCDF, read_cube
from .fields import ARRAYS, DAYS, SCL, Fields
from .folder import given_name, is_cube, names_in, read_folder
from .nodata import NoData, declared
from .plain import plain, unmasked
from .remote import is_url, read_url

_log = logging.getLogger("tessera_fast")
_MOST_LINES = 64 << 20  # bytes of a list of tiles
_ARRAY_FILES = {f"{name}.npy" for name in ARRAYS}


def read_source(source: Any) -> Fields:
    """The arrays of a folder, cube, URL, dict or Dataset; InputError if it is none of them."""
    if is_url(source):
        return read_url(source)
    if isinstance(source, str | PathLike):
        return _read_path(local_path(source, "tile"))
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
        name = given_name(local_path(source, "tile"))
    return name.removesuffix(".zarr") if name.endswith(".zarr") else _without(name, NETCDF)


def source_path(source: Any) -> str | None:
    """Where ``source`` is read from: an absolute path or a URL; None for arrays.

    The last name is the one that was given, and links before it are followed, so that one tile has
    one path. A URL is without a user's name, password and signature. Letters that are no UTF-8 are
    escaped, for it is text to be kept and compared, not to be opened.
    """
    if not isinstance(source, str | PathLike):
        return None
    if is_url(source):
        scheme, _, address = str(source).partition("?")[0].partition("://")
        host, slash, rest = address.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{rest}"
    path = local_path(source, "tile")
    if path.name in ("", ".."):
        return printable(os.path.realpath(path))
    return printable(os.path.join(os.path.realpath(path.parent), path.name))


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
        near = closest(unknown[0], known)
        raise InputError(
            f"dict: expected keys among {', '.join(known)}, got {', '.join(unknown)}.{near}"
        )
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
    many = isinstance(sources, Iterable) and not isinstance(sources, str | PathLike)
    paths: Any = sources if many else [sources]
    for source in paths:
        yield from (path for _, path in numbered(source))


def numbered(source: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """The tiles that one path stands for, see `expand`, each with its number.

    In a folder everything that may be a tile by its name and kind has a number, so that the numbers
    of the others do not depend on whether one can be read.
    """
    if not isinstance(source, str | PathLike):
        raise InputError(f"tiles: expected paths or URLs, got {shown(source)}")
    text = os.fspath(source)
    if text.startswith("@"):
        yield from enumerate(_lines(text[1:]))
    elif is_url(text) or text.endswith(NETCDF) or not os.path.isdir(text):
        yield 0, text
    else:
        yield from _in_folder(text)


def _lines(path: str) -> Iterator[str]:
    try:
        with open(local_path(path, "@"), "rb") as file:  # may be a pipe
            data = file.read(_MOST_LINES + 1)
        if len(data) > _MOST_LINES:
            raise Unreadable(f"more than {_MOST_LINES} bytes")
        lines = [line.strip() for line in data.decode("utf-8").split("\n")]
    except (OSError, UnicodeDecodeError, Unreadable) as error:
        raise InputError(
            f"@{path}: expected a text file with one tile a line, got {error}"
        ) from error
    yield from (line for line in lines if line and not line.startswith("#"))


def _in_folder(folder: str) -> Iterator[tuple[int, str]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{folder}: expected a tile or a folder of tiles, got one that cannot be listed "
            f"({error.strerror})"
        ) from error
    names = {entry.name for entry in entries}
    # with any of its arrays it is a tile: opening it says what is missing
    if names & _ARRAY_FILES or is_cube(given_name(Path(folder)), names):
        yield 0, folder
        return
    tiles: list[tuple[int, str]] = []
    others: list[str] = []
    for number, entry in enumerate(filter(_may_be_tile, entries)):
        kind = _kind(entry)
        if kind == "tile":
            tiles.append((number, entry.path))
        elif kind == "folder":
            others.append(entry.name)
    if not tiles:
        got = f"{len(others)} folders without it" if others else f"{len(names)} files"
        raise InputError(
            f"{folder}: expected a tile (a folder with bands.npy, masks.npy, ...), a folder of "
            f"tiles, or a cube (.zarr, .nc), got {got if names else 'an empty folder'}"
        )
    if others:
        _log.warning(
            "%s: %d folders without bands.npy are left out (%s%s)",
            folder,
            len(others),
            ", ".join(others[:5]),
            ", ..." if len(others) > 5 else "",
        )
    yield from tiles


def _may_be_tile(entry: os.DirEntry[str]) -> bool:
    """By name and kind alone: nothing of the entry is read, and no link is followed."""
    if entry.name.startswith("."):
        return False
    is_cube_name = entry.name.endswith((".zarr", *NETCDF))
    return is_cube_name or entry.is_symlink() or entry.is_dir(follow_symlinks=False)


def _kind(entry: os.DirEntry[str]) -> str:
    """ "tile", "folder" for another folder, or "file".

    What cannot be looked at counts as a tile: opening it says why.
    """
    if entry.name.endswith((".zarr", *NETCDF)):
        return "tile"
    try:
        if not stat.S_ISDIR(os.stat(entry.path).st_mode):
            return "file"
        if os.path.exists(os.path.join(entry.path, "bands.npy")):
            return "tile"
        return "tile" if names_in(entry.path) & _ARRAY_FILES else "folder"
    except OSError:  # a link to nothing, a folder that may not be entered, a disk that fails
        return "tile"
