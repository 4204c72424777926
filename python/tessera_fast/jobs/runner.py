"""Tiles to an output in one process: what every executor runs, one tile or many.

While the encoder works on a row block, the next one is read and packed in one thread, and the one
before is quantised and written in another.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..errors import InputError, StoreError, TesseraError
from ..model.model import Model
from ..pipeline.embed import RowBlock, Settings, embed_row_blocks
from ..pipeline.stages import Behind, Clock
from ..quantization import QuantizedEmbeddings
from ..store import Output, Provenance, TileKey, TileWriter
from ..tile import Tile, open_tile, suspicions
from ..version import __version__

_POLL = 0.25  # seconds between two looks at a tile that another process has
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One tile of a job. Another process can open it if ``source`` is a path or URL."""

    source: Any
    key: TileKey

    @property
    def pixels(self) -> int:
        return self.key.height * self.key.width

    def report(self, error: TesseraError | None = None, state: str = "done") -> "TileReport":
        """That it is done, or has failed with ``error``, or what ``state`` says."""
        return TileReport(
            self.key.name,
            self.pixels,
            self.key.year,
            state if error is None else "failed",
            error=error,
            source=self.key.source,
        )


@dataclass
class TileReport:
    """What became of one tile."""

    name: str
    pixels: int
    year: int | None = None
    # "done" | "skipped": it was done before | "failed" | "pending": the job ended before it
    state: str = "done"
    seconds: float = 0.0  # of wall time since the tile before was encoded
    no_data: int = 0  # pixels
    error: TesseraError | None = None
    warnings: tuple[str, ...] = ()  # what seems wrong with the observations
    source: str | None = None  # absolute path or URL; None for arrays


def _without_folders(source: str) -> str:
    """A checkpoint's origin for a file that may be shared: of a path the last name alone."""
    if source.startswith(("hub:", "package:")):
        return source
    made_up = source.startswith("untrained:")  # perhaps "untrained:1 in /a/folder/file"
    origin, joint, path = source.partition(" in ") if made_up else ("", "", source)
    return f"{origin}{joint}{os.path.basename(path)}"


def provenance_of(model: Model, settings: Settings, *, quantized: bool) -> Provenance:
    """What an output records of a job."""
    width = model.width(settings.dims)
    drawn = model.spec.sampling == "v1.0"
    return Provenance(
        model=model.spec.name,
        weights_sha256=model.weights.sha256,
        weights_source=_without_folders(model.weights.source),
        trained=model.trained,
        precision=model.precision,
        dims=width,
        dtype="int8" if quantized else "float32",
        prefixes=tuple(d for d in model.spec.matryoshka if d < width) if quantized else (),
        seed=settings.seed if drawn else None,
        repeats=settings.repeats if drawn else None,
        backend=model.backend,
        isa=model.provenance().get("isa"),
        period=settings.period,
        package_version=__version__,
    )


class _Abort(Exception):
    """What a callback raised while the encoder ran, which would take it for its own."""

    def __init__(self, error: InputError) -> None:
        super().__init__(error)
        self.error = error


_Over = tuple[TileReport, int]  # and how many of its pixels were encoded


@dataclass(eq=False)
class _Current:
    """A tile between its claim and its report."""

    task: Task
    writer: TileWriter
    tile: Tile
    report: TileReport
    encoded: int = 0  # pixels
    over: bool = False  # reported


@dataclass
class TileRunner:
    """A loaded model and an open output. ``options`` are those of `open_tile`."""

    model: Model
    output: Output
    settings: Settings
    quantized: bool = True  # codes and scales are written, else float32
    options: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    @property
    def provenance(self) -> Provenance:
        """What the output records."""
        return provenance_of(self.model, self.settings, quantized=self.quantized)

    def run_tile(self, task: Task) -> TileReport:
        """Embed one tile; waits where another process is doing so."""
        reports: list[TileReport] = []
        self.run([task], reports.append)
        return reports[0]

    def run(
        self,
        tasks: Iterable[Task | None],
        report: Callable[[TileReport], None],
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Embed tiles; ``report`` is told of each once it is in the output, or cannot be embedded.

        A tile that is done is skipped; one that another process works on is left for the end.
        A None among ``tasks`` says that the next one is not known yet. ``progress`` is told the
        pixels of tiles that are over or on their way. Both are called in this thread, and what they
        raise ends the run. Raises StoreError where the output cannot be written, which every tile
        would meet.
        """
        finished: list[_Over] = []  # appended to by all three threads
        opened: list[_Current] = []
        encoded = others = told = 0  # pixels; others: of tiles that are over, not encoded

        def tell(pixels: int) -> None:
            nonlocal told
            if pixels > told:  # less after a block that could not be encoded to its end
                told = pixels
                progress(told)

        def look() -> None:
            nonlocal others
            while finished:
                tile, pixels = finished.pop(0)
                others += tile.pixels - pixels
                report(tile)
                tell(others + encoded)

        def meanwhile(done: int) -> None:
            try:
                look()
                tell(others + done)
            except InputError as error:  # of another tile, not of what is encoded
                raise _Abort(error) from error

        blocks = embed_row_blocks(
            self._opened(tasks, opened, finished),
            self.model,
            self.settings,
            self.clock,
            meanwhile,
            quantized=self.quantized and self.model.quantizes,
        )
        started = last = time.perf_counter()
        try:
            with Behind(self.clock, "blocked") as behind:
                for item in blocks:
                    if item is not None:
                        current, block = item
                        if isinstance(block, RowBlock):
                            current.encoded += block.counts[..., 0].size
                            encoded += block.counts[..., 0].size
                        if not isinstance(block, RowBlock) or block.stop == current.tile.height:
                            now = time.perf_counter()
                            current.report.seconds, last = now - last, now
                        behind.give(partial(self._handle, current, block, finished))
                        del item, block
                    look()
                behind.finish()
            look()
        except _Abort as abort:
            raise abort.error from abort.error.__cause__
        finally:
            try:
                blocks.close()
            finally:
                for current in opened:
                    current.writer.abort()  # does nothing after a commit
                self.clock.add("run", time.perf_counter() - started)

    def _opened(
        self, tasks: Iterable[Task | None], opened: list[_Current], finished: list[_Over]
    ) -> Iterator[tuple[_Current, Tile] | None]:
        """The tiles to embed, claimed and opened; None where there is only waiting to do."""
        held: list[Task] = []
        due = 0.0
        for task in tasks:
            if task is None:
                yield None
                if held and time.monotonic() >= due:
                    # whoever hands out tasks may wait for these before it says that none is left
                    waiting, held = held, []
                    for again in waiting:
                        yield from self._begun(again, opened, finished, held)
                    due = time.monotonic() + _POLL
            else:
                yield from self._begun(task, opened, finished, held)
        if held:
            _log.warning("waiting for %d tiles of %s", len(held), self.output.holders())
        while held:
            time.sleep(_POLL)
            yield None
            waiting, held = held, []
            for task in waiting:
                yield from self._begun(task, opened, finished, held)

    def _begun(
        self, task: Task, opened: list[_Current], finished: list[_Over], held: list[Task]
    ) -> Iterator[tuple[_Current, Tile] | None]:
        report = task.report()
        with self.clock.lap("open"):
            done = self.output.is_done(task.key)
            refusal = None if done else self.output.refusal(task.key)
            writer = None if done or refusal else self.output.begin(task.key)
            done = done or self.output.is_done(task.key)  # by another process, meanwhile
            if writer is None and not done and not refusal:
                held.append(task)
                return
            tile = None
            try:
                if done:
                    report.state = "skipped"
                elif refusal:
                    raise StoreError(refusal)
                else:
                    tile = self._open(task)
                    report.warnings = tuple(suspicions(tile))
            except TesseraError as error:
                tile, report.state, report.error = None, "failed", error
            finally:
                if writer is not None and tile is None:
                    writer.abort()
        if writer is None or tile is None:
            finished.append((report, 0))
            yield None  # so that it is reported
            return
        opened[:] = [current for current in opened if not current.over]
        opened.append(_Current(task, writer, tile, report))
        yield opened[-1], tile

    def _open(self, task: Task) -> Tile:
        """InputError if the tile is no longer what the job was planned with."""
        tile = task.source
        if not isinstance(tile, Tile):
            known = {"name": task.key.name, "year": task.key.year}
            tile = open_tile(tile, **{**self.options, **known})
            if tile.fingerprint() != task.key.fingerprint:
                raise InputError(
                    f"{tile.where}: expected the observations that the job was planned with, got "
                    "others; plan again"
                )
        return tile

    def _handle(
        self, current: _Current, block: RowBlock | TesseraError, finished: list[_Over]
    ) -> None:
        if isinstance(block, StoreError):
            raise block
        if isinstance(block, TesseraError):
            current.writer.abort()
            current.report.state, current.report.error = "failed", block
        else:
            self._write(current, block)
            if block.stop < current.tile.height:
                return
            with self.clock.lap("commit"):
                current.writer.commit()
        current.over = True
        finished.append((current.report, current.encoded))

    def _write(self, current: _Current, block: RowBlock) -> None:
        report = current.report
        report.no_data += int((block.counts.sum(-1) == 0).sum())
        values, scales = block.values, None
        if self.quantized and isinstance(values, np.ndarray):
            with self.clock.lap("quantise"):
                values = self.model.quantize(values)
        if isinstance(values, QuantizedEmbeddings):
            values, scales = values
        with self.clock.lap("write"):
            current.writer.write_rows(block.start, values, scales, block.counts)
