"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError
from ..files import refuse_existing


def check_writable(path: Path, *, make_folders: bool = True) -> None:
    """StoreError where a file could not be written at ``path``; nothing is left there.

    ``make_folders``: missing ones will be made, as `whole` does.
    """
    if path.is_dir():
        raise StoreError(f"{path}: is a folder; give the name of a file")
    folder = path.parent
    while make_folders and not folder.exists():
        folder = folder.parent
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=folder))
    except OSError as error:
        raise StoreError(
            f"{path}: could not be written ({error}); write elsewhere, or see to {folder}"
        ) from error


@contextmanager
def whole(path: Path, overwrite: bool) -> Iterator[Path]:
    """Yields a place for a file or a folder, which is at ``path`` after the block.

    The place is in a folder of its own beside ``path``: what a library leaves there goes too.
    Nothing stays if the block fails. OSError becomes StoreError.
    """
    refuse_existing([path], overwrite)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        yield scratch / path.name
        if path.is_dir():
            os.replace(path, scratch / "replaced")
        os.replace(scratch / path.name, path)
    except OSError as error:
        raise StoreError(
            f"{path}: could not be written ({error}); nothing was left there. Make room, or write "
            "elsewhere"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
