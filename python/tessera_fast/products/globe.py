"""Outlines in longitude and latitude, also across the 180th meridian (RFC 7946, 3.1.6, 3.1.9, 5.2).

A longitude has many names, 360 degrees apart. A ring is drawn with those that make it one line; the
names -180..180 are given last, when it is cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

TURN, HALF = 360.0, 180.0
_DIGITS = 7  # decimals of a degree: 1 cm


def near(longitude: np.ndarray | float, middle: float) -> np.ndarray:
    """The names of longitudes within half a turn of ``middle``."""
    turns = np.round((middle - np.asarray(longitude, np.float64)) / TURN)
    moved: np.ndarray = np.where(np.isfinite(turns), longitude + TURN * turns, longitude)
    return moved


def unwrapped(longitude: np.ndarray) -> np.ndarray:
    """The names of a line's longitudes (n,) without a step of more than half a turn."""
    return np.unwrap(np.asarray(longitude, np.float64), period=TURN)


def cut(ring: np.ndarray) -> list[np.ndarray]:
    """A closed ring (n, 2) of longitude and latitude as rings in -180..180, counterclockwise.

    ``ring`` does not cross itself and may have any names of longitudes, if they make one line. A
    ring across the 180th meridian becomes several, on both sides of it. Rounded to 1 cm; parts
    narrower than that are left out.
    """
    open_ring = np.round(ring[:-1], _DIGITS)
    if _area(open_ring) < 0:
        open_ring = open_ring[::-1]
    west, east = open_ring[:, 0].min(), open_ring[:, 0].max()
    pieces = []
    for turn in range(int(np.floor((west + HALF) / TURN)), int(np.ceil((east + HALF) / TURN))):
        left = turn * TURN - HALF
        inside = [open_ring]
        for line, sign in ((left, 1.0), (left + TURN, -1.0)):
            inside = [part for piece in inside for part in _beside(piece, line, sign)]
        for piece in inside:
            piece = np.round(piece - (turn * TURN, 0.0), _DIGITS) + 0.0  # no -0
            piece = piece[(piece != np.roll(piece, 1, axis=0)).any(axis=1)]
            if len(piece) >= 3 and _area(piece) > 0:
                pieces.append(np.concatenate([piece, piece[:1]]))
    return pieces


def _area(ring: np.ndarray) -> float:
    """Of an open ring (n, 2), positive if it is counterclockwise."""
    x, y = (ring - ring[:1]).T  # small numbers: a ring of one pixel has an area of 1e-9
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _beside(ring: np.ndarray, line: float, sign: float) -> list[np.ndarray]:
    """The parts of an open ring where sign * (longitude - line) >= 0, each an open ring.

    Where the ring leaves the half-plane it goes along the line, to the crossing with which this one
    shares an interior piece of the line: of all crossings, sorted by latitude, the first and the
    second, the third and the fourth, ...
    """
    kept = sign * (ring[:, 0] - line) >= 0
    if kept.all():
        return [ring]
    if not kept.any():
        return []
    ring = np.roll(ring, -int(np.flatnonzero(~kept)[0]), axis=0)  # it begins outside
    kept = sign * (ring[:, 0] - line) >= 0
    chains = []
    starts = np.flatnonzero(kept & ~np.roll(kept, 1))
    stops = np.flatnonzero(kept & ~np.roll(kept, -1)) + 1
    for start, stop in zip(starts, stops, strict=True):
        enter = _crossing(ring[start - 1], ring[start], line)
        leave = _crossing(ring[stop - 1], ring[stop % len(ring)], line)
        chains.append(np.concatenate([enter[None], ring[start:stop], leave[None]]))
    latitudes = [chain[end, 1] for chain in chains for end in (0, -1)]
    order = np.argsort(latitudes, kind="stable").tolist()
    partner = {}
    for lower, upper in zip(order[::2], order[1::2], strict=True):
        partner[lower], partner[upper] = upper, lower
    parts, left = [], set(range(len(chains)))
    while left:
        k = first = min(left)
        joined = []
        while True:
            left.remove(k)
            joined.append(chains[k])
            k = partner[2 * k + 1] // 2  # from the end of this chain to the start of another
            if k == first:
                break
        parts.append(np.concatenate(joined))
    return parts


def _crossing(a: np.ndarray, b: np.ndarray, line: float) -> np.ndarray:
    share = (line - a[0]) / (b[0] - a[0])
    return np.array([line, a[1] + share * (b[1] - a[1])])


def bounds(rings: Sequence[np.ndarray]) -> list[float]:
    """[west, south, east, north] of rings in -180..180, the narrowest: west > east if it crosses
    the 180th meridian."""
    spans = [(float(r[:, 0].min()), float(r[:, 0].max())) for r in rings]
    west, east = narrowest(spans)
    latitudes = np.concatenate([r[:, 1] for r in rings])
    return [west, float(latitudes.min()), east, float(latitudes.max())]


def joined(boxes: Sequence[Sequence[float]]) -> list[float]:
    """The narrowest box around boxes [west, south, east, north], in which west may be > east."""
    spans = [
        span
        for west, _, east, _ in boxes
        for span in ([(west, east)] if west <= east else [(west, HALF), (-HALF, east)])
    ]
    west, east = narrowest(spans)
    return [west, min(b[1] for b in boxes), east, max(b[3] for b in boxes)]


def narrowest(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """West and east of the narrowest arc that holds spans of -180..180; west > east across 180."""
    ordered = sorted(spans)
    merged = [ordered[0]]
    for west, east in ordered[1:]:
        if west <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], east))
        else:
            merged.append((west, east))
    gaps = [b[0] - a[1] for a, b in itertools.pairwise(merged)]
    across = merged[0][0] + TURN - merged[-1][1]  # the gap that holds the 180th meridian
    if not gaps or across >= max(gaps):
        return merged[0][0], merged[-1][1]
    k = gaps.index(max(gaps))
    return merged[k + 1][0], merged[k][1]
