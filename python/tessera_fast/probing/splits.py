"""Which pixels are for learning and which for judging. P labelled pixels.

Neighbours are alike, so pixels of one field in both halves make any features look good. What is
divided are therefore groups of pixels: fields, tiles, blocks, or what the user gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .packages import require_sklearn

SPLITS = ("field", "tile", "block", "random")


def fields(labels: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Number of the field of each pixel, (H, W) int64 from 0, -1 where ``labelled`` is False.

    A field is a connected component (4 neighbours) of one label.
    """
    ndimage = require_sklearn("scipy.ndimage")
    out = np.full(labels.shape, -1, np.int64)
    count = 0
    for value in np.unique(labels[labelled]):
        numbers, n = ndimage.label(labelled & (labels == value))
        out[numbers > 0] = numbers[numbers > 0] + (count - 1)
        count += n
    return out


def blocks(shape: tuple[int, int], side: int) -> np.ndarray:
    """Number of the square of ``side`` x ``side`` pixels of each pixel, (H, W) int64."""
    rows, columns = (np.arange(n) // side for n in shape)
    return rows[:, None] * (columns[-1] + 1) + columns


def groups_of(
    split: str, labels: Sequence[np.ndarray], labelled: Sequence[np.ndarray], side: int
) -> list[np.ndarray]:
    """Group of each pixel of every image, different between images; -1: unlabelled."""
    found, first = [], 0
    for values, known in zip(labels, labelled, strict=True):
        if split == "field":
            numbers = fields(values, known)
        elif split == "block":
            numbers = blocks(known.shape, side)
        elif split == "tile":
            numbers = np.zeros(known.shape, np.int64)
        else:
            numbers = np.arange(known.size).reshape(known.shape)
        found.append(np.where(known, numbers + first, -1))
        first += int(numbers.max(initial=-1)) + 1
    return found


def halves(groups: np.ndarray, classes: np.ndarray | None, seed: int) -> np.ndarray:
    """(P,) bool: pixels for learning, half of the groups.

    With ``classes`` (P,) half of the groups of every class, at least one and not all: a group
    counts for its most frequent class. Classes with one group, and values, share one draw.
    """
    rng = np.random.default_rng([seed, 1])
    numbers, of_pixel = np.unique(groups, return_inverse=True)
    home = np.zeros(len(numbers), np.int64)
    if classes is not None:
        kinds, kind = np.unique(classes, return_inverse=True)
        votes = np.zeros((len(numbers), len(kinds)), np.int64)
        np.add.at(votes, (of_pixel, kind), 1)
        home = votes.argmax(axis=1)
        alone = np.bincount(home, minlength=len(kinds)) < 2
        home[alone[home]] = -1
    chosen = np.zeros(len(numbers), bool)
    for kind_of_group in np.unique(home):
        members = rng.permutation(np.flatnonzero(home == kind_of_group))
        half = len(members) / 2  # rounded up or down by chance: neither side is always larger
        chosen[members[: int(half + rng.integers(0, 2) / 2)]] = True
    if chosen.all() or not chosen.any():
        chosen[rng.integers(0, len(numbers))] ^= True
    learn: np.ndarray = chosen[of_pixel]
    return learn


def draw(classes: np.ndarray | None, learn: np.ndarray, seed: int) -> list[np.ndarray]:
    """Pixels for learning in random order, a list for every class, or one of values.

    The first n of each are n labels a class, so more labels contain the fewer.
    """
    rng = np.random.default_rng([seed, 2])
    there = np.flatnonzero(learn)
    if classes is None:
        return [rng.permutation(there)]
    return [rng.permutation(there[classes[there] == k]) for k in np.unique(classes[there])]
