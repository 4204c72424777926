"""What a run says of itself: log.csv, TensorBoard, and lines for a person who waits."""

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable, InputError
from ..packages import require
from ..sizes import duration
from ..untrusted.damage import first_line
from ..untrusted.readers import Unreadable, read_bytes
from .official_format import write_whole

Row = dict[str, float]
Report = Callable[[Row], None]
Say = Callable[[str], None]
_LARGEST = 256 << 20  # bytes of a log.csv that is read again
_SECONDS = 5.0  # between two writings of a file that grows, and between lines at first
_LONGEST = 60.0  # between two lines


def line(row: Row, steps: int) -> str:
    """A row as a person reads it."""
    text = " ".join(f"{n} {v:.4g}" for n, v in row.items() if n not in ("step", "seconds"))
    return f"step {int(row['step'])}/{steps} {text}"


class Waiting:
    """Lines between the rows of the log: after the first step, then every few seconds.

    The time between two lines grows from ``_SECONDS`` to ``_LONGEST``, as a run of days needs no
    line every few seconds. ``say`` gets each line; None says nothing.
    """

    def __init__(
        self, step: int, steps: int, say: Say | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first, self._steps, self._say, self._clock = step, steps, say, clock
        self._started = self._last = clock()
        self._pause = 0.0

    def row(self) -> None:
        """A row of the log has been said."""
        self._last, self._pause = self._clock(), max(self._pause, _SECONDS)

    def step(self, step: int, loss: Callable[[], float]) -> None:
        """A step is done; ``loss`` is called where it is told: on a GPU it waits for the step."""
        now = self._clock()
        if self._say is None or now < self._last + self._pause:
            return
        each = (now - self._started) / (step - self._first)
        left = f", about {duration(each * (self._steps - step))} left" * (step < self._steps)
        self._say(f"step {step}/{self._steps} loss {loss():.4g}, {duration(each)} a step{left}")
        self._last, self._pause = now, min(max(1.2 * self._pause, _SECONDS), _LONGEST)


class Logbook:
    """Rows of one run in ``folder``; a resumed run continues after ``step``, its first rows kept.

    The file is written anew, whole, at most every few seconds, at every save and at the end.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self._path, self._rows = folder / "log.csv", []  # type: ignore[var-annotated]
        if step and self._path.exists():
            self._rows = [row for row in _read(self._path) if row["step"] <= step]
        self._written = -math.inf
        self._board = _board(folder, step) if tensorboard else None

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if time.monotonic() > self._written + _SECONDS:
            self.write()
        if self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, int(row["step"]))

    def write(self) -> None:
        """The rows so far."""
        if not self._rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self._rows[0]))
        writer.writeheader()
        writer.writerows(self._rows)
        write_whole(self._path, lambda f: f.write(text.getvalue().encode()))
        self._written = time.monotonic()

    def close(self) -> None:
        self.write()
        if self._board is not None:
            self._board.close()


def _read(path: Path) -> list[Row]:
    """The rows of a log.csv; InputError where it is damaged."""
    try:
        lines = read_bytes(path, _LARGEST).decode().splitlines()
        rows = [{n: float(v) for n, v in row.items()} for row in csv.DictReader(lines)]
        if not all("step" in row for row in rows):
            raise Unreadable("rows without a step")
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"{path}: expected the log of the run that goes on, got {first_line(error)}; move it "
            "away"
        ) from error
    return rows


def _board(folder: Path, step: int) -> Any:
    what, instead = "[run] tensorboard", ", or read log.csv"
    require("tensorboard", what, BackendUnavailable, instead=instead)
    board = require("torch.utils.tensorboard", what, BackendUnavailable, instead=instead)
    return board.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
