"""What every process of a job is told."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ...model.model import Model, ModelOptions
from ...pipeline.embed import Settings, check_memory
from ...store import Provenance, TileKey, open_output
from ...tile import Tile
from ..runner import Task, TileReport, TileRunner, provenance_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """How whoever started a job follows it; all are called in one thread."""

    report: Callable[[TileReport], None]
    started: Callable[[Provenance], None]  # a model is loaded
    progress: Callable[[int], None]  # pixels of tiles that are over, or on their way
    seconds: dict[str, float]  # of every stage, summed over processes; filled at the end
    warnings: list[str]  # of the job, for its report; filled on the way

    def warn(self, text: str) -> None:
        """Say now, and in the report, what a user should know of the job."""
        _log.warning("%s", text)
        self.warnings.append(text)

    def add(self, seconds: dict[str, float]) -> None:
        """The stages of one more process."""
        for name, spent in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True)
class Job:
    """One output and how its tiles are embedded; can be pickled if no loaded model is given."""

    out: str
    model: ModelOptions
    settings: Settings
    quantized: bool  # codes and scales are written, else float32
    options: dict[str, Any]  # of `open_tile`
    extent: Any  # of all tiles, see `store.job_extent`

    def check_portable(self, tasks: Sequence[Task]) -> None:
        """InputError unless other processes can be given the job and its tasks."""
        if isinstance(self.model.model, Model):
            raise InputError(
                "model: processes load it themselves, so give a name or a path, not a loaded model"
            )
        for task in tasks:
            if not isinstance(task.source, str | os.PathLike | Tile):
                raise InputError(
                    f"tile {task.key.name}: processes open tiles themselves, so give a path or "
                    f"URL, not a {type(task.source).__name__}"
                )

    @contextlib.contextmanager
    def open(self, tiles: Sequence[TileKey] = ()) -> Iterator[TileRunner]:
        """Load the model and open the output. ``tiles`` are checked before any work."""
        model = self.model.load()
        try:
            check_memory(model, self.settings.memory)
            model.check_repeats(self.settings.repeats)
            provenance = provenance_of(model, self.settings, quantized=self.quantized)
            output = open_output(self.out, tiles, provenance, extent=self.extent)
            with contextlib.closing(output):
                yield TileRunner(model, output, self.settings, self.quantized, self.options)
        finally:
            if model is not self.model.model:
                model.close()
