"""The labelled pixels of all images in one table. P of them, E features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .images import Image
from .results import ClassCount


@dataclass(frozen=True)
class Table:
    """The pixels that are learned from or judged."""

    places: list[np.ndarray]  # (n, 2) rows and columns of every image
    labels: np.ndarray  # (P,)
    groups: np.ndarray  # (P,)
    classes: tuple[ClassCount, ...]
    left_out: tuple[ClassCount, ...]


def table_of(
    values: list[np.ndarray],
    labelled: list[np.ndarray],
    groups: list[np.ndarray],
    task: str,
    names: dict[int, str],
) -> Table:
    """What is labelled and in a group that can be judged; InputError if that is too little."""
    classes: list[ClassCount] = []
    left_out: list[ClassCount] = []
    y = np.concatenate([v[k] for v, k in zip(values, labelled, strict=True)])
    g = np.concatenate([v[k] for v, k in zip(groups, labelled, strict=True)])
    if task == "classification":
        for code in np.unique(y).tolist():
            at = y == code
            count = ClassCount(
                code, names.get(code, str(code)), int(at.sum()), len(np.unique(g[at]))
            )
            (classes if count.groups > 1 else left_out).append(count)
        keep = [c.code for c in classes]
        use = [k & np.isin(v, keep) for v, k in zip(values, labelled, strict=True)]
        if len(classes) < 2:
            raise InputError(
                "labels: expected at least two classes that are in two groups each, got "
                + (", ".join(f"{c.name} in {c.groups}" for c in classes + left_out) or "no label")
                + "; split otherwise, add tiles, or give nodata if 0 is a class"
            )
    else:
        use = labelled
        if len(np.unique(g)) < 2:
            raise InputError(
                f"labels: expected values in at least two groups, got {len(np.unique(g))}; split "
                "by block, or add tiles"
            )
    return Table(
        [np.argwhere(u) for u in use],
        np.concatenate([v[u] for v, u in zip(values, use, strict=True)]),
        np.concatenate([v[u] for v, u in zip(groups, use, strict=True)]),
        tuple(classes),
        tuple(left_out),
    )


def rows_at(images: list[Image], places: list[np.ndarray]) -> np.ndarray:
    """(P, E) float32 features of the places, image by image."""
    found = []
    for image, at in zip(images, places, strict=True):
        for start, stop in image.blocks():
            here = at[(at[:, 0] >= start) & (at[:, 0] < stop)]
            if len(here):
                found.append(image.read(start, stop)[here[:, 0] - start, here[:, 1]])
    return np.concatenate(found)
