"""Two outputs, window by window: what differs, where, and by how much. Memory is bounded.

h, w are the rows and columns of a window, E the embedding width, P pixels of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import StoreError
from ..progress import Progress, progress_bar
from ..quantization import quantize
from ..spec import NAMED
from ..store.reader import Embeddings, Layer
from ..untrusted.damage import damaged
from .figures import Differences, Figures, Pixels, measure
from .gates import Gate
from .pairs import Pair
from .tally import TileTally

STRIP = 2048  # pixels measured at once: 2 MiB a float64 array at E = 128


class PixelSink(Protocol):
    """Takes the figures of single pixels, to draw them."""

    def begin(self, pair: Pair, windows: list[tuple[slice, slice]]) -> None:
        """The next pair, and which of its windows will come."""

    def add(self, rows: slice, columns: slice, deviation: np.ndarray, distance: np.ndarray) -> None:
        """(h, w) float32 each: NaN without data, +inf where one side alone has data."""

    def end(self) -> None:
        """The pair is complete."""


class Off(NamedTuple):
    """A pixel of the report; orders from harmless to worst."""

    beyond: bool  # a limit of the gate
    deviation: float
    distance: float
    step: int
    pair: int
    row: int  # of the overlap
    column: int


@dataclass
class Streamed:
    """What one pass over two outputs found."""

    layers: list[Figures] = field(default_factory=list)  # one a pair
    tallies: list[TileTally] = field(default_factory=list)
    worst: list[Off] = field(default_factory=list)  # the worst first
    lonely: list[tuple[str, int, int, int]] = field(default_factory=list)
    # the first pixels with data on one side alone: "a" or "b", number of the pair, row, column
    windows: list[tuple[float, int, slice, slice]] = field(default_factory=list)
    # how much they differ, number of the pair, rows, columns; the worst windows first


class Reader:
    """Windows of the layers of one output, in the form that both sides have."""

    def __init__(self, output: Embeddings) -> None:
        self._path = output.path
        spec = NAMED.get(output.provenance.get("model", ""))
        self._floors = (
            {"absmax_floor": spec.absmax_floor, "scale_floor": spec.scale_floor} if (spec) else {}
        )

    def pixels(self, layer: Layer, rows: slice, columns: slice, floats: bool) -> Pixels:
        """Codes (h, w, E), scales (h, w) and, for ``floats``, values (h, w, E)."""

        def read() -> Pixels:
            if layer.quantized:
                return Pixels(*layer.codes(rows, columns), None)
            values = layer.values(rows, columns)
            with np.errstate(invalid="ignore"):  # of infinite values, which are no data here
                codes, scales = quantize(values, **self._floors)
            return Pixels(codes, scales, values if floats else None)

        return self.whole(layer, rows, columns, read)

    def valid(self, layer: Layer, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) bool: where there is an embedding."""
        return self.whole(layer, rows, columns, lambda: layer.valid(rows, columns))

    def whole(self, layer: Layer, rows: slice, columns: slice, read: Callable[[], Any]) -> Any:
        """What ``read`` returns; StoreError where the files are damaged."""
        try:
            return read()
        except damaged() as error:
            raise StoreError(
                f"{self._path}, {layer.name}, rows {rows.start}..{rows.stop}, columns "
                f"{columns.start}..{columns.stop}: cannot be read ({type(error).__name__}: "
                f"{error}). `tessera-fast verify {self._path}` names the damaged files"
            ) from error


def stream(
    a: Embeddings,
    b: Embeddings,
    pairs: tuple[Pair, ...],
    gate: Gate,
    *,
    keep: int,
    sink: PixelSink | None,
    progress: Progress,
) -> Streamed:
    """Compare all pairs; ``keep`` pixels of each kind are remembered by name."""
    out = Streamed()
    readers = Reader(a), Reader(b)
    plan = [list(_occupied(readers, pair)) for pair in pairs]
    total = sum((r.stop - r.start) * (c.stop - c.start) for w in plan for r, c in w)
    done = 0
    with progress_bar(total, "verify", progress) as tick:
        for number, (pair, windows) in enumerate(zip(pairs, plan, strict=True)):
            out.layers.append(Figures())
            out.tallies.append(TileTally(pair.tiles))
            if sink is not None:
                sink.begin(pair, windows)
            for rows, columns in windows:
                _window(out, readers, pair, number, rows, columns, gate, keep, sink)
                done += (rows.stop - rows.start) * (columns.stop - columns.start)
                tick(done)
            if sink is not None:
                sink.end()
    return out


def _occupied(readers: tuple[Reader, Reader], pair: Pair) -> Iterator[tuple[slice, slice]]:
    """The windows in which either side has a pixel with data."""
    for window in pair.windows():
        in_a, in_b = pair.in_a(*window), pair.in_b(*window)
        if readers[0].valid(pair.a, *in_a).any() or readers[1].valid(pair.b, *in_b).any():
            yield window


def _window(
    out: Streamed,
    readers: tuple[Reader, Reader],
    pair: Pair,
    number: int,
    rows: slice,
    columns: slice,
    gate: Gate,
    keep: int,
    sink: PixelSink | None,
) -> None:
    floats = not pair.a.quantized and not pair.b.quantized
    in_a, in_b = pair.in_a(rows, columns), pair.in_b(rows, columns)
    a = readers[0].pixels(pair.a, *in_a, floats)
    b = readers[1].pixels(pair.b, *in_b, floats)
    figures = out.layers[number]
    valid_a, valid_b = np.isfinite(a.scales), np.isfinite(b.scales)
    water = np.isnan(a.scales) | np.isnan(b.scales)
    both, one = valid_a & valid_b, (valid_a ^ valid_b) & ~water
    figures.masked += int(((valid_a ^ valid_b) & water).sum())
    figures.only_a += int((one & valid_a).sum())
    figures.only_b += int((one & valid_b).sum())
    for side, alone in (("a", one & valid_a), ("b", one & valid_b)):
        for r, c in np.argwhere(alone)[: keep - len(out.lonely)].tolist():
            out.lonely.append((side, number, rows.start + r, columns.start + c))

    shape = both.shape
    deviation, distance = np.full((2, *shape), np.nan, np.float32)
    off = np.zeros(shape, bool)
    step = np.zeros(shape, np.int16)  # the largest difference of a code
    index = np.flatnonzero(both)
    flat_a, flat_b = _flat(a), _flat(b)
    for start in range(0, index.size, STRIP):
        picked = index[start : start + STRIP]
        found = measure(flat_a.picked(picked), flat_b.picked(picked))
        beyond = found.beyond(gate, floats)
        at = np.stack(
            [
                np.full(picked.size, number),
                rows.start + picked // shape[1],
                columns.start + picked % shape[1],
            ],
            axis=1,
        )
        figures.add(found, beyond, at)
        _remember(out, found, beyond, at, keep)
        deviation.flat[picked], distance.flat[picked] = found.deviation, found.distance
        off.flat[picked], step.flat[picked] = beyond, found.step
    if counts := _counts(readers, pair, in_a, in_b):
        _add_counts(figures, *counts, both)
    if widths := {*pair.a.prefixes} & {*pair.b.prefixes}:
        other = np.zeros(both.shape, bool)
        for width in widths:  # a prefix repeats codes, so it cannot differ by more than they do
            in_first = readers[0].whole(pair.a, *in_a, partial(pair.a.prefix, width, *in_a))
            in_second = readers[1].whole(pair.b, *in_b, partial(pair.b.prefix, width, *in_b))
            if not np.array_equal(in_first, in_second):
                other |= _step(in_first, in_second) > step
        figures.other_prefixes += int((other & both).sum())
    out.tallies[number].add(rows.start, columns.start, both, off)
    worst = np.nan_to_num(distance).sum() + int(off.sum())
    if worst > 0:
        out.windows = sorted(
            [*out.windows, (float(worst), number, rows, columns)], key=lambda w: -w[0]
        )[:4]
    if sink is not None:
        deviation[one] = distance[one] = np.inf
        sink.add(rows, columns, deviation, distance)


def _flat(p: Pixels) -> Pixels:
    values = None if p.values is None else p.values.reshape(-1, p.values.shape[-1])
    return Pixels(p.codes.reshape(-1, p.codes.shape[-1]), p.scales.reshape(-1), values)


def _remember(
    out: Streamed, found: Differences, beyond: np.ndarray, at: np.ndarray, keep: int
) -> None:
    """Merge the worst of these pixels into the worst so far."""
    order = np.lexsort((found.distance, found.deviation, beyond))[::-1][:keep]
    fresh = [
        Off(
            bool(beyond[i]),
            float(found.deviation[i]),
            float(found.distance[i]),
            int(found.step[i]),
            *at[i].tolist(),
        )
        for i in order
        if found.changed[i]
    ]
    if fresh:
        out.worst = sorted(out.worst + fresh, reverse=True)[:keep]


def _counts(
    readers: tuple[Reader, Reader],
    pair: Pair,
    in_a: tuple[slice, slice],
    in_b: tuple[slice, slice],
) -> tuple[np.ndarray, np.ndarray] | None:
    """(h, w, 3) observation counts of both sides; None where a side has none."""
    a = readers[0].whole(pair.a, *in_a, lambda: pair.a.counts(*in_a))
    b = None if a is None else readers[1].whole(pair.b, *in_b, lambda: pair.b.counts(*in_b))
    return None if b is None else (a, b)


def _step(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(h, w) int16: the largest difference of the codes (K, h, w) int8 of a pixel."""
    steps = np.zeros(a.shape[1:], np.int16)
    for one, two in zip(a, b, strict=True):
        np.maximum(steps, np.abs(np.subtract(one, two, dtype=np.int16)), out=steps)
    return steps


def _add_counts(figures: Figures, a: np.ndarray, b: np.ndarray, both: np.ndarray) -> None:
    a, b = a[both], b[both]
    differ = (a != b).any(axis=1)
    figures.counted += len(a)
    figures.other_counts += int(differ.sum())
    figures.swapped_counts += int((differ & (a[:, [0, 2, 1]] == b).all(axis=1)).sum())
