"""Many tiles to one output: what there is to do, and who does it. `tf.embed_tiles` is here.

A job is a list of tasks, one a tile, and one description of what to do with each. An executor gives
tasks to processes; each of them runs `TileRunner`.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import env
from .energy import EnergyMeter
from .errors import InputError, StoreError, TesseraError
from .executors import run_tasks
from .executors.base import Job, Watch
from .model import Model
from .pipeline import Settings
from .plan_table import Plan, PlanRow
from .progress import Progress, progress_bar
from .runner import Task, TileReport
from .spec import NAMED
from .store import Provenance, TileKey, job_extent, zone
from .tile import Tile, expand, open_tile, open_windows, period_of_year


@dataclass
class JobReport:
    """What became of a job's tiles, and where its time went."""

    out: str
    tiles: list[TileReport] = field(default_factory=list)
    provenance: Provenance | None = None  # None: there was nothing to do
    seconds: dict[str, float] = field(default_factory=dict)  # of every stage, over all processes
    wall: float = 0.0
    joules: float | None = None  # of this machine's processors meanwhile, where they are counted

    def count(self, state: str) -> int:
        """Tiles that are "done", "skipped" or "failed"."""
        return sum(tile.state == state for tile in self.tiles)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what became of every tile as JSON."""
        tiles = [
            {**asdict(t), "error": None if t.error is None else str(t.error)} for t in self.tiles
        ]
        made = None if self.provenance is None else self.provenance.to_json()
        text = json.dumps(
            {"out": self.out, "wall": self.wall, "joules": self.joules, "seconds": self.seconds,
             "provenance": made, "tiles": tiles}, indent=1,
        )  # fmt: skip
        partial = Path(f"{os.fspath(path)}.partial")
        try:
            partial.write_text(text)
            partial.replace(path)
        except OSError as error:
            raise StoreError(f"{path}: the report could not be written ({error})") from error

    def summary(self) -> str:
        """What was done, and how busy the encoder was, as two lines of text."""
        if not self.tiles:
            return f"no tile is to be embedded -> {self.out}"
        made = ""
        if self.provenance is not None:
            p = self.provenance
            model = p.model if p.trained else f"{p.model} (untrained)"
            made = f" with {model} ({p.backend}, {p.precision})"
        text = f"{self.count('done')} of {len(self.tiles)} tiles embedded{made} in "
        text += f"{self.wall:.1f} s -> {self.out}"
        for state, said in (("skipped", "done before"), ("failed", "failed")):
            text += f"; {self.count(state)} {said}" if self.count(state) else ""
        if not self.count("done"):
            return text
        if "run" not in self.seconds:  # of workers that were killed it is not known
            return text
        spent = dict(self.seconds)
        run, starved, blocked = (spent.pop(name, 0.0) for name in ("run", "starved", "blocked"))
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
        return (
            f"{text}\nencoder busy {spent.get('encode', 0.0) / run:.0%} of {run:.1f} s; it waited "
            f"{starved:.1f} s for input and {blocked:.1f} s for output\n({stages})"
        )


def embed_tiles(
    tiles: Any,
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | Model = "v2-medium",
    *,
    weights: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Any = None,
    threads: int | None = None,
    dims: int | None = None,
    int8: bool = False,
    memory: int | str | None = None,
    seed: int = 0,
    repeats: int = 1,
    on_error: str = "raise",
    executor: str = "process",
    workers: int | None = None,
    retries: int = 2,
    resources: Mapping[str, float] | None = None,
    shard: tuple[int, int] | None = None,
    window: int | None = None,
    progress: Progress = None,
    report: Callable[[TileReport], None] = lambda _: None,
    started: Callable[[Provenance], None] = lambda _: None,
    **options: Any,
) -> JobReport:
    """Embed many tiles into ``out``: a Zarr store (its name ends in .zarr) or a folder of .npy.

    ``tiles``: a Plan, or sources of `open_tile`, which takes ``options``; a folder of tile folders
    stands for all of them, and ``window`` cuts what is larger into tiles of so many pixels a side,
    as `open_windows` does. ``model`` to ``repeats`` are those of `embed`; ``int8`` concerns .npy
    output, as a store always holds int8. A tile appears whole or not at all; one that is done
    with the same inputs, weights and settings is skipped. Several processes, also on several
    machines, may fill one output at once, each with all tiles or with its ``shard`` (i, n).

    ``executor``: "process" is this one; "local" has ``workers`` processes on this machine, one per
    GPU or NUMA node by default; "ray" has ``workers`` actors, each with ``resources`` such as
    {"num_gpus": 0.5}. A tile whose worker dies is tried
    ``retries`` times more. ``on_error="skip"`` goes on after a tile that cannot be embedded, and
    lists it in the result; "raise" raises its error. ``report`` is called after each tile, and
    ``started`` when the model is loaded.

    Raises InputError for what cannot be embedded, StoreError if ``out`` holds anything made
    differently, cannot be placed or cannot be written.
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
    clock, meter = time.perf_counter(), EnergyMeter()
    result = JobReport(os.fspath(out))
    in_store = Path(out).suffix == ".zarr"

    def note(tile: TileReport) -> None:
        if tile.error is not None and on_error == "raise":
            raise tile.error
        error: BaseException | None = tile.error
        while error is not None:  # its frames hold the observations that were read
            error.__traceback__ = None
            error = error.__cause__ or error.__context__
        result.tiles.append(tile)
        report(tile)

    def begin(provenance: Provenance) -> None:
        result.provenance = provenance
        started(provenance)

    if isinstance(tiles, Plan):
        if window is not None:
            raise InputError("window: a plan is of whole tiles; give the tiles themselves")
        options = {**tiles.options["open"], **options}
    part = slice(None) if shard is None else _checked(shard)
    tasks = list(_tasks(tiles, options, window, in_store, note))
    settings = Settings(
        dims, memory, seed, repeats, period=period_of_year(options.get("period"))
    )  # fmt: skip
    extent = job_extent(out, [task.key for task in tasks], int8=int8)
    place = None if device is None else str(device)
    if threads is not None:
        threads = env.threads(threads)
    job = Job(
        os.path.abspath(os.path.expanduser(out)), _anywhere(model), _anywhere(weights), backend,
        precision, place, threads, settings, int8 or in_store, options, extent,
    )  # fmt: skip
    tasks = tasks[part]
    if tasks:
        pixels = sum(task.pixels for task in tasks)
        with progress_bar(pixels, Path(out).name, progress) as tick:
            watch = Watch(note, begin, tick, result.seconds)
            run_tasks(
                executor, job, tasks, watch, workers=workers, retries=retries, resources=resources
            )
    result.wall, result.joules = time.perf_counter() - clock, meter.joules()
    return result


def _tasks(
    tiles: Any,
    options: dict[str, Any],
    window: int | None,
    in_store: bool,
    failed: Callable[[TileReport], None],
) -> Iterator[Task]:
    """The tiles as tasks. What cannot be opened or placed is given to ``failed``."""
    if isinstance(tiles, Plan):
        for failure in tiles.failed:
            failed(TileReport(failure.source, 0, state="failed", error=InputError(failure.message)))
        yield from (Task(row.source, _planned(row)) for row in tiles)
        return
    for source in _sources(tiles):
        try:
            tile = open_tile(source, **options)
            cut = window is not None and window < max(tile.height, tile.width)
            parts = open_windows(tile, window) if cut and window else [tile]
            for part in parts:
                yield Task(part if cut else source, tile_key(part, georeferenced=in_store))
        except TesseraError as error:
            failed(TileReport(str(source), 0, state="failed", error=error))


def _sources(tiles: Any) -> Iterator[Any]:
    """Every source by itself; paths are made absolute, for workers elsewhere."""
    for source in tiles if isinstance(tiles, list | tuple) else [tiles]:
        if not isinstance(source, str | os.PathLike):
            yield source
            continue
        for found in expand([source]):
            yield found if "://" in found else os.path.abspath(found)


def _anywhere(path: Any) -> Any:
    """The path of a file made absolute, for workers elsewhere; a model's name stays."""
    if isinstance(path, str | os.PathLike) and path not in NAMED and os.path.exists(path):
        return os.path.abspath(path)
    return path


def _checked(shard: tuple[int, int]) -> slice:
    index, shards = shard
    if not 0 <= index < shards:
        raise InputError(f"shard: expected (i, n) with 0 <= i < n, got {shard}")
    return slice(index, None, shards)


def _planned(row: PlanRow) -> TileKey:
    place: dict[str, Any] = {"year": row.year, "crs": row.crs, "transform": row.transform}
    return TileKey(row.name, row.height, row.width, row.fingerprint, **place)


def tile_key(tile: Tile, *, georeferenced: bool) -> TileKey:
    """What an output needs to know of a tile; StoreError where a store cannot place it."""
    known = tile.georeference
    place: dict[str, Any] = {"year": tile.year, "crs": known.crs, "transform": known.transform}
    if georeferenced:
        place = {"crs": tile.crs, "transform": tile.transform, "year": tile.year}
        missing = [what for what, value in place.items() if value is None]
        if missing:
            raise StoreError(
                f"tile {tile.name}: a Zarr store needs its {' and '.join(missing)}: the CRS and "
                "transform come from roi.tiff, the year from --year or the folder's name. Or write "
                ".npy files (an output name without .zarr)"
            )
    key = TileKey(tile.name, tile.height, tile.width, tile.fingerprint(), **place)
    if georeferenced:
        zone.place(key)
    return key
