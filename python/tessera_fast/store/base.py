"""What the pipeline writes to: one protocol for a Zarr store and for a folder of .npy files.

A tile arrives row block by row block, is spooled to disk, and appears whole or not at all. H, W are
the tile's rows and columns, h the rows of a block, E the embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import StoreError
from ..untrusted.readers import MAX_NAME, plain_name, printable

COUNT_NAMES = ("s2_obs_count", "s1_asc_obs_count", "s1_desc_obs_count")  # order of `counts`
# What must agree within one output: anything else may change without changing what values mean.
IDENTITY = (
    "model",
    "weights_sha256",
    "precision",
    "dims",
    "prefixes",
    "dtype",
    "seed",
    "repeats",
    "period",
    "package_version",
)


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


def store_key(tile: TileKey) -> str:
    """Name of a tile's marker and lock in a store."""
    return f"{tile.name}.{tile.year}"


def npy_files(name: str, int8: bool) -> dict[str, str]:
    """File name of each array of a tile, in the order in which they appear: embeddings last."""
    files = {"scales": f"{name}_scales.npy"} if int8 else {}
    return {**files, "embeddings": f"{name}.npy"}


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
