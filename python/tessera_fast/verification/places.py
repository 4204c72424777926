"""Which tiles an output's markers tell of, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..store.base import TileKey
from ..store.reader import Embeddings, Layer
from ..store.state import STATE
from ..store.zone import Grid, place
from ..untrusted.readers import Unreadable, read_json, take, take_numbers, take_whole

SCALES = "_scales"  # <tile>_scales.npy beside <tile>.npy


@dataclass(frozen=True)
class TilePlace:
    """A finished tile: its name and its place, None where the marker has none."""

    name: str
    grid: Grid | None


def is_store(path: Path) -> bool:
    return (path / "zarr.json").exists()


def state_folder(path: Path) -> Path:
    """Where the state of a build of the output at ``path`` is kept."""
    return path.with_name(path.name + ".state") if is_store(path) else path / STATE


def markers(path: Path) -> Iterator[Path]:
    """The files that say which tiles are finished."""
    yield from sorted((state_folder(path) / "done").glob("*.json"))


def tiles(output: Embeddings) -> list[TilePlace]:
    """Every finished tile of an output, by its markers."""
    found = []
    for file in markers(output.path):
        try:
            record = read_json(file)
            found.append(TilePlace(take(record, "tile", str), marked_place(record)))
        except (OSError, Unreadable) as error:
            raise StoreError(
                f"{file}: cannot be read as a marker ({error}); `tessera-fast verify "
                f"{output.path}` checks all of them"
            ) from error
    return found


def marked_place(record: dict[str, Any]) -> Grid | None:
    """Where a marker says that its tile lies; StoreError if no store could hold it."""
    needed = ("height", "width", "year", "crs", "transform")
    if any(record.get(k) is None for k in needed):
        return None
    try:
        height, width = (take_whole(record, k, 1, 2**31) for k in ("height", "width"))
        year, crs = take_whole(record, "year", 1, 9999), take(record, "crs", str)
        a, b, c, d, e, f = take_numbers(record, "transform", 6)
        name = take(record, "tile", str)
    except Unreadable as error:
        raise StoreError(f"a marker's place cannot be read: {error}") from error
    return place(TileKey(name, height, width, "", year, crs, (a, b, c, d, e, f)))


def layer_place(layer: Layer) -> Grid | None:
    """Where a layer lies, in the northern CRS of its zone; None where that is not known."""
    if layer.crs is None or layer.transform is None or layer.year is None:
        return None
    assert len(layer.transform) == 6
    a, b, c, d, e, f = layer.transform
    key = TileKey(
        layer.name, layer.height, layer.width, "", layer.year, layer.crs, (a, b, c, d, e, f)
    )
    return place(key)
