"""A plan as rows and totals: split among workers, printed, and kept in a Parquet file."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, StoreError
from ..files import refuse_existing
from ..machine.notebook import table
from ..sizes import count, duration, size
from ..untrusted.numbers import whole_number
from ..untrusted.readers import Unreadable, local_path, local_target, read_bytes
from .rows import MOST_WORKERS, Calibration, Failure, PlanRow, need_pyarrow, parse_plan, write_plan

_SHOWN, _COLUMNS = 10, 100  # rows and width of a summary
_MOST_BYTES = 1 << 30  # of a plan's file: about ten million tiles


@dataclass(frozen=True)
class Plan:
    """The tiles of a job, largest first, with what each takes; see `tessera_fast.plan`."""

    rows: Sequence[PlanRow]
    failed: Sequence[Failure]
    options: dict[str, Any]  # of the job: model, precision, dims, ...
    memory: tuple[int, int] | None  # bytes: the least, and what is used where none is set
    calibration: Calibration | None
    weights_bytes: int  # of the model's parameters in float32

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> PlanRow:
        return self.rows[index]

    def __str__(self) -> str:
        return self.summary()

    def shard(self, index: int, count: int) -> "Plan":
        """Rows ``index``, ``index + count``, ...: the part of worker ``index`` of ``count``.

        As rows are largest first, parts take about the same time. InputError unless 0 <= index <
        count.
        """
        whole_number("shard: count", count, 1, MOST_WORKERS)
        whole_number("shard: index", index, 0, count - 1)
        return replace(self, rows=self.rows[index::count], failed=self.failed[index::count])

    @property
    def seconds(self) -> float | None:
        """Estimated time of all tiles one after another; None without an estimate."""
        return sum(r.seconds or 0.0 for r in self.rows) if self.calibration else None

    def wall_seconds(self, workers: int | None = None) -> float | None:
        """Estimated time until the last of ``workers`` (default: the option's) is done."""
        if workers is None:
            workers = self.options["workers"]
        whole_number("workers", workers, 1, MOST_WORKERS)
        if self.calibration is None:
            return None
        some = min(workers, max(len(self.rows), 1))  # the others have nothing to do
        return max(self.shard(i, workers).seconds or 0.0 for i in range(some))

    def summary(self, shown: int = _SHOWN) -> str:
        """The largest ``shown`` tiles and the totals, as text of at most 100 columns."""
        return "\n".join([*_table(self, shown), *_totals(self), *_failures(self)])

    def _repr_html_(self) -> str:
        """What a notebook shows: the largest tiles and the totals."""
        head = ("tile", "rows x columns", "dates S2 + asc + desc", "tokens", "input", "time")
        below = [f"{what}: {text}".removeprefix(": ") for what, text in _total_rows(self)]
        below += [f"cannot be used: {failure.message}" for failure in self.failed[:_SHOWN]]
        return table("plan", map(_cells, self.rows), head, below)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write a Parquet file of one row a tile, whole or not at all.

        Needs pyarrow (extra ``[plan]``). InputError for a path or value that no file can hold,
        StoreError where it cannot be written, or exists and ``overwrite`` is False.
        """
        target = plan_target(path, overwrite)
        head = {
            "options": self.options,
            "memory": self.memory,
            "calibration": self.calibration and asdict(self.calibration),
            "weights_bytes": self.weights_bytes,
        }
        staged = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            try:
                write_plan(staged, self.rows, self.failed, head)
                os.replace(staged, target)
            finally:
                staged.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{target}: the plan cannot be written ({error})") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """The plan that :meth:`save` wrote; InputError for any other file, and for rows that no
        tile can have."""
        need_pyarrow()
        place = local_path(path, "plan")
        try:
            return cls(**parse_plan(read_bytes(place, _MOST_BYTES)))
        except (OSError, Unreadable) as error:
            raise InputError(
                f"{place}: expected a plan as `tessera-fast plan -o` writes it, got a file that "
                f"cannot be read as one ({str(error)[:300]}); plan again"
            ) from error


def plan_target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Where a plan may be written; raises what `Plan.save` does, before there is one."""
    need_pyarrow()
    target = local_target(path, "plan")
    refuse_existing([target], overwrite)
    return target


def _table(plan: Plan, shown: int) -> list[str]:
    if not plan.rows:
        return []
    head = f"{'tile':26} {'rows x cols':>13} {'dates S2+asc+desc':>17} {'tokens':>8}"
    lines = [f"{head} {'input':>8} {'time':>10}"]
    for r in plan.rows[:shown]:
        name, *cells = _cells(r)
        name = name if len(name) <= 26 else name[:12] + "..." + name[-11:]
        widths = zip(cells, (13, 17, 8, 8, 10), strict=True)
        lines.append(f"{name:26} {' '.join(f'{c:>{w}}' for c, w in widths)}".rstrip())
    if len(plan.rows) > shown:
        lines.append(f"... and {len(plan.rows) - shown:,} smaller ones")
    return [*lines, ""]


def _cells(r: PlanRow) -> tuple[str, ...]:
    """A tile as text: name, size, dates, tokens, bytes, time."""
    return (
        r.name,
        f"{r.height} x {r.width}",
        f"{r.s2_dates}+{r.s1_asc_dates}+{r.s1_desc_dates}",
        count(r.tokens),
        size(r.bytes_in),
        "" if r.seconds is None else duration(r.seconds),
    )


def _totals(plan: Plan) -> list[str]:
    return [f"{what:10}{text}" for what, text in _total_rows(plan)]


def _total_rows(plan: Plan) -> list[tuple[str, str]]:
    options, rows = plan.options, plan.rows
    workers = options["workers"]
    bad = f", {len(plan.failed):,} cannot be used" if plan.failed else ""
    lines = [("model", Path(options["model"]).name), ("tiles", f"{len(rows):,}{bad}")]
    if not rows:
        return lines
    lines += [
        ("pixels", f"{sum(r.pixels for r in rows):,}"),
        (
            "tokens",
            f"{count(sum(r.s2_tokens for r in rows))} Sentinel-2, "
            f"{count(sum(r.s1_tokens for r in rows))} Sentinel-1, estimated",
        ),
        ("input", size(sum(r.bytes_in for r in rows))),
        ("output", f"{size(sum(r.bytes_out for r in rows))} before compression"),
    ]
    if plan.memory is not None:
        least, used = map(size, plan.memory)
        lines.append(("memory", used if used == least else f"{used}, or from {least} by --memory"))
        lines.append(("weights", f"{size(plan.weights_bytes)} in float32"))
    wall = plan.wall_seconds()
    if wall is None or plan.calibration is None:
        lines.append(("time", "not estimated"))
    else:
        each = f"{workers} workers" if workers > 1 else "1 worker"
        rate = sum(r.pixels for r in rows) / max(plan.seconds or 0.0, 1e-9)
        lines.append(("time", f"{duration(wall)} with {each} of {rate:,.0f} px/s"))
        lines.append(("", plan.calibration.source))
    return lines


def _failures(plan: Plan) -> list[str]:
    if not plan.failed:
        return []
    lines = ["", f"cannot be used ({len(plan.failed):,})"]
    for failure in plan.failed[:_SHOWN]:
        lines += textwrap.wrap(
            failure.message,
            _COLUMNS,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    more = len(plan.failed) - _SHOWN
    return [*lines, *([f"  ... and {more:,} more"] if more > 0 else [])]
