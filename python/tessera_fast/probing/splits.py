"""Which pixels are for learning and which for judging. P labelled pixels.

Neighbours are alike, so pixels of one field in both halves make any features look good. What is
divided are therefore groups of pixels: fields, tiles, blocks, or what the user gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .packages import require_sklearn

SPLITS = ("field", "tile", "block", "random")
_DRAWS = 100


def fields(labels: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Number of the field of each pixel, (H, W) int64 from 0, -1 where ``labelled`` is False.

    A field is a connected component (8 neighbours: corners touch too) of one label.
    """
    number = np.arange(labels.size).reshape(labels.shape)
    pairs = []
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        here, there = _shifted(labels.shape, down, right)
        same = labelled[here] & labelled[there] & (labels[here] == labels[there])
        pairs.append((number[here][same], number[there][same]))
    found = _components(labels.size, *(np.concatenate(p) for p in zip(*pairs, strict=True)))
    out = np.full(labels.shape, -1, np.int64)
    out[labelled] = np.unique(found.reshape(labels.shape)[labelled], return_inverse=True)[1]
    return out


def check_fields(values: Sequence[np.ndarray], labelled: Sequence[np.ndarray]) -> None:
    """InputError if values differ from pixel to pixel, so that fields would be single pixels."""
    kept = [v[k] for v, k in zip(values, labelled, strict=True)]
    pixels = sum(len(v) for v in kept)
    least = len(np.unique(np.concatenate(kept)))  # a value has at least one field
    if 2 * least <= pixels:
        least = sum(
            int(fields(*pair).max(initial=-1)) + 1 for pair in zip(values, labelled, strict=True)
        )
    if 2 * least > pixels:
        raise InputError(
            f"split: expected fields of one value, got {least:,} or more in {pixels:,} labelled "
            "pixels: values differ from pixel to pixel, and neighbours would be learned and "
            "judged; split by block or tile, or give groups"
        )


def _shifted(shape: tuple[int, ...], down: int, right: int) -> tuple[Any, Any]:
    """Slices of the pixels that have a neighbour so far down and to the right, and of those."""
    height, width = shape
    rows, columns = slice(0, height - down), slice(max(0, -right), width - max(0, right))
    return (rows, columns), (slice(down, height), slice(max(0, right), width - max(0, -right)))


def _components(n: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) number of the connected component of each node, by edges from ``a`` to ``b``."""
    sparse, graph = require_sklearn("scipy.sparse"), require_sklearn("scipy.sparse.csgraph")
    edges = sparse.coo_matrix((np.ones(len(a)), (a, b)), shape=(n, n))
    numbers: np.ndarray = graph.connected_components(edges, directed=False)[1].astype(np.int64)
    return numbers


def blocks(shape: tuple[int, int], side: int) -> np.ndarray:
    """Number of the square of ``side`` x ``side`` pixels of each pixel, (H, W) int64."""
    rows, columns = (np.arange(n) // side for n in shape)
    return rows[:, None] * (columns[-1] + 1) + columns


def groups_of(
    split: str,
    labels: Sequence[np.ndarray],
    labelled: Sequence[np.ndarray],
    side: int,
    places: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Group of each pixel of every image, (H, W) int64; -1: unlabelled.

    ``places``: equal numbers for images of the same pixels, e.g. a tile in two years: they share
    their groups, and fields of two years with a common pixel are one. Other images share none.
    """
    places = list(range(len(labels))) if places is None else places
    found, first = [], 0
    start: dict[int, int] = {}  # place -> its first group
    for values, known, place in zip(labels, labelled, places, strict=True):
        if split == "field":
            numbers = fields(values, known)
        elif split == "block":
            numbers = blocks(known.shape, side)
        elif split == "tile":
            numbers = np.zeros(known.shape, np.int64)
        else:
            numbers = np.arange(known.size).reshape(known.shape)
        here = first if split == "field" else start.setdefault(place, first)
        found.append(np.where(known, numbers + here, -1))
        first = max(first, here + int(numbers.max(initial=-1)) + 1)
    return _joined(found, places, first) if split == "field" else found


def _joined(groups: list[np.ndarray], places: Sequence[int], count: int) -> list[np.ndarray]:
    """The same groups, those of images of one place joined where they have a pixel in common."""
    last: dict[int, np.ndarray] = {}  # place -> (H, W) a group of each pixel in an earlier image
    pairs = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for numbers, place in zip(groups, places, strict=True):
        before = last.get(place, np.full(numbers.shape, -1))
        both = (numbers >= 0) & (before >= 0)
        pairs.append((before[both], numbers[both]))
        last[place] = np.where(numbers >= 0, numbers, before)
    if len(last) == len(groups):
        return groups
    joined = _components(count, *(np.concatenate(p) for p in zip(*pairs, strict=True)))
    return [np.where(g >= 0, joined[g], -1) for g in groups]


def halves(groups: np.ndarray, classes: np.ndarray | None, seed: int) -> np.ndarray:
    """(P,) bool: pixels for learning, half of the groups.

    With ``classes`` (P,) half of the groups of every class, at least one and not all: a group
    counts for its most frequent class. Classes with one group, and values, share one draw. Where
    groups are mixed a class may be missing from a half: then it is drawn again, `_DRAWS` times at
    most, and the draw with the most classes in both halves is taken.
    """
    rng = np.random.default_rng([seed, 1])
    numbers, of_pixel = np.unique(groups, return_inverse=True)
    home = np.zeros(len(numbers), np.int64)
    votes = np.ones((len(numbers), 1), np.int64)
    if classes is not None:
        kinds, kind = np.unique(classes, return_inverse=True)
        votes = np.zeros((len(numbers), len(kinds)), np.int64)
        np.add.at(votes, (of_pixel, kind), 1)
        home = votes.argmax(axis=1)
        alone = np.bincount(home, minlength=len(kinds)) < 2
        home[alone[home]] = -1
    best, most = np.zeros(len(numbers), bool), -1
    for _ in range(_DRAWS):
        chosen = _half(home, rng)
        both = int((votes[chosen].any(axis=0) & votes[~chosen].any(axis=0)).sum())
        if both > most:
            best, most = chosen, both
        if most == votes.shape[1]:
            break
    learn: np.ndarray = best[of_pixel]
    return learn


def _half(home: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(G,) bool: half of the groups of each number in ``home`` (G,); neither none nor all."""
    chosen = np.zeros(len(home), bool)
    for kind_of_group in np.unique(home):
        members = rng.permutation(np.flatnonzero(home == kind_of_group))
        half = len(members) / 2  # rounded up or down by chance: neither side is always larger
        chosen[members[: int(half + rng.integers(0, 2) / 2)]] = True
    if chosen.all() or not chosen.any():
        chosen[rng.integers(0, len(home))] ^= True
    return chosen


def draw(classes: np.ndarray | None, learn: np.ndarray, seed: int) -> list[np.ndarray]:
    """Pixels for learning in random order, a list for every class, or one of values.

    The first n of each are n labels a class, so more labels contain the fewer.
    """
    rng = np.random.default_rng([seed, 2])
    there = np.flatnonzero(learn)
    if classes is None:
        return [rng.permutation(there)]
    return [rng.permutation(there[classes[there] == k]) for k in np.unique(classes[there])]
