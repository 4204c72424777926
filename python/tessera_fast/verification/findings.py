"""What a check of one output found: problems, notes and counts, as text, page and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..machine.notebook import table
from .layout import wrapped

SHOWN = 50  # problems that the report prints; JSON has all


class Problem(NamedTuple):
    """One thing that is wrong."""

    where: str
    what: str
    fix: str


@dataclass
class Check:
    """What a check found; ``print`` it for the report. ``sound``: no problem."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, and no fault
    counts: dict[str, int] = field(default_factory=dict)  # of what was looked at
    # files of shards in which a problem was found: that they are not as recorded is no other one
    faulty: set[Path] = field(default_factory=set)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with what was looked at."""
        return not self.problems

    def problem(self, where: object, what: str, fix: str) -> None:
        self.problems.append(Problem(str(where), what, fix))

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """What a notebook shows: every problem, and what to do."""
        looked = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        below = [f"looked at {looked or 'nothing'}", *(f"note: {note}" for note in self.notes)]
        verdict = "sound" if self.sound else f"{len(self.problems):,} problems"
        return table(f"{self.path}: {verdict}", self.problems, ("where", "what", "mend"), below)

    def text(self, width: int | None = None) -> str:
        """The report, in lines of ``width`` columns if given."""
        return wrapped(self._lines(), width)

    def _lines(self) -> list[str]:
        n = len(self.problems)
        verdict = "sound" if self.sound else f"{n} problem{'s' if n > 1 else ''}"
        lines = [f"{self.path}: {verdict}"]
        lines += [f"  {p.where}: {p.what}. {p.fix}" for p in self.problems[:SHOWN]]
        if n > SHOWN:
            lines.append(f"  and {n - SHOWN:,} more (--json FILE has all)")
        looked = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        lines.append(f"  looked at {looked or 'nothing'}")
        return [*lines, *(f"  note: {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, for a file."""
        return {
            "path": str(self.path),
            "sound": self.sound,
            "problems": [p._asdict() for p in self.problems],
            "notes": self.notes,
            "counts": self.counts,
        }
