"""Likely causes of a difference: cheap hypotheses, each tried on the figures or on a few windows.

A sentence here says what the numbers are consistent with; it proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .compare import Reader, Streamed
from .figures import Figures, Pixels, measure
from .gates import GATES, STRICTEST_FIRST, Gate
from .judge import judge, passes
from .pairs import Pair

SAMPLE = 64  # rows and columns of a window that hypotheses are tried on
SAME = 1e-3  # median 1 - cosine below which two rasters count as one: the gate of int8
MOST = 0.95  # share of the pixels beyond the gate that a cause has to explain
FEW = 0.5  # ... while it covers at most this share of the pixels compared


def likely_causes(
    readers: tuple[Reader, Reader],
    pairs: tuple[Pair, ...],
    found: Streamed,
    overall: Figures,
    gate: Gate,
) -> list[str]:
    """What the differences are consistent with, the most telling first; may be empty.

    ``overall``: the figures of all pairs, with the pixels that lie beyond them.
    """
    geometry = [*_lattice(pairs), *_moved(readers, pairs, found)]
    if geometry:
        return geometry
    return [
        *_missing(overall),
        *_inputs(overall),
        *_uniform(overall),
        *_scaled(overall),
        *_laxer(overall, pairs, gate),
        *_where(found, overall),
    ]


def _lattice(pairs: tuple[Pair, ...]) -> Iterator[str]:
    shifts = {p.lattice_shift for p in pairs} - {(0.0, 0.0)}
    for rows, columns in sorted(shifts):
        half = " (half a pixel: a transform of pixel centres taken for corners?)"
        yield (
            f"the pixels of the two lie {abs(rows):.3g} rows and {abs(columns):.3g} columns apart"
            f"{half if {abs(rows), abs(columns)} <= {0.0, 0.5} else ''}; nearest pixels were "
            "compared"
        )


def _moved(
    readers: tuple[Reader, Reader], pairs: tuple[Pair, ...], found: Streamed
) -> Iterator[str]:
    """Shifts by a pixel and flips, on the windows that differ most."""
    for _, number, rows, columns in found.windows:
        pair = pairs[number]
        shifts = _shifts(readers, pair, rows, columns)
        best = min(shifts, key=lambda s: shifts[s])
        if best != (0, 0) and shifts[best] < min(SAME, shifts[0, 0] / 10):
            yield (
                f"{pair.name}: consistent with a shift by {best[0]} rows and {best[1]} columns: "
                f"with row r and column c of A at r {best[0]:+d} and c {best[1]:+d} of B the "
                f"median cosine is {1 - shifts[best]:.6f}, in place {1 - shifts[0, 0]:.6f}"
            )
            return
    for number in dict.fromkeys(w[1] for w in found.windows):
        pair = pairs[number]
        tally = found.tallies[number]
        for n in np.argsort(-tally.off)[:2] if tally.names else ():
            _, r0, r1, c0, c1 = pair.tiles[n]
            rows, columns = (
                slice(max(r0, 0), min(r1, pair.height)),
                slice(max(c0, 0), min(c1, pair.width)),
            )
            yield from _flips(readers, pair, tally.names[n], rows, columns)


def _shifts(
    readers: tuple[Reader, Reader], pair: Pair, rows: slice, columns: slice
) -> dict[tuple[int, int], float]:
    """Median 1 - cosine of a window of a with b, read as many rows and columns further on."""
    rows, columns = _inner(rows, pair.height), _inner(columns, pair.width)
    a = readers[0].pixels(pair.a, *pair.in_a(rows, columns), False)
    out = {}
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            there = (slice(p.start + by, p.stop + by) for p, by in ((rows, row), (columns, column)))
            b = readers[1].pixels(pair.b, *pair.in_b(*there), False)
            out[row, column] = _median_distance(a, b)
    return out


def _inner(part: slice, size: int) -> slice:
    """The middle of a window, a pixel away from the raster's borders."""
    middle = (part.start + part.stop) // 2
    start = max(part.start, 1, middle - SAMPLE // 2)
    return slice(start, max(start, min(part.stop, size - 1, start + SAMPLE)))


def _flips(
    readers: tuple[Reader, Reader], pair: Pair, name: str, rows: slice, columns: slice
) -> Iterator[str]:
    part = slice(columns.start, min(columns.stop, columns.start + 4 * SAMPLE))
    mirrored = slice(
        columns.stop - (part.stop - columns.start), columns.stop
    )  # of `part`, in b's columns
    step = max(1, (rows.stop - rows.start) // 8)
    distances: dict[str, list[float]] = {"rows": [], "columns": []}
    for row in range(rows.start, rows.stop, step):
        a = readers[0].pixels(pair.a, *pair.in_a(slice(row, row + 1), part), False)
        other = rows.start + rows.stop - 1 - row
        below = readers[1].pixels(pair.b, *pair.in_b(slice(other, other + 1), part), False)
        beside = readers[1].pixels(pair.b, *pair.in_b(slice(row, row + 1), mirrored), False)
        distances["rows"].append(_median_distance(a, below))
        back = Pixels(beside.codes[:, ::-1], beside.scales[:, ::-1], None)
        distances["columns"].append(_median_distance(a, back))
    for what, values in distances.items():
        if np.median(values) < SAME:
            order = "north-up and south-up" if what == "rows" else "west and east"
            yield (
                f"{name}: consistent with flipped {what} ({order} exchanged): read in reverse, the "
                f"median cosine is {1 - np.median(values):.6f}"
            )


def _median_distance(a: Pixels, b: Pixels) -> float:
    """Of the pixels that both hold; 2 without any."""
    both = np.isfinite(a.scales) & np.isfinite(b.scales)
    if not both.any():
        return 2.0
    one, two = (Pixels(p.codes[both], p.scales[both], None) for p in (a, b))
    return float(np.median(measure(one, two).distance))


def _missing(f: Figures) -> Iterator[str]:
    if f.compared and not f.off and f.only_a + f.only_b:
        yield (
            "the pixels that both hold agree: consistent with tiles that one side has not finished "
            "(--ignore-missing judges common pixels alone)"
        )


def _inputs(f: Figures) -> Iterator[str]:
    if f.swapped_counts and f.swapped_counts >= MOST * f.other_counts:
        yield (
            f"{f.swapped_counts:,} of {f.counted:,} pixels have the observation counts of the two "
            "orbits exchanged: consistent with ascending and descending files swapped"
        )
    elif f.other_counts:
        yield (
            f"{f.other_counts:,} of {f.counted:,} pixels have other numbers of observed dates: "
            "consistent with other inputs (dates, masks or sensors)"
        )


def _uniform(f: Figures) -> Iterator[str]:
    nearest, median = f.distances.quantile(0.05), f.distances.quantile(0.5)
    if f.compared and nearest > 0.02:
        yield (
            f"95 % of the pixels have a cosine below {1 - nearest:.3f} (median {1 - median:.3f}): "
            "consistent with other weights, other statistics (the standardisation of v1.1-mpc and "
            "v1.1-aws differs), another band order, or units and offset of the bands"
        )


def _scaled(f: Figures) -> Iterator[str]:
    low, median, high = (f.scales.quantile(q) for q in (0.05, 0.5, 0.95))
    if f.codes and abs(median) > 1e-6 and high - low <= 0.1 * abs(median):
        same = f.share("same_codes")
        how = "the same values times a constant" if same >= 0.995 else "another rule of quantising"
        yield (
            f"scales of B are {1 + median:.6g} times those of A in 90 % of the pixels, with "
            f"{same:.2%} of the codes identical: consistent with {how}"
        )


def _laxer(f: Figures, pairs: tuple[Pair, ...], gate: Gate) -> Iterator[str]:
    if f.only_a + f.only_b + f.other_counts or f.identical > FEW * f.compared:
        return  # another arithmetic changes bits nearly everywhere
    floats = not any(p.a.quantized or p.b.quantized for p in pairs)
    for name in STRICTEST_FIRST[STRICTEST_FIRST.index(gate.name) + 1 :]:
        if passes(judge(f, GATES[name], floats)):
            yield (
                f"within the gate of {name}: consistent with one side computed in {name}, or with "
                "another instruction set, device or back end"
            )
            return


def _where(found: Streamed, overall: Figures) -> Iterator[str]:
    """In which tiles the pixels beyond the gate lie, and where in them."""
    off = sum(int(t.off.sum()) for t in found.tallies)
    if not off:
        return
    for what, text in (
        ("shared", "where tiles overlap: which of them won may differ"),
        ("edge", "within 2 pixels of a tile's border"),
    ):
        compared, there = np.sum([getattr(t, what) for t in found.tallies], axis=0)
        if there >= MOST * overall.off and compared <= FEW * overall.compared:
            yield f"{there:,} of {overall.off:,} pixels beyond the gate lie {text}"
    tiles = [
        (name, int(o), int(c))
        for t in found.tallies
        for name, o, c in zip(t.names, t.off, t.compared, strict=True)
        if c
    ]
    bad = sorted((t for t in tiles if t[1]), key=lambda t: -t[1] / t[2])
    if len(bad) <= FEW * len(tiles):
        some = ", ".join(f"{name} ({o:,} of {c:,} pixels)" for name, o, c in bad[:10])
        yield (
            f"only {len(bad)} of {len(tiles)} tiles differ: {some}"
            f"{' and others' if len(bad) > 10 else ''}"
        )
