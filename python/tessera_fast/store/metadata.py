"""What a store on disk says of itself, read with limits: identity, arrays, and opening it.

A store may come from anybody. Its JSON is checked before zarr acts on it, so that a shape or a
chunk cannot ask for more memory than the files can hold.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..packages import require
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import MAX_DIMS, MAX_JSON, MAX_SIZE, Unreadable, read_json, shown, take
from .records import checked_identity

IDENTITY = "tessera_fast:identity"  # root attributes of a store
PROVENANCE = "tessera_fast:provenance"
_MAX_ROOT = 4 * MAX_JSON  # with the metadata of all arrays once more
_MAX_LINE = 1 << 22  # values of a coordinate, which is read whole
_MAX_CHUNK = 1 << 31  # values of a chunk or shard: geotessera's have 4096 x 4096 x 128


def carried_identity(store: Path) -> str | None:
    """The identity in a store's metadata; None where there is no store, or it has none."""
    try:
        attributes = read_json(store / "zarr.json", _MAX_ROOT).get("attributes")
        if not isinstance(attributes, dict) or IDENTITY not in attributes:
            return None
        return checked_identity({"identity": attributes[IDENTITY]})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (Unreadable, OSError) as error:
        raise _unreadable(store / "zarr.json", error) from error


def is_empty(store: Path) -> bool:
    """Whether a store holds what its creation writes, and no pixel of a tile."""
    for entry in store.iterdir():
        if entry.name == "zarr.json":
            continue
        if not entry.name.startswith("utm") or not entry.is_dir() or entry.is_symlink():
            return False
        if any(entry.glob("scales/c/*/*/*")) or any(entry.glob("embeddings*/c/*/*/*/*")):
            return False
    return True


def open_store(zarr: Any, path: Path) -> Any:
    """The root group of the store at ``path`` for reading, without consolidated metadata.

    StoreError where the metadata of a group or array is damaged, or asks for too much memory.
    """
    check_metadata(path)
    with decoding(path / "zarr.json"):
        return zarr.open_group(str(path), mode="r", use_consolidated=False)


@contextmanager
def decoding(where: Path) -> Iterator[None]:
    """Around calls of zarr: what it raises for damaged metadata is a StoreError that names it."""
    try:
        yield
    except StoreError:
        raise
    except damaged() as error:
        raise _unreadable(where, error) from error


def check_metadata(path: Path) -> None:
    """StoreError where the JSON of the root, a zone or an array of one cannot be acted on."""
    for file in _metadata_files(path):
        try:
            check_node(read_json(file, _MAX_ROOT if file.parent == path else MAX_JSON))
        except (Unreadable, OSError) as error:
            raise _unreadable(file, error) from error


def check_node(node: dict[str, Any]) -> None:
    """Unreadable if the metadata of a group or array is not such as zarr can act on."""
    if node.get("zarr_format") != 3:
        raise Unreadable(f"zarr_format {shown(node.get('zarr_format'))}, expected 3")
    kind = take(node, "node_type", str)
    take({"attributes": {}, **node}, "attributes", dict)
    if kind == "group":
        return
    if kind != "array":
        raise Unreadable(f"node_type {shown(kind)}")
    shape = _sizes(node.get("shape"), "shape", 0)
    grid = take(node, "chunk_grid", dict)
    chunks = _sizes(take(grid, "configuration", dict).get("chunk_shape"), "chunk_shape", 1)
    if len(chunks) != len(shape):
        raise Unreadable(f"chunk_shape {shown(chunks)} of an array of shape {shown(shape)}")
    most = _MAX_LINE if len(shape) < 3 else _MAX_CHUNK
    if math.prod(chunks) > most or (len(shape) < 3 and math.prod(shape) > most):
        raise Unreadable(f"shape {shown(shape)} in chunks {shown(chunks)}, too much to read")
    for codec in take(node, "codecs", list):
        configuration = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(configuration, dict) and "chunk_shape" in configuration:
            _sizes(configuration["chunk_shape"], "chunk_shape", 1)


def import_zarr() -> Any:
    """The module zarr; StoreError where it is missing or too old."""
    instead = ", or write .npy files (an output name without .zarr)"
    zarr = require("zarr", "a .zarr store", instead=f" (Python >= 3.11){instead}")
    if int(zarr.__version__.split(".")[0]) < 3:
        raise StoreError(
            f"a .zarr store needs zarr >= 3 (Python >= 3.11), found zarr {zarr.__version__}: "
            f"pip install 'zarr>=3'{instead}"
        )
    return zarr


def copy_metadata(store: Path, staging: Path) -> None:
    """Copy what ``store`` says of its groups and arrays, where ``staging`` says nothing of them."""
    for folder, inside, files in os.walk(store):
        there = staging / Path(folder).relative_to(store)
        inside[:] = [name for name in inside if name != "c" and not (there / name).exists()]
        if "zarr.json" in files and there != staging:
            there.mkdir(parents=True)
            shutil.copyfile(Path(folder, "zarr.json"), there / "zarr.json")


def _sizes(value: Any, name: str, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_DIMS:
        raise Unreadable(f"{name} {shown(value)}")
    if not all(type(n) is int and least <= n <= MAX_SIZE for n in value):
        raise Unreadable(f"{name} {shown(value)}")
    return tuple(value)


def _metadata_files(path: Path) -> Iterator[Path]:
    """Of the root, the zones and their arrays."""
    yield path / "zarr.json"
    for group in sorted(path.glob("utm*")):
        if (group / "zarr.json").exists():
            yield group / "zarr.json"
            yield from sorted(group.glob("*/zarr.json"))


def _unreadable(where: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{where}: expected the metadata of a Zarr v3 store, got {first_line(error)}. Restore the "
        "file from a copy, or write to another store"
    )
