"""`tf.probe`: how far a small head gets with embeddings and few labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..packages import has
from ..progress import Progress, progress_bar
from ..untrusted.readers import shown
from ..untrusted.suggest import checks_keywords, closest, one_of
from .beside import BASELINES, RAW, Asked, all_features
from .evaluate import LearningProblem, evaluate, maps
from .heads import check_head
from .images import Features, Image, open_features
from .labels import Labels, read_labels
from .packages import require_sklearn
from .places import places_of
from .report import ProbeReport
from .results import ALL
from .spectrum import rankme
from .splits import SPLITS, check_fields, groups_of
from .table import rows_at, table_of

PER_CLASS = (1, 5, 10, 20, 50)
EXTENTS = ("all", "labelled", "none")
_MAPPED = ("untrained", "statistics")  # baselines that are mapped beside the embeddings


@checks_keywords()
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
    per_class: int | Sequence[int] | None = PER_CLASS,
    seeds: int = 20,
    classes: Mapping[int, str] | None = None,
    nodata: float | None = None,
    name: str | None = None,
    extent: str = "all",
    year: int | None = None,
    period: Any = None,
    allow_missing_s1: bool = False,
    s1_units: str | None = None,
    s2_offset: str | int = "removed",
    threads: int | None = None,
    progress: Progress = None,
) -> ProbeReport:
    """Fit a head to a few labelled pixels, judge it on other fields, beside what it has to beat.

    ``embeddings``: a store or a folder of .npy files, a .npy file, an array (H, W, E) or (P, E), or
    a list or a dict (by tile) of these; float32, or int8 with its scales. ``labels``: for the same
    pixels, integers for classes or floats for a regression: an array, .npy file or raster (any CRS
    and grid), or a list or a dict. ``nodata``: the label that means none, by default 0 for classes;
    NaN, and what a raster masks, always. ``classes``: names by code; codes of one name are one
    class, and a class without a name ("") is left out. ``task``: "classification" or "regression",
    by default by the labels.

    ``head``: "logistic" (the default for classes), "ridge" (for values), "knn", "mlp", "forest", or
    a scikit-learn estimator. ``split``: what is divided between learning and judging: "field"
    (connected components of one label; not for values that differ from pixel to pixel), "tile",
    "block" (squares of ``block`` pixels), "random" (single pixels: it leaks, as neighbours are one
    field), or groups as ``labels`` are given; a pixel whose group is negative or NaN is left out.
    Embeddings of one place in two years share their groups. ``per_class``: numbers of labelled
    pixels a class (of a regression: in all), drawn with every seed; None: all of the half.

    ``extent``: pixels to be mapped, "all", "labelled" (a head knows nothing of other kinds of land)
    or "none"; no labelled pixel is mapped by a head that learned from its field.

    ``tiles``: what the embeddings were made of, from which baselines are computed: "untrained", the
    same architecture with seeded random weights (``model``: which, if the store does not say),
    "statistics" and "months" of the observations. ``beside``: other embeddings by name.
    ``year``, ``period``, ``allow_missing_s1``, ``s1_units`` and ``s2_offset`` are those with which
    the tiles were embedded (see `open_tile`), ``threads`` is for untrained; ``name`` is that of the
    embeddings.

    Raises InputError for what does not belong together or cannot be split, BackendUnavailable
    without scikit-learn.
    """
    require_sklearn("sklearn")
    ours = open_features(embeddings)
    images = ours.images
    given = read_labels(labels, images)
    if task == "auto":
        task = "regression" if given[0][0].dtype.kind == "f" else "classification"
    one_of("task", task, ("classification", "regression"))
    head = head or ("logistic" if task == "classification" else "ridge")
    known = check_head(head, task)
    counts = _counts(per_class)
    _check_numbers(seeds, block)
    one_of("extent", extent, EXTENTS)
    values, labelled, names = _prepared(given, task, nodata, classes)
    title = name or _title(ours)
    opening = {
        "year": year,
        "period": period,
        "allow_missing_s1": allow_missing_s1,
        "s1_units": s1_units,
        "s2_offset": s2_offset,
    }
    asked = Asked(beside or {}, baselines, tiles, model, opening, threads)
    split_name, groups, notes = _groups(split, values, labelled, images, block, task)
    kinds, missing = all_features(ours, title, asked)
    notes += missing
    # groups are of all labels: a field that lacks an embedding in its middle is still one
    labelled = [k & (g >= 0) for k, g in zip(labelled, groups, strict=True)]
    labelled = _with_data(kinds, labelled, notes)
    table = table_of(values, labelled, groups, task, names)
    features = {k: rows_at(v, table.places) for k, v in kinds.items()}
    codes = np.array([c.code for c in table.classes], values[0].dtype)
    problem = LearningProblem(task, features, table.labels, table.groups, codes)
    with progress_bar(seeds, "probe: seeds", progress) as done:
        scores, fitted, used, absent = evaluate(problem, head, counts, seeds, done)
    notes += [
        f"{c.name}: in one half alone with {n} of {seeds} seeds"
        for c, n in zip(table.classes, absent, strict=True)
        if n
    ]
    empty: float = float("nan") if task == "regression" else 0 if nodata is None else nodata
    drawn = {}
    if extent != "none" and min(images[0].height, images[0].width) > 1:
        of_classes = codes if task == "classification" else None
        shown = [title, *(beside or {}), *(k for k in kinds if k in _MAPPED)]
        where = labelled if extent == "labelled" else [np.ones_like(k) for k in labelled]
        drawn = {
            k: list(maps(k, kinds[k], groups, where, fitted, of_classes, empty)) for k in shown
        }
        if any(image.crs and image.transform for image in images) and not has("rasterio"):
            notes.append("maps are not written as GeoTIFF: pip install 'tessera_fast[geo]'")
    low_high = (0.0, 0.0)
    if task == "regression":
        low_high = float(table.labels.min()), float(table.labels.max())
    return ProbeReport(
        name=title,
        task=task,
        head=known,
        split=split_name,
        seeds=seeds,
        counts=tuple(ALL if n is None else n for n in counts),
        classes=table.classes,
        left_out=table.left_out,
        pixels=len(table.labels),
        groups=len(np.unique(table.groups)),
        dims={k: v.shape[1] for k, v in features.items()},
        scores=scores,
        used={ALL if n is None else n: v for n, v in used.items()},
        notes=tuple(notes),
        value_range=low_high,
        images=images,
        labels=[np.where(k, v, empty) for v, k in zip(values, labelled, strict=True)],
        maps=drawn,
        nodata=empty,
        rankme={k: _rank(features[k]) for k in kinds if k not in RAW},
    )


def _counts(per_class: int | Sequence[int] | None) -> list[int | None]:
    if per_class is None:
        return [None]
    numbers = [per_class] if isinstance(per_class, int) else per_class
    if isinstance(numbers, str) or not len(numbers) or min(numbers) < 1:
        raise InputError(f"per_class: expected positive numbers of labels, got {per_class!r}")
    return [*sorted({int(n) for n in numbers})]


def _check_numbers(seeds: int, block: int) -> None:
    for what, number in (("seeds", seeds), ("block", block)):
        if number < 1:
            raise InputError(f"{what}: expected a positive number, got {number}")


def _title(features: Features) -> str:
    p = features.provenance
    if not p:
        return "embeddings"
    return p["model"] + ("" if p["trained"] else " (untrained)")


def _rank(rows: np.ndarray) -> float:
    """RankMe, or NaN where there is none: of one dimension, one pixel, or zeros."""
    known = rows[np.isfinite(rows).all(axis=1)]
    return rankme(known) if min(known.shape) > 1 and known.any() else float("nan")


def _prepared(
    given: list[Labels], task: str, nodata: float | None, classes: Mapping[int, str] | None
) -> tuple[list[np.ndarray], list[np.ndarray], dict[int, str]]:
    """Labels with one code a class or as float64, where there are any, and the names of codes."""
    if task == "regression":
        known = [k & (v != nodata if nodata is not None else True) for v, k in given]
        return [v.astype(np.float64) for v, _ in given], known, {}
    for v, k in given:
        if v.dtype.kind == "f" and not (v[k] == np.rint(v[k])).all():
            raise InputError("labels: expected whole numbers for classes, got fractions")
    none = 0 if nodata is None else nodata
    if none != np.rint(none):  # as NaN is
        raise InputError(
            f"nodata: expected a whole number for classes, got {nodata}; NaN is none in any case, "
            "and the map needs a code for none"
        )
    names = _names(classes)
    if names.get(int(none)):
        raise InputError(
            f"classes: expected codes other than {int(none)}, which means no label, got "
            f"{names[int(none)]!r}; give another nodata"
        )
    known = [k & (v != none) for v, k in given]
    whole = [np.where(k, v, none).astype(np.int64) for (v, _), k in zip(given, known, strict=True)]
    first: dict[str, int] = {}
    for code in sorted(names):
        first.setdefault(names[code], code)
    for code, text in names.items():
        for i, v in enumerate(whole):
            at = v == code
            known[i] = known[i] & ~at if not text else known[i]
            v[at] = first[text]
    return whole, known, names


def _names(classes: Mapping[int, str] | None) -> dict[int, str]:
    try:
        return {int(code): str(text) for code, text in (classes or {}).items()}
    except ValueError as error:
        raise InputError(f"classes: expected names by code, as 1 = wheat, got {classes}") from error


def _with_data(
    kinds: Mapping[str, list[Image]], labelled: list[np.ndarray], notes: list[str]
) -> list[np.ndarray]:
    """(H, W) bool of every image: labelled, and all embeddings have data: all rows of a report are
    of the same pixels. What that takes away is added to ``notes``."""
    for name, images in kinds.items():
        if name in RAW:  # which may lack an orbit: a head takes the mean for it
            continue
        before = sum(int(k.sum()) for k in labelled)
        labelled = [k & _has_data(image) for image, k in zip(images, labelled, strict=True)]
        lost = before - sum(int(k.sum()) for k in labelled)
        if lost == before > 0:
            raise InputError(f"{name}: expected data at labelled pixels, got none at {lost:,}")
        if lost:
            notes.append(
                f"{name}: labelled pixels without data, which all rows leave out: {lost:,}"
            )
    return labelled


def _has_data(image: Image) -> np.ndarray:
    """(H, W) bool: where there is an embedding."""
    rows = [np.isfinite(image.read(*rows)).all(axis=-1) for rows in image.blocks()]
    return np.concatenate(rows)


def _groups(
    split: Any,
    values: list[np.ndarray],
    labelled: list[np.ndarray],
    images: list[Image],
    block: int,
    task: str,
) -> tuple[str, list[np.ndarray], list[str]]:
    """Name of the split, group of each labelled pixel (-1: none), and what to mind."""
    notes = []
    if isinstance(split, str) and split in SPLITS:
        if split == "random":
            notes.append("a random split leaks: neighbours are one field. Split by field or tile")
            return split, groups_of(split, values, labelled, block), notes
        places, touch = places_of(images)
        if touch:
            notes.append("tiles touch: a field across their border may be learned and judged")
        if split == "field" and task == "regression":
            check_fields(values, labelled)
        return split, groups_of(split, values, labelled, block, places), notes
    if isinstance(split, str) and not os.path.exists(split):
        near = closest(split, SPLITS)
        raise InputError(
            f"split: expected {', '.join(SPLITS)}, or groups, got {shown(split)}.{near}"
        )
    given = read_labels(split, images, "groups")
    known = [k & there & (g >= 0) for (g, there), k in zip(given, labelled, strict=True)]
    lost = sum(int((k & ~there).sum()) for k, there in zip(labelled, known, strict=True))
    if lost:
        notes.append(f"{lost:,} labelled pixels are in no group and left out")
    numbers = np.unique(np.concatenate([g[k] for (g, _), k in zip(given, known, strict=True)]))
    found = [
        np.where(k, np.searchsorted(numbers, g), -1) for (g, _), k in zip(given, known, strict=True)
    ]
    return "group", found, notes
