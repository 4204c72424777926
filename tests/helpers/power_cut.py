"""What a disk holds after a power cut, by a model of files, names and syncs.

A `Recorder` takes the place of the functions of `tessera_fast.store.disk` and notes what they do.
A file is a number (an inode); a folder maps names to numbers. `after` gives the tree that is left
when the power fails behind the first ``count`` changes: every change whose folder was not synced
since may be lost, whichever the others are, and a file that was not synced is empty. A rename is
lost as a whole or not at all.
"""

import random
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tessera_fast.store import disk

OPERATIONS = (
    "write",
    "rename",
    "link",
    "make_folder",
    "remove",
    "remove_tree",
    "sync_file",
    "sync_folder",
)
Entry = tuple[int, str]  # folder and name
Tree = dict[str, bytes | None]  # path -> content, None for a folder


@dataclass
class Change:
    """Names that appear and go at once. Safe once the folder ``by`` is synced."""

    by: int
    gone: tuple[Entry, ...] = ()
    made: tuple[tuple[Entry, int], ...] = ()


@dataclass
class Synced:
    """A folder whose names are safe, or a file whose content is."""

    number: int
    content: bytes | None = None


@dataclass
class Recorder:
    """Of all changes below ``root``, from what it holds now on."""

    root: Path
    log: list[Change | Synced] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turn = threading.Lock()
        self._next = 1
        self._names: dict[Entry, int] = {}
        self._folders: set[int] = {0}
        self._content: dict[int, bytes] = {}  # of files that were safe before
        for path in sorted(self.root.rglob("*")):
            number = self._add(path, path.is_dir())
            if path.is_file() and "spool" not in path.parts:
                self._content[number] = path.read_bytes()
        self._before = dict(self._names)
        self.log.clear()

    @contextmanager
    def recording(self, patch):
        """Within it the functions of `disk` are noted; ``patch`` is pytest's monkeypatch."""
        with patch.context() as patched:
            for name in OPERATIONS:
                real = getattr(disk, name)
                patched.setattr(disk, name, self._noted(getattr(self, f"_{name}"), real))
            yield

    def _noted(self, note: Callable[..., None], real: Callable[..., None]):
        def function(*paths):
            result = real(*paths) if note in (self._write, self._make_folder) else None
            with self._turn:  # syncs come from several threads
                note(*paths)
            return result if note in (self._write, self._make_folder) else real(*paths)

        return function

    def _add(self, path: Path, folder: bool) -> int:
        """A new name for a new file or folder, after those of its parents."""
        entry = self._entry(path)
        if entry not in self._names:
            number, self._next = self._next, self._next + 1
            if folder:
                self._folders.add(number)
            self._names[entry] = number
            self.log.append(Change(entry[0], made=((entry, number),)))
        return self._names[entry]

    def _entry(self, path: Path) -> Entry:
        parent = path.parent
        folder = 0 if parent == self.root else self._add(parent, True)
        return folder, path.name

    def _write(self, path, _data):
        self._add(path, False)

    def _make_folder(self, path):
        self._add(path, True)

    def _link(self, source, target):
        entry, number = self._entry(target), self._add(source, False)
        self._names[entry] = number
        self.log.append(Change(entry[0], made=((entry, number),)))

    def _rename(self, source, target):
        if not source.exists():
            return
        number, old, new = self._add(source, source.is_dir()), *map(self._entry, (source, target))
        del self._names[old]
        self._names[new] = number
        self.log.append(Change(new[0], (old,), ((new, number),)))

    def _remove(self, path):
        entry = self._entry(path)
        if self._names.pop(entry, None) is not None:
            self.log.append(Change(entry[0], (entry,)))

    def _remove_tree(self, path):
        if path.exists():
            for inner in sorted(path.rglob("*"), reverse=True):
                self._remove(inner)
            self._remove(path)

    def _sync_file(self, path):
        self.log.append(Synced(self._add(path, False), path.read_bytes()))

    def _sync_folder(self, path):
        number = 0 if path == self.root else self._add(path, True)
        for inner in sorted(path.iterdir()):  # zarr makes files of a new layout by itself
            self._add(inner, inner.is_dir())
        self.log.append(Synced(number))

    def after(self, count: int, is_lost: Callable[[], bool]) -> Tree:
        """The tree after ``count`` changes, of which what is not synced ``is_lost`` or not."""
        log = self.log[:count]
        names, content = dict(self._before), dict(self._content)
        last = {s.number: n for n, s in enumerate(log) if isinstance(s, Synced)}
        for n, change in enumerate(log):
            if isinstance(change, Synced):
                if change.content is not None:
                    content[change.number] = change.content
            elif last.get(change.by, -1) > n or not is_lost():
                for entry in change.gone:
                    names.pop(entry, None)
                names.update(change.made)
        return self._tree(names, content, 0, "")

    def _tree(self, names, content, folder, path) -> Tree:
        tree: Tree = {}
        for (parent, name), number in names.items():
            if parent == folder:
                place = f"{path}/{name}".lstrip("/")
                is_folder = number in self._folders
                tree[place] = None if is_folder else content.get(number, b"")
                if is_folder:
                    tree |= self._tree(names, content, number, place)
        return tree


def losses(seed: int):
    """Functions that decide what is lost: all, nothing, and a half at random."""
    rng = random.Random(seed)
    return {"all": lambda: True, "nothing": lambda: False, "half": lambda: rng.random() < 0.5}


def lay(tree: Tree, folder: Path) -> None:
    """Make the files of a tree in an empty folder."""
    folder.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
