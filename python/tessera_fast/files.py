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
