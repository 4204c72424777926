"""Many tiles to one output: what there is to do, and who does it. `tf.embed_tiles` is here.

A job is a list of tasks, one a tile, and one description of what to do with each. An executor gives
tasks to processes; each of them runs `TileRunner`.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import env
from ..errors import StoreError, TesseraError
from ..machine.energy import EnergyMeter
from ..model.model import Model, ModelOptions
from ..pipeline.embed import Settings
from ..planning.sources import absolute
from ..planning.table import Plan
from ..progress import Progress, progress_bar
from ..spec import NAMED
from ..store import Provenance, job_extent
from ..tile import open_tile, period_of_year
from ..untrusted.readers import local_path
from ..untrusted.suggest import checks_keywords, keywords_of, one_of
from .executors import check_executor, run_tasks
from .executors.base import Job, Watch
from .report import JobReport, check_report
from .runner import TileReport
from .tasks import JobTasks, checked_shard

_log = logging.getLogger(__name__)


@checks_keywords(*keywords_of(open_tile))
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
    report_file: str | os.PathLike[str] | None = None,
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

    ``report_file``: the result as JSON, as `JobReport.save` writes it. It is tried first whether it
    can be written, and it is written whatever ends the job, an error or a signal too: it then has
    that error, and tiles that were not reached are "pending". A TesseraError that ends the job has
    the same JobReport as its ``report``.

    Raises InputError for what cannot be embedded, StoreError if ``out`` holds anything made
    differently, cannot be placed or cannot be written.
    """
    one_of("on_error", on_error, ("raise", "skip"))
    clock, meter = time.perf_counter(), EnergyMeter()
    result = JobReport(str(local_path(out, "out")))
    work: JobTasks | None = None

    def note(tile: TileReport) -> None:
        result.tiles.append(tile)
        if tile.error is not None and on_error == "raise":
            raise tile.error
        error: BaseException | None = tile.error
        while error is not None:  # its frames hold the observations that were read
            error.__traceback__ = None
            error = error.__cause__ or error.__context__
        report(tile)

    def begin(provenance: Provenance) -> None:
        result.provenance = provenance
        started(provenance)

    def end(error: BaseException | None) -> None:
        result.wall, result.joules = time.perf_counter() - clock, meter.joules()
        result.end(() if work is None else list(work.pending(result.tiles)), error)

    with _reported(result, report_file, end):
        part = checked_shard(shard)
        check_executor(executor, workers, retries, resources)
        if threads is not None:
            env.threads(threads)
        target = local_path(out, "out").absolute()
        in_store = target.suffix == ".zarr"
        if isinstance(tiles, Plan):
            options = {**tiles.options["open"], **options}
        work = JobTasks(tiles, target, options, window, int8, part)
        work.open(note)
        settings = Settings(
            dims, memory, seed, repeats, period=period_of_year(options.get("period"))
        )
        used = ModelOptions(
            _anywhere(model),
            None if device is None else str(device),
            _anywhere(weights),
            backend,
            precision,
            threads,
        )
        extent = job_extent(target, work.keys, int8=int8)
        job = Job(str(target), used, settings, int8 or in_store, options, extent)
        if work.tasks:
            pixels = sum(task.pixels for task in work.tasks)
            with progress_bar(pixels, Path(out).name, progress) as tick:
                watch = Watch(note, begin, tick, result.seconds, result.warnings)
                run_tasks(
                    executor,
                    job,
                    work.tasks,
                    watch,
                    workers=workers,
                    retries=retries,
                    resources=resources,
                )
    return result


@contextmanager
def _reported(
    result: JobReport,
    file: str | os.PathLike[str] | None,
    end: Callable[[BaseException | None], None],
) -> Iterator[None]:
    """Complete the report by ``end`` and write it, however the block ends."""
    if file is not None:
        check_report(file, result.out)
    try:
        yield
    except BaseException as error:
        end(error)
        if isinstance(error, TesseraError):
            error.report = result
        try:
            if file is not None:
                result.save(file)
        except StoreError as second:  # the first one says what happened
            _log.warning("%s", second)
        raise
    end(None)
    if file is not None:
        result.save(file)


def _anywhere(path: Any) -> Any:
    """The path of a file made absolute, for workers elsewhere; a model's name stays."""
    if isinstance(path, str | os.PathLike) and path not in NAMED and os.path.exists(path):
        return absolute(path)
    return path
