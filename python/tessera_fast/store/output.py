"""What the pipeline writes to: one protocol for a Zarr store and for a folder of .npy files.

A tile arrives row band by row band, is spooled to disk, and appears whole or not at all. H, W are
the tile's rows and columns, h the rows of a band, E the embedding width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import StoreError
from ..untrusted.readers import MAX_NAME, local_path, plain_name, printable
from .disk import RowFile
from .metadata import carried_identity, is_empty
from .state import BuildState

STATE = ".tessera_fast"  # in a folder of .npy files
COUNT_NAMES = ("s2_obs_count", "s1_asc_obs_count", "s1_desc_obs_count")  # order of `counts`
# What must agree within one output: anything else may change without changing what values mean.
IDENTITY = (
    "model", "weights_sha256", "precision", "dims", "prefixes", "dtype", "seed", "repeats",
    "period", "package_version",
)  # fmt: skip


@dataclass(frozen=True)
class TileKey:
    """Which tile an output is for, where it lies and what it was made from."""

    name: str  # file name of the .npy output, and of the marker
    height: int
    width: int
    fingerprint: str  # of the inputs; another value means the tile is to be made again
    year: int | None = None
    crs: str | None = None  # "EPSG:32631" or anything pyproj reads
    transform: tuple[float, float, float, float, float, float] | None = None
    # (a, b, c, d, e, f) in rasterio's order: x = a col + b row + c, origin at the pixel corner
    source: str | None = field(default=None, compare=False)
    # where it was read from: an absolute path or a URL; None for arrays


@dataclass(frozen=True)
class Provenance:
    """What made the values. Fields named in ``IDENTITY`` may not differ within one output."""

    model: str
    weights_sha256: str
    weights_source: str
    trained: bool
    precision: str
    dims: int  # E
    dtype: str = "int8"  # "int8": codes and scales | "float32": values
    prefixes: tuple[int, ...] = ()  # Matryoshka widths below E that stand alone
    seed: int | None = None  # of v1.0's random draws, and how many are averaged
    repeats: int | None = None
    period: str | None = None  # "07-01/06-30": month and day of a year that is no calendar year
    backend: str = ""
    isa: str | None = None
    package_version: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "prefixes": list(self.prefixes)}

    def refuse_mixing(self, path: Path, recorded: dict[str, Any]) -> None:
        """Raise StoreError, showing both sides, if ``recorded`` (from ``to_json``) differs."""
        ours = self.to_json()
        differing = [k for k in IDENTITY if recorded.get(k) != ours[k]]
        if differing:
            sides = "; ".join(
                f"{k}: it holds {recorded.get(k)!r}, this run has {ours[k]!r}" for k in differing
            )
            raise StoreError(
                f"{path}: will not mix embeddings that cannot be compared ({sides}). "
                "Write to another output, or run with what the output holds"
            )


class TileWriter(Protocol):
    """One tile on its way to the output; used from one thread at a time."""

    def write_rows(
        self, start: int, values: np.ndarray, scales: np.ndarray | None, counts: np.ndarray
    ) -> None:
        """Spool rows ``start .. start + h`` in any order; each row must come once at least.

        ``values`` (h, W, E) int8 codes with ``scales`` (h, W) float32, +inf = no data; or
        ``values`` float32 with ``scales`` None, NaN = no data. ``counts`` (h, W, 3) uint16:
        observations of Sentinel-2, Sentinel-1 ascending, descending. Raises StoreError on a wrong
        shape or dtype and when the disk refuses, after removing what was spooled.
        """

    def commit(self) -> None:
        """Make the whole tile appear, its marker last.

        StoreError: it has not appeared, and its rows are gone; or, where the disk was full at the
        very end, whoever comes next completes it.
        """

    def abort(self) -> None:
        """Remove every temporary file of this tile; does nothing after commit."""


class Output(Protocol):
    """An open output: use ``contextlib.closing``. Several processes may have it open at once."""

    @property
    def extent(self) -> Any:
        """What the job's tiles need of the output, to be given to other processes of the job."""

    def is_done(self, tile: TileKey) -> bool:
        """True if a run with the same inputs, model, weights and precision finished the tile, and
        its files are still those that the run left."""

    def refusal(self, tile: TileKey) -> str | None:
        """Why this one tile cannot be written here: another tile has its name. None if it can."""

    def begin(self, tile: TileKey) -> TileWriter | None:
        """Claim and start a tile, or None while another process has it.

        Ask ``is_done`` after this, for another process may just have finished it. Tiles may be open
        side by side; commits follow one another.
        """

    def holders(self) -> str:
        """The other processes that have the output open, as text for a person who waits."""

    def close(self) -> None:
        """Let go of the output. Tiles that were begun and not committed leave nothing."""


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


def open_state(target: Path) -> BuildState:
    """The state of the output at an absolute path."""
    if target.suffix == ".zarr":
        return BuildState(
            target.with_name(target.name + ".state"),
            target,
            carried=lambda: carried_identity(target),
            is_empty=lambda: is_empty(target),
        )
    return BuildState(target / STATE, target)


def remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    with suppress(OSError):
        folder.rmdir()


def store_key(tile: TileKey) -> str:
    """Name of a tile's marker and lock in a store."""
    return f"{tile.name}.{tile.year}"


def npy_files(name: str, int8: bool) -> dict[str, str]:
    """File name of each array of a tile, in the order in which they appear: embeddings last."""
    files = {"scales": f"{name}_scales.npy"} if int8 else {}
    return {**files, "embeddings": f"{name}.npy"}


def _absolute(path: str | os.PathLike[str]) -> Path:
    try:
        return local_path(path, "output").resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise StoreError(f"{path}: cannot be used as an output: {error}") from error


def other_tile(
    path: Path, tile: TileKey, marker: Mapping[str, Any] | None, place: Mapping[str, Any]
) -> str | None:
    """Why ``tile`` may not replace the finished tile of its name in the output at ``path``.

    What was read from the same path is the same tile made again. Arrays have no path: there the
    same ``place`` as in the ``marker`` makes it the same tile.
    """
    if marker is None or marker["fingerprint"] == tile.fingerprint:
        return None
    theirs = marker.get("source")
    if tile.source is not None and theirs is not None:
        if tile.source == theirs:
            return None
    elif None not in place.values() and all(marker.get(k) == v for k, v in place.items()):
        return None
    finished, ours = (printable(s) if s else "arrays in memory" for s in (theirs, tile.source))
    return (
        f"{path}: two tiles have the name {tile.name!a}: the finished one was read from "
        f"{finished}, this one from {ours}, and their observations differ. Nothing was changed; "
        "rename one input folder, or write to another output"
    )


def check_names(path: Path, names: Iterable[str]) -> None:
    """StoreError unless every name is a plain file name and none occurs twice."""
    seen: set[str] = set()
    for name in names:
        if not plain_name(name):
            raise StoreError(
                f"{path}: a tile's name must be a plain file name of at most {MAX_NAME} bytes, "
                f"got {name!a}"
            )
        if name in seen:
            raise StoreError(
                f"{path}: two tiles of this job would both write {name!r}. Rename one input "
                "folder, or write them to two outputs"
            )
        seen.add(name)


class SpooledTile:
    """The TileWriter of both outputs: rows go to .npy files, ``publish`` makes them appear.

    ``key``: of the tile, claimed in ``state``. ``kept``: the arrays that ``publish`` needs.
    """

    def __init__(
        self,
        tile: TileKey,
        provenance: Provenance,
        state: BuildState,
        key: str,
        kept: Sequence[str],
        publish: Callable[[SpooledTile], None],
    ) -> None:
        self.tile = tile
        self._state, self._key, self._publish = state, key, publish
        h, w = tile.height, tile.width
        dtype = np.dtype(provenance.dtype)
        self._shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            "embeddings": ((h, w, provenance.dims), dtype),
            "counts": ((h, w, len(COUNT_NAMES)), np.dtype(np.uint16)),
        }
        if dtype == np.int8:
            self._shapes["scales"] = ((h, w), np.dtype(np.float32))
        self._written = np.zeros(h, bool)
        self._open = True
        self._files: dict[str, RowFile] = {}
        try:
            self.folder = state.spool(key)  # all that is in it goes with the tile
            for name in kept:
                self._files[name] = RowFile(self.file(name), *self._shapes[name])
        except OSError as error:
            self._fail(error)

    def file(self, name: str) -> Path:
        """Spool file of ``embeddings``, ``scales`` or ``counts``."""
        return self.folder / f"{name}.npy"

    def write_rows(
        self, start: int, values: np.ndarray, scales: np.ndarray | None, counts: np.ndarray
    ) -> None:
        self._check_open()
        rows = {"embeddings": values, "counts": counts}
        if scales is not None:
            rows["scales"] = scales
        if rows.keys() != self._shapes.keys():
            raise StoreError(
                f"tile {self.tile.name}: {self._shapes['embeddings'][1]} rows come "
                f"{'with' if 'scales' in self._shapes else 'without'} scales"
            )
        stop = start + len(values)
        if not 0 <= start <= stop <= self.tile.height:
            raise StoreError(
                f"tile {self.tile.name}: rows {start}..{stop} are outside 0..{self.tile.height}"
            )
        for name, array in rows.items():
            shape, dtype = self._shapes[name]
            expected = (stop - start, *shape[1:])
            if array.shape != expected or array.dtype != dtype:
                raise StoreError(
                    f"tile {self.tile.name}, rows {start}..{stop}: expected {name} {expected} "
                    f"{dtype}, got {array.shape} {array.dtype}"
                )
        try:
            for name, file in self._files.items():
                file.write(start, rows[name])
        except OSError as error:
            self._fail(error)
        self._written[start:stop] = True

    def commit(self) -> None:
        self._check_open()
        if not self._written.all():
            missing = int(np.flatnonzero(~self._written)[0])
            self.abort()
            raise StoreError(
                f"tile {self.tile.name}: row {missing} of {self.tile.height} was never written"
            )
        try:
            for file in self._files.values():
                file.close()
            self._publish(self)
        except OSError as error:
            self._fail(error)
        finally:
            self.abort()

    def abort(self) -> None:
        if self._open:
            self._open = False
            for file in self._files.values():
                file.discard()
            self._state.release(self._key)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"tile {self.tile.name}: already committed or aborted")

    def _fail(self, error: OSError) -> None:
        self.abort()
        raise StoreError(
            f"tile {self.tile.name}: could not be written: {error} (spooled in "
            f"{self._state.folder}). Its temporary files were removed and finished tiles are "
            "intact; make room and run again"
        ) from error
