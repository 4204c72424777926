"""The sources of a job or a plan one by one, each with a number that tells whose it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import TesseraError
from ..tile import Tile
from ..tile.sources import name_of, numbered, source_path
from ..untrusted.readers import local_path, printable


@dataclass(frozen=True)
class Source:
    """A tile or cube that has not been opened yet."""

    given: Any  # what `open_tile` takes; paths are absolute
    number: int
    error: TesseraError | None = None  # why it cannot be listed
    unlisted: bool = False  # it is not there or cannot be listed: how many tiles it has is unknown

    @property
    def name(self) -> str:
        """What its tile is called as far as is known."""
        if isinstance(self.given, Tile):
            return self.given.name
        try:
            return printable(name_of(self.given))
        except ValueError:  # no path can be so
            return printable(self.given)

    @property
    def place(self) -> str | None:
        """The absolute path or URL, for a report; None for arrays."""
        if isinstance(self.given, Tile):
            return self.given.source
        try:
            return source_path(self.given)
        except ValueError:
            return printable(self.given)


def listed(tiles: Any) -> Iterator[Source]:
    """Every source of ``tiles``: one source of `open_tile` or a list of them.

    A source that is given has the number of its name among all names; what a folder holds has
    numbers from that of the folder on. So no number depends on what can be opened.
    """
    given = list(tiles) if isinstance(tiles, list | tuple) else [tiles]
    # by name: the same tiles may be in another order, or in another folder, for another process
    in_order = sorted(range(len(given)), key=lambda i: _order(given[i]))
    first = {i: number for number, i in enumerate(in_order)}
    for i, source in enumerate(given):
        if isinstance(source, str | os.PathLike):
            yield from _of_path(os.fspath(source), first[i])
        else:
            yield Source(source, first[i])


def _of_path(text: str, first: int) -> Iterator[Source]:
    try:
        gone = False
        if not text.startswith("@") and "://" not in text:
            text = str(local_path(text, "tile"))
            gone = not os.path.exists(text)
        for number, path in numbered(text):
            yield _absolute(path, first + number, gone)
    except TesseraError as error:
        yield Source(text, first, error, unlisted=True)


def _absolute(path: str, number: int, gone: bool) -> Source:
    try:
        return Source(absolute(path), number, unlisted=gone)
    except TesseraError as error:  # of a line of a list
        return Source(path, number, error)


def _order(source: Any) -> tuple[str, str]:
    if isinstance(source, Tile):
        return source.name, ""
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    return text.rstrip("/").rpartition("/")[2], text


def absolute(path: str | os.PathLike[str]) -> str:
    """A path that means the same in every process of this machine; a URL as it is.

    ".." stays, as it may follow a link. InputError for what no path can be.
    """
    text = os.fspath(path)
    return text if "://" in text else str(local_path(text, "tile").absolute())
