"""`tf.probe`: how far a small head gets with embeddings and few labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..progress import Progress, progress_bar
from .beside import BASELINES, RAW, Asked, all_features
from .evaluate import Problem, evaluate, maps
from .heads import check_head
from .images import Features, Image, open_features
from .labels import read_labels
from .packages import require_sklearn
from .report import ALL, ClassCount, ProbeReport
from .spectrum import rankme
from .splits import SPLITS, groups_of

PER_CLASS = (1, 5, 10, 20, 50)
EXTENTS = ("all", "labelled", "none")
_MAPPED = ("untrained", "statistics")  # baselines that are mapped beside the embeddings


def probe(
    embeddings: Any,
    labels: Any,
    *,
    tiles: Any = None,
    model: str | os.PathLike[str] | None = None,
    beside: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = BASELINES,
    task: str = "auto",
    head: Any = None,
    split: Any = "field",
    block: int = 16,
    per_class: Sequence[int] | None = PER_CLASS,
    seeds: int = 20,
    classes: Mapping[int, str] | None = None,
    nodata: float | None = None,
    name: str | None = None,
    extent: str = "all",
    allow_missing_s1: bool = False,
    threads: int | None = None,
    progress: Progress = None,
) -> ProbeReport:
    """Fit a head to a few labelled pixels, judge it on other fields, beside what it has to beat.

    ``embeddings``: a store or a folder of .npy files, a .npy file, an array (H, W, E) or (P, E), or
    a list or a dict (by tile) of these; float32, or int8 with its scales. ``labels``: for the same
    pixels, integers for classes or floats for a regression: an array, .npy file or raster (any CRS
    and grid), or a list or a dict. ``nodata``: the label that means none, by default 0 for classes;
    NaN always. ``classes``: names by code; codes of one name are one class, and a class without a
    name ("") is left out. ``task``: "classification" or "regression", by default by the labels.

    ``head``: "logistic" (the default for classes), "ridge" (for values), "knn", "mlp", "forest", or
    a scikit-learn estimator. ``split``: what is divided between learning and judging: "field"
    (connected components of one label), "tile", "block" (squares of ``block`` pixels), "random"
    (single pixels: it leaks, as neighbours are one field), or groups as ``labels`` are given.
    ``per_class``: numbers of labelled pixels a class (of a regression: in all), drawn with every
    seed; None: all of the half.

    ``extent``: pixels to be mapped, "all", "labelled" (a head knows nothing of other kinds of land)
    or "none"; no labelled pixel is mapped by a head that learned from its field.

    ``tiles``: what the embeddings were made of, from which baselines are computed: "untrained", the
    same architecture with seeded random weights (``model``: which, if the store does not say),
    "statistics" and "months" of the observations. ``beside``: other embeddings by name.
    ``allow_missing_s1`` and ``threads`` are for these; ``name`` is that of the embeddings.

    Raises InputError for what does not belong together or cannot be split, BackendUnavailable
    without scikit-learn.
    """
    require_sklearn("sklearn")
    ours = open_features(embeddings)
    images = ours.images
    given = read_labels(labels, images)
    if task == "auto":
        task = "regression" if given[0].dtype.kind == "f" else "classification"
    if task not in ("classification", "regression"):
        raise InputError(f"task: expected classification or regression, got {task!r}")
    head = head or ("logistic" if task == "classification" else "ridge")
    known = check_head(head, task)
    _check_numbers(per_class, seeds, block)
    if extent not in EXTENTS:
        raise InputError(f"extent: expected {', '.join(EXTENTS)}, got {extent!r}")
    values, labelled, names = _prepared(given, task, nodata, classes)
    title = name or _title(ours)
    asked = Asked(beside or {}, baselines, tiles, model, allow_missing_s1, threads)
    kinds, notes = all_features(ours, title, asked)
    labelled = [a & b for a, b in zip(labelled, _with_data(images), strict=True)]
    split_name, groups = _groups(split, values, labelled, images, block)
    table = _table(values, labelled, groups, task, names)
    if split_name == "random":
        notes.append("a random split leaks: neighbours are one field. Split by field or tile")
    features = {k: _rows(v, table.places) for k, v in kinds.items()}
    counts: list[int | None] = [None]
    if per_class is not None:
        counts = [*sorted({int(n) for n in per_class})]
    codes = np.array([c.code for c in table.classes], values[0].dtype)
    problem = Problem(task, features, table.labels, table.groups, codes)
    with progress_bar(seeds, "probe: seeds", progress) as done:
        scores, fitted, used = evaluate(problem, head, counts, seeds, done)
    empty: float = float("nan") if task == "regression" else 0 if nodata is None else nodata
    drawn = {}
    if extent != "none" and min(images[0].height, images[0].width) > 1:
        of_classes = codes if task == "classification" else None
        shown = [title, *(beside or {}), *(k for k in kinds if k in _MAPPED)]
        where = labelled if extent == "labelled" else [np.ones_like(k) for k in labelled]
        drawn = {
            k: list(maps(k, kinds[k], table.group_images, where, fitted, of_classes, empty))
            for k in shown
        }
    low_high = (0.0, 0.0)
    if task == "regression":
        low_high = float(table.labels.min()), float(table.labels.max())
    return ProbeReport(
        name=title, task=task, head=known, split=split_name, seeds=seeds,
        counts=tuple(ALL if n is None else n for n in counts), classes=table.classes,
        left_out=table.left_out, pixels=len(table.labels),
        groups=len(np.unique(table.groups)), dims={k: v.shape[1] for k, v in features.items()},
        scores=scores, used={ALL if n is None else n: v for n, v in used.items()},
        notes=tuple(notes), value_range=low_high, images=images,
        labels=[np.where(k, v, empty) for v, k in zip(values, labelled, strict=True)],
        maps=drawn, nodata=empty,
        rankme={k: rankme(features[k]) for k in kinds if k not in RAW},
    )  # fmt: skip


def _check_numbers(per_class: Sequence[int] | None, seeds: int, block: int) -> None:
    if per_class is not None and (not len(per_class) or min(per_class) < 1):
        raise InputError(f"per_class: expected positive numbers of labels, got {per_class}")
    for what, number in (("seeds", seeds), ("block", block)):
        if number < 1:
            raise InputError(f"{what}: expected a positive number, got {number}")


def _title(features: Features) -> str:
    p = features.provenance
    if not p:
        return "embeddings"
    return p["model"] + ("" if p["trained"] else " (untrained)")


def _prepared(
    given: list[np.ndarray], task: str, nodata: float | None, classes: Mapping[int, str] | None
) -> tuple[list[np.ndarray], list[np.ndarray], dict[int, str]]:
    """Labels with one code a class or as float64, where there are any, and the names of codes."""
    if task == "regression":
        known = [np.isfinite(v) & (v != nodata if nodata is not None else True) for v in given]
        return [v.astype(np.float64) for v in given], known, {}
    for v in given:
        if v.dtype.kind == "f" and not (v[np.isfinite(v)] == np.rint(v[np.isfinite(v)])).all():
            raise InputError("labels: expected whole numbers for classes, got fractions")
    none = 0 if nodata is None else nodata
    known = [np.isfinite(v) & (v != none) for v in given]
    whole = [np.where(k, v, none).astype(np.int64) for v, k in zip(given, known, strict=True)]
    names = {int(code): str(text) for code, text in (classes or {}).items()}
    first: dict[str, int] = {}
    for code in sorted(names):
        first.setdefault(names[code], code)
    for code, text in names.items():
        for i, v in enumerate(whole):
            at = v == code
            known[i] = known[i] & ~at if not text else known[i]
            v[at] = first[text]
    return whole, known, names


def _with_data(images: list[Image]) -> list[np.ndarray]:
    """(H, W) bool of every image: where there is an embedding."""
    return [
        np.concatenate([np.isfinite(image.read(*rows)).all(axis=-1) for rows in image.blocks()])
        for image in images
    ]


def _groups(
    split: Any, values: list[np.ndarray], labelled: list[np.ndarray], images: list[Image],
    block: int,
) -> tuple[str, list[np.ndarray]]:  # fmt: skip
    if isinstance(split, str) and split in SPLITS:
        return split, groups_of(split, values, labelled, block)
    if isinstance(split, str) and not os.path.exists(split):
        raise InputError(f"split: expected {', '.join(SPLITS)}, or groups, got {split!r}")
    found = read_labels(split, images, "groups")
    return "group", [
        np.where(k, g, -1).astype(np.int64) for g, k in zip(found, labelled, strict=True)
    ]


@dataclass(frozen=True)
class _Table:
    """The pixels that are learned from or judged."""

    places: list[np.ndarray]  # (n, 2) rows and columns of every image
    labels: np.ndarray  # (P,)
    groups: np.ndarray  # (P,)
    group_images: list[np.ndarray]  # (H, W), -1 for other pixels
    classes: tuple[ClassCount, ...]
    left_out: tuple[ClassCount, ...]


def _table(
    values: list[np.ndarray], labelled: list[np.ndarray], groups: list[np.ndarray], task: str,
    names: dict[int, str],
) -> _Table:  # fmt: skip
    classes: list[ClassCount] = []
    left_out: list[ClassCount] = []
    y = np.concatenate([v[k] for v, k in zip(values, labelled, strict=True)])
    g = np.concatenate([v[k] for v, k in zip(groups, labelled, strict=True)])
    if task == "classification":
        for code in np.unique(y).tolist():
            at = y == code
            count = ClassCount(code, names.get(code, str(code)), int(at.sum()),
                               len(np.unique(g[at])))  # fmt: skip
            (classes if count.groups > 1 else left_out).append(count)
        keep = [c.code for c in classes]
        use = [k & np.isin(v, keep) for v, k in zip(values, labelled, strict=True)]
        if len(classes) < 2:
            raise InputError(
                "labels: expected at least two classes that are in two groups each, got "
                + (", ".join(f"{c.name} in {c.groups}" for c in classes + left_out) or "no label")
                + "; split otherwise, or add tiles"
            )
    else:
        use = labelled
        if len(np.unique(g)) < 2:
            raise InputError(
                f"labels: expected values in at least two groups, got {len(np.unique(g))}; split "
                "by block, or add tiles"
            )
    return _Table(
        [np.argwhere(u) for u in use],
        np.concatenate([v[u] for v, u in zip(values, use, strict=True)]),
        np.concatenate([v[u] for v, u in zip(groups, use, strict=True)]),
        [np.where(u, v, -1) for v, u in zip(groups, use, strict=True)],
        tuple(classes), tuple(left_out),
    )  # fmt: skip


def _rows(images: list[Image], places: list[np.ndarray]) -> np.ndarray:
    """(P, E) float32 features of the places, image by image."""
    found = []
    for image, at in zip(images, places, strict=True):
        for start, stop in image.blocks():
            here = at[(at[:, 0] >= start) & (at[:, 0] < stop)]
            if len(here):
                found.append(image.read(start, stop)[here[:, 0] - start, here[:, 1]])
    return np.concatenate(found)
