"""`tessera-fast verify A`: is one output sound? Every problem is named with what to do."""

from __future__ import annotations

import os

from ..errors import StoreError
from ..progress import Progress
from ..untrusted.readers import local_path
from .findings import Check
from .folder_check import check_folder
from .places import is_store, state_folder
from .state_check import check_leftovers
from .store_check import check_store


def check(path: str | os.PathLike[str], *, progress: Progress = None) -> Check:
    """Read all of one output, a store or a folder of .npy files, and look for what is wrong.

    Files that cannot be decoded, values that no run writes, georeference that contradicts itself,
    markers without their tile, and what a run that died has left. Nothing is changed. StoreError if
    ``path`` is neither kind of output.
    """
    place = local_path(path, "output").resolve()
    out = Check(place)
    if is_store(place):
        check_store(out, progress)
    elif place.is_dir() and (any(place.glob("*.npy")) or state_folder(place).exists()):
        check_folder(out, progress)
    else:
        raise StoreError(
            f"{place}: expected a Zarr store of embeddings or a folder of .npy files of them"
        )
    check_leftovers(out)
    return out
