"""The door to outputs: a path is opened as a Zarr store or as a folder of .npy files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..untrusted.readers import local_path
from .base import (
    Output,
    Provenance,
    TileKey,
    check_names,
    npy_files,
    store_key,
)
from .disk import remove_empty
from .state import open_state


def open_output(
    path: str | os.PathLike[str],
    tiles: Iterable[TileKey],
    provenance: Provenance,
    *,
    extent: Any = None,
) -> Output:
    """Open ``path`` for writing: a Zarr store if it ends in .zarr, else a folder of .npy files.

    ``tiles`` are all the tiles of the job, of all its processes: they set the extent of a new
    store, and are checked before anything is computed. A process that works on a part of them may
    take the ``extent`` of an output that was opened with all. Nothing appears at ``path`` before
    the first commit. Raises StoreError if a tile cannot be placed or the output holds something
    else.
    """
    target = _absolute(path)
    if target.suffix == ".zarr":
        from .zarr_store import ZarrOutput

        return ZarrOutput(target, tiles, provenance, extent)
    from .npy_folder import NpyFolder

    return NpyFolder(target, tiles, provenance)


def job_extent(path: str | os.PathLike[str], tiles: Sequence[TileKey], *, int8: bool = True) -> Any:
    """What ``tiles`` together need of the output at ``path``, for `open_output`. Can be pickled.

    ``int8``: codes and scales are written, not float32. Raises StoreError if a tile cannot be
    placed, or two have one place.
    """
    target = _absolute(path)
    if target.suffix != ".zarr":
        check_names(
            target, (file for tile in tiles for file in npy_files(tile.name, int8).values())
        )
        return None
    from . import zone

    check_names(target, map(store_key, tiles))
    return zone.extent(tiles)


@contextmanager
def hold_output(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have the output open for the processes of a job, and leave it after them.

    Whoever leaves last tidies up after those that were killed. StoreError where the file system
    cannot keep several processes apart.
    """
    target = _absolute(path)
    state = open_state(target)
    try:
        state.require_locks()
        yield
    finally:
        state.close()
        if target.suffix != ".zarr":
            remove_empty(target)


def _absolute(path: str | os.PathLike[str]) -> Path:
    try:
        return local_path(path, "output").resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise StoreError(f"{path}: cannot be used as an output: {error}") from error
