"""Files that a user has: nothing is written over them without being asked."""

from collections.abc import Iterable
from pathlib import Path

from .errors import StoreError


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """StoreError if one of ``paths`` exists and may not be replaced."""
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise StoreError(f"{there[0]}{more}: exists; give overwrite (--overwrite) to replace it")


def refuse_filled(folder: Path, overwrite: bool) -> None:
    """StoreError if ``folder`` has anything in it, which files of the same names would replace."""
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise StoreError(
            f"{folder}: expected a new or an empty folder, got one with files in it; give another, "
            "or overwrite (--overwrite)"
        )
