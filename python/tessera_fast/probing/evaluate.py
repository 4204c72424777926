"""Scores over seeds: the same fields, labels and heads for every kind of features.

P labelled pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import metrics
from .heads import Head
from .images import Image
from .splits import draw, halves


@dataclass(frozen=True)
class LearningProblem:
    """What is to be predicted, and from what."""

    task: str  # "classification" or "regression"
    features: dict[str, np.ndarray]  # name -> (P, E) float32, NaN for missing
    labels: np.ndarray  # (P,) integers (class codes) or float64
    groups: np.ndarray  # (P,) int64
    classes: np.ndarray  # (K,) codes in order; none of a regression


@dataclass
class Scores:
    """Of one kind of features; lists have an entry for every seed."""

    values: dict[int, dict[str, list[float]]] = field(default_factory=dict)  # n -> metric -> seeds
    confusion: np.ndarray | None = None  # (K, K) summed over seeds, of the most labels


@dataclass(frozen=True)
class Fitted:
    """The heads of one seed with the most labels, and the groups that they may have seen."""

    heads: dict[str, Head]
    seen: np.ndarray  # sorted numbers of groups


COMMONEST = "constant"  # the most frequent class, or the mean


def evaluate(
    problem: LearningProblem,
    head: Any,
    counts: list[int | None],
    seeds: int,
    done: Callable[[int], None],
) -> tuple[dict[str, Scores], list[Fitted], dict[int | None, list[int]], np.ndarray]:
    """Scores of all features, the heads with the most labels, how many labels each seed had, and
    with how many seeds each class was in one half alone (K,).

    ``counts``: labels a class (of a regression: in all), None for all of the half. Where a class
    has fewer, it gives those.
    """
    scores = {name: Scores() for name in (*problem.features, COMMONEST)}
    used: dict[int | None, list[int]] = {n: [] for n in counts}
    fitted = []
    absent = np.zeros(len(problem.classes), np.int64)
    classes = problem.classes if problem.task == "classification" else None
    for seed in range(seeds):
        codes = None if classes is None else problem.labels
        learn = halves(problem.groups, codes, seed)
        drawn = draw(codes, learn, seed)
        if codes is not None:
            halves_of = (np.isin(problem.classes, codes[part]) for part in (learn, ~learn))
            absent += ~np.logical_and(*halves_of)
        heads: dict[str, Head] = {}
        for count in counts:
            picks = np.concatenate([of_class[:count] for of_class in drawn])
            used[count].append(len(picks))
            for name, values in problem.features.items():
                heads[name] = Head(head, problem.task, seed).fit(
                    values[picks], problem.labels[picks]
                )
                found = heads[name].predict(values[~learn])
                _add(scores[name], count, problem.labels[~learn], found, classes, counts[-1])
            guess = np.full(int((~learn).sum()), _commonest(problem.labels[learn], classes))
            _add(scores[COMMONEST], count, problem.labels[~learn], guess, classes, counts[-1])
        fitted.append(Fitted(heads, np.unique(problem.groups[learn])))
        done(seed + 1)
    return scores, fitted, used, absent


def _commonest(labels: np.ndarray, classes: np.ndarray | None) -> Any:
    if classes is None:
        return labels.mean()
    values, counts = np.unique(labels, return_counts=True)
    return values[counts.argmax()]


def _add(
    scores: Scores,
    count: int | None,
    truth: np.ndarray,
    found: np.ndarray,
    classes: np.ndarray | None,
    last: int | None,
) -> None:
    if classes is None:
        values = metrics.of_values(truth, found)
    else:
        matrix = metrics.confusion(truth, found, classes)
        values = metrics.of_confusion(matrix)
        if count == last:
            scores.confusion = matrix if scores.confusion is None else scores.confusion + matrix
    of_count = scores.values.setdefault(0 if count is None else count, {})
    for name, value in values.items():
        of_count.setdefault(name, []).append(value)


def maps(
    name: str,
    images: list[Image],
    groups: list[np.ndarray],
    where: list[np.ndarray],
    fitted: list[Fitted],
    classes: np.ndarray | None,
    nodata: float,
) -> Iterator[np.ndarray]:
    """A map (H, W) of every image: what the heads of all seeds say, by vote or in the mean.

    No labelled pixel is mapped by a head that learned from its group. ``nodata`` outside of
    ``where`` (H, W), where there are no features, or no head.
    """
    for image, of_image, wanted in zip(images, groups, where, strict=True):
        dtype = np.float32 if classes is None else classes.dtype
        out = np.full((image.height, image.width), nodata, dtype)
        for start, stop in image.blocks():
            values = image.read(start, stop)
            known = wanted[start:stop] & ~np.isnan(values).all(axis=-1)
            if known.any():
                out[start:stop][known] = _said(
                    name, values[known], of_image[start:stop][known], fitted, classes, nodata
                )
        yield out


def _said(
    name: str,
    values: np.ndarray,
    groups: np.ndarray,
    fitted: list[Fitted],
    classes: np.ndarray | None,
    nodata: float,
) -> np.ndarray:
    """(n,) labels of n pixels in groups, -1 for none."""
    sums = np.zeros((len(values), 1 if classes is None else len(classes)))
    count = np.zeros(len(values), np.int64)
    for one in fitted:
        may = ~np.isin(groups, one.seen)
        if not may.any():
            continue
        found = one.heads[name].predict(values[may])
        rows = np.flatnonzero(may)
        if classes is None:
            sums[rows, 0] += found
        else:
            sums[rows, np.searchsorted(classes, found)] += 1
        count[rows] += 1
    if classes is None:
        return np.where(count > 0, sums[:, 0] / np.maximum(count, 1), nodata)
    return np.where(count > 0, classes[sums.argmax(axis=1)], nodata).astype(classes.dtype)
