"""What a probe found: scores over seeds beside their baselines, as text, page and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..machine.notebook import table
from .evaluate import COMMONEST, Scores
from .images import Image
from .metrics import CLASSIFICATION, LESS_IS_BETTER, REGRESSION

ALL = 0  # in `Scores.values`: all pixels of the half


@dataclass(frozen=True)
class ClassCount:
    """A class of the labels: its code, name, labelled pixels and groups."""

    code: int
    name: str
    pixels: int
    groups: int


@dataclass(frozen=True)
class ProbeResults:
    """Scores of embeddings and of what stands beside them, by the same splits and labels.

    ``scores[name].values[n][metric]`` has a value for every seed; n = 0: all labels of the half.
    """

    name: str  # of the embeddings, a key of ``scores``
    task: str
    head: str
    split: str
    seeds: int
    counts: tuple[int, ...]  # labels a class, or in all; ALL
    classes: tuple[ClassCount, ...]  # none of a regression
    left_out: tuple[ClassCount, ...]  # in one group alone, so they cannot be judged
    pixels: int  # that are learned from or judged
    groups: int
    dims: dict[str, int]  # features of each kind
    scores: dict[str, Scores]
    used: dict[int, list[int]]  # n -> labelled pixels of each seed
    notes: tuple[str, ...]  # what is not beside it, and why; what to mind
    value_range: tuple[float, float]  # of the labels of a regression
    rankme: dict[str, float]  # of embeddings over the labelled pixels, normalised
    images: list[Image] = field(default_factory=list, repr=False)  # of the embeddings
    labels: list[np.ndarray] = field(default_factory=list, repr=False)
    maps: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)
    nodata: float = 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics; the first is what pictures show."""
        return CLASSIFICATION if self.task == "classification" else REGRESSION

    def mean(self, name: str, count: int, metric: str) -> tuple[float, float]:
        """Mean and standard deviation over the seeds that have one, else NaN; of R2, those whose
        judged values are not all equal. One seed has no deviation: NaN."""
        return _mean(np.array(self.scores[name].values[count][metric]))

    def against(self, other: str, count: int, metric: str) -> tuple[float, float, int]:
        """By how much the embeddings are better than ``other``, of the same seeds: mean, standard
        deviation, and the number of seeds in which they are."""
        ours = np.array(self.scores[self.name].values[count][metric])
        theirs = np.array(self.scores[other].values[count][metric])
        gain = theirs - ours if metric in LESS_IS_BETTER else ours - theirs
        return *_mean(gain), int((gain > 0).sum())

    def judged(self, name: str, count: int, metric: str) -> int:
        """Seeds with a value of the metric."""
        return int(np.isfinite(self.scores[name].values[count][metric]).sum())

    def text(self) -> str:
        """A table for a terminal."""
        kinds = {"field": "fields", "tile": "tiles", "block": "blocks", "random": "single pixels"}
        what = kinds.get(self.split, "groups")
        each = " of each class" if self.classes else ""
        lines = [
            f"{self.name}: {self.task}, head {self.head}, {self.seeds} seeds, split by "
            f"{self.split} (half of the {what}{each} are learned from, the others judge)",
            f"labels: {self.pixels:,} pixels in {self.groups:,} {what}",
        ]
        if self.task == "regression":
            low, high = self.value_range
            lines[1] += f", {low:.4g} to {high:.4g}"
        for title, classes in (("", self.classes), ("left out, as in one group: ", self.left_out)):
            lines += [
                f"  {title}{c.name}: {c.pixels:,} pixels, {_counted(c.groups, what)}"
                for c in classes
            ]
        ranks = ", ".join(
            f"{name} {value:.3f}" if np.isfinite(value) else f"{name} none"
            for name, value in self.rankme.items()
        )
        lines.append(f"normalised RankMe of these pixels: {ranks}")
        lines += [f"note: {note}" for note in self.notes]
        for count in self.counts:
            lines += ["", *self._table(count)]
        return "\n".join(lines)

    def _table(self, count: int) -> list[str]:
        used = self.used[count]
        of = " a class" if self.classes else ""
        title = f"{count} labelled pixels{of}" if count != ALL else "all labels of the half"
        if self.classes and count != ALL and max(used) < count * len(self.classes):
            title += f" (where there are as many; {min(used)} to {max(used)} in all)"
        elif count == ALL or min(used) < count:
            title += f" ({min(used):,} to {max(used):,})"
        width = max(len(self._row(name)) for name in self.scores)
        lines = [title, f"  {'':{width}}  " + "  ".join(f"{m:>17}" for m in self.metrics)]
        for name in self.scores:
            cells = []
            for metric in self.metrics:
                cells.append(f"{with_spread(*self.mean(name, count, metric)):>17}")
            lines.append(f"  {self._row(name):{width}}  " + "  ".join(cells))
        metric = self.metrics[0]
        for name in self.scores:
            if name not in (self.name, COMMONEST):
                gain, spread, wins = self.against(name, count, metric)
                known = self.judged(name, count, metric)
                lines.append(
                    f"  {metric} against {name}: {with_spread(gain, spread, sign='+')}, "
                    f"better in {wins} of {known} seeds"
                )
        for metric in self.metrics:
            known = self.judged(self.name, count, metric)
            if known < self.seeds:
                lines.append(
                    f"  {metric} is of the {known} of {self.seeds} seeds whose judged "
                    "values are not all equal"
                )
        return lines

    def _row(self, name: str) -> str:
        return f"{name} ({self.dims[name]})" if name in self.dims else name

    def _repr_html_(self) -> str:
        """What a notebook shows: every score, and what to mind."""
        rows: list[tuple[str, ...]] = []
        for count in self.counts:
            labels = str(count) if count != ALL else "all"
            for name in self.scores:
                scores = (with_spread(*self.mean(name, count, m)) for m in self.metrics)
                rows.append((labels, self._row(name), *scores))
        head = ("labels a class" if self.classes else "labels", "features", *self.metrics)
        title = f"{self.name}: {self.task}, head {self.head}, split by {self.split}"
        return table(title, rows, head, (f"note: {note}" for note in self.notes))

    def to_json(self) -> dict[str, Any]:
        """Everything but images, with the values of every seed; None for NaN."""
        return {
            "name": self.name,
            "task": self.task,
            "head": self.head,
            "split": self.split,
            "seeds": self.seeds,
            "labelled_pixels": self.pixels,
            "groups": self.groups,
            "classes": [vars(c) for c in self.classes],
            "left_out": [vars(c) for c in self.left_out],
            "label_range": list(self.value_range),
            "rankme": {name: _or_null(value) for name, value in self.rankme.items()},
            "notes": list(self.notes),
            "labels_used": {_key(n): values for n, values in self.used.items()},
            "features": {
                name: {
                    "dims": self.dims.get(name),
                    "scores": {
                        _key(n): {m: [_or_null(v) for v in seeds] for m, seeds in of_n.items()}
                        for n, of_n in scores.values.items()
                    },
                    "mean": {
                        _key(n): {m: _or_null(self.mean(name, n, m)[0]) for m in self.metrics}
                        for n in self.counts
                    },
                    "confusion": None if scores.confusion is None else scores.confusion.tolist(),
                }
                for name, scores in self.scores.items()
            },
        }

    def __str__(self) -> str:
        return self.text()


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what if number != 1 else what[:-1]}"


def with_spread(mean: float, spread: float, digits: int = 3, sign: str = "-") -> str:
    """Mean ± standard deviation; the mean alone of one seed, "none" without any."""
    if not np.isfinite(mean):
        return "none"
    text = f"{mean:{sign}.{digits}f}"
    return f"{text} ± {spread:.{digits}f}" if np.isfinite(spread) else text


def _mean(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    nan = float("nan")
    return (
        float(known.mean()) if len(known) else nan,
        float(known.std(ddof=1)) if len(known) > 1 else nan,
    )


def _or_null(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _key(count: int) -> str:
    return "all" if count == ALL else str(count)
