"""The pictures of a report, (h, w, 3) uint8: scores, confusion, maps beside the labels, scatter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..drawing.legend import legend
from ..drawing.letters import width as columns
from ..drawing.palette import colour, ramp
from ..drawing.quicklook import side_by_side
from .canvas import FAINT, GREY, LETTER, PAPER, TITLE, Canvas
from .evaluate import COMMONEST
from .results import ALL, ProbeResults, with_spread

_PANEL = 320  # pixels of a map's width, about
_LARGEST = 800
_OTHERS = (205, 205, 202)  # labels that are not of the probe


def scores(report: ProbeResults) -> np.ndarray:
    """The first metric of everything: over numbers of labels, or of every seed."""
    return _curves(report) if len(report.counts) > 1 else _strips(report)


def _subtitle(report: ProbeResults) -> str:
    return f"head {report.head}, split by {report.split}, {report.seeds} seeds"


def _widest(lines: Iterable[str]) -> int:
    """Columns of the widest of some lines."""
    return max((columns(line, LETTER) for line in lines), default=0)


def _ink(report: ProbeResults, name: str) -> tuple[int, int, int]:
    if name == COMMONEST:
        return GREY
    order = [report.name, *(n for n in report.scores if n not in (report.name, COMMONEST))]
    return colour(order.index(name))


def _range(low: float, high: float) -> tuple[float, float, float]:
    """Least and greatest of an axis, and its step, for 4 to 10 lines; 0 to 1 of NaN."""
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    high = max(low, high)
    least = 1e-6 * max(1.0, abs(low), abs(high))
    if high - low < least:  # all the same: it is in the middle
        low, high = low - least, high + least
    span = high - low
    step = 10.0 ** math.floor(math.log10(span))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if span / s <= 8)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _number(value: float, step: float) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _curves(report: ProbeResults) -> np.ndarray:
    metric, counts = report.metrics[0], report.counts
    left, top, width, height = 90, 84, 640, 400
    stats = {n: np.array([report.mean(n, c, metric) for c in counts]) for n in report.scores}
    named = {n: f"{n} {with_spread(stats[n][-1, 0], np.nan, 2)}" for n in stats}
    title = f"{report.name}: {metric.replace('_', ' ')}"
    canvas = Canvas(top + height + 70, left + width + 90 + _widest(named.values()))
    canvas.text(20, 18, title, size=TITLE)
    canvas.text(20, 46, f"{_subtitle(report)}, bars: standard deviation", ink=GREY)
    for of_name in stats.values():
        of_name[:, 1] = np.nan_to_num(of_name[:, 1])  # no bar of one seed
    shown = np.concatenate(list(stats.values()))
    shown = shown[np.isfinite(shown[:, 0])] if np.isfinite(shown[:, 0]).any() else np.zeros((1, 2))
    low, high = float((shown[:, 0] - shown[:, 1]).min()), float((shown[:, 0] + shown[:, 1]).max())
    low, high, step = _range(max(low, -0.5) if metric == "r2" else low, high)
    places = np.log(counts)
    x = left + 20 + (width - 40) * (places - places[0]) / (places[-1] - places[0])

    def y(value: Any) -> Any:
        return top + height * (1 - (np.clip(value, low, high) - low) / (high - low))

    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        canvas.line([(left, y(value)), (left + width, y(value))], FAINT, 1)
        canvas.text(left - 10, y(value) - 5, _number(value, step), align="right")
    for place, count in zip(x, counts, strict=True):
        canvas.line([(place, top + height), (place, top + height + 6)], GREY, 1)
        canvas.text(place, top + height + 14, str(count), align="middle")
    of = " a class" if report.classes else ""
    canvas.text(left + width / 2, top + height + 40, f"labelled pixels{of}", align="middle")
    for i, name in reversed(list(enumerate(stats))):
        mean, spread = stats[name].T
        ink, at = _ink(report, name), x + 4 * (i - (len(stats) - 1) / 2)
        canvas.line(list(zip(at, y(mean), strict=True)), ink, 3 if name != report.name else 5)
        for place, value, least, most in zip(
            at, y(mean), y(mean - spread), y(mean + spread), strict=True
        ):
            canvas.line([(place, least), (place, most)], ink, 2, 0.6)
            canvas.line([(place, value)], ink, 10)
    for i, name in enumerate(
        sorted(stats, key=lambda n: np.nan_to_num(-stats[n][-1, 0], nan=np.inf))
    ):
        at = top + 6 + i * 28
        canvas.line(
            [(left + width + 24, at + 5), (left + width + 50, at + 5)], _ink(report, name), 5
        )
        canvas.text(left + width + 62, at, named[name])
    return canvas.image


def _strips(report: ProbeResults) -> np.ndarray:
    """A row for each kind of features: a dot for every seed and a line at their mean."""
    metric, (count,) = report.metrics[0], report.counts
    names = list(report.scores)
    values = {n: np.array(report.scores[n].values[count][metric]) for n in names}
    told = {n: with_spread(*report.mean(n, count, metric)) for n in names}
    left, top, width = 30 + _widest(names), 100, 620
    canvas = Canvas(top + 56 * len(names) + 50, left + width + 30 + _widest(told.values()))
    of = " a class" if report.classes else ""
    labels = "all labels of the half" if count == ALL else f"{count} labelled pixels{of}"
    canvas.text(20, 18, f"{report.name}: {metric.replace('_', ' ')}, {labels}", size=TITLE)
    canvas.text(20, 46, f"{_subtitle(report)}, a dot: a seed, a line: the mean", ink=GREY)
    joined = np.concatenate(list(values.values()))
    joined = joined[np.isfinite(joined)] if np.isfinite(joined).any() else np.zeros(1)
    low, high, step = _range(float(joined.min()), float(joined.max()))

    def x(value: float) -> float:
        return left + 20 + (width - 40) * (value - low) / (high - low)

    bottom = top + 56 * len(names)
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        canvas.line([(x(value), top - 8), (x(value), bottom)], FAINT, 1)
        canvas.text(x(value), bottom + 12, _number(value, step), align="middle")
    for i, name in enumerate(names):
        ink, at = _ink(report, name), top + 56 * i + 20
        canvas.text(left - 10, at - 5, name, align="right")
        for k, value in enumerate(values[name]):
            canvas.line([(x(value), at - 9 + 18 * ((k * 7) % 20) / 19)], ink, 9, 0.55)
        mean, _ = report.mean(name, count, metric)
        canvas.line([(x(mean), at - 18), (x(mean), at + 18)], ink, 4)
        canvas.text(left + width + 10, at - 5, told[name])
    return canvas.image


def confusion(report: ProbeResults) -> np.ndarray:
    """Shares of a class's pixels that were given each class, with the most labels."""
    matrix = report.scores[report.name].confusion
    assert matrix is not None
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [f"{i + 1} {c.name}" for i, c in enumerate(report.classes)]
    cell, k = 64, len(names)
    left, top = 40 + _widest(names), 124
    title = f"{report.name}: confusion"
    width = max(left + cell * k + 30, 40 + columns(title, TITLE), 40 + _widest([_subtitle(report)]))
    canvas = Canvas(top + cell * k + 30, width)
    canvas.text(20, 18, title, size=TITLE)
    canvas.text(20, 46, _subtitle(report), ink=GREY)
    canvas.text(20, 70, "rows: labels, columns: map, %", ink=GREY)
    for i, name in enumerate(names):
        canvas.text(left - 12, top + cell * (i + 0.5) - 6, name, align="right")
        canvas.text(left + cell * (i + 0.5) - 1, top - 20, str(i + 1), align="middle")
        for j in range(k):
            x, y = left + cell * j, top + cell * i
            right = (46, 125, 79) if i == j else (196, 74, 60)
            canvas.fill(x, y, x + cell - 2, y + cell - 2, (240, 240, 237))
            canvas.fill(x, y, x + cell - 2, y + cell - 2, right, float(shares[i, j]))
            ink = PAPER if shares[i, j] > 0.6 else (30, 30, 30)
            text = f"{100 * shares[i, j]:.0f}"
            canvas.text(x + cell / 2 - 1, y + cell / 2 - 6, text, ink=ink, align="middle")
    return canvas.image


def maps(report: ProbeResults, i: int) -> np.ndarray:
    """Labels and maps of the i-th image side by side, over a legend."""
    stride = math.ceil(max(report.labels[i].shape) / _LARGEST)
    panels = [report.labels[i], *(found[i] for found in report.maps.values())]
    images = [_coloured(report, panel[::stride, ::stride]) for panel in panels]
    metric, most = report.metrics[0], report.counts[-1]
    captions = [f"{report.images[i].name} | labels"]
    for name in report.maps:
        value = with_spread(*report.mean(name, most, metric), 2)
        captions.append(f"{name} | {metric.replace('_', ' ')} {value}")
    zoom = max(1, round(_PANEL / images[0].shape[1]))
    row = side_by_side(images, captions, upscale=zoom)
    return np.concatenate([row, _legend(report, row.shape[1])])


def _coloured(report: ProbeResults, values: np.ndarray) -> np.ndarray:
    """(h, w, 4) uint8."""
    out = np.zeros((*values.shape, 4), np.uint8)
    if report.task == "regression":
        low, high = _stretch(report)
        known = np.isfinite(values)
        out[known, :3] = ramp((values[known] - low) / max(high - low, 1e-9))
    else:
        known = values != report.nodata
        out[known, :3] = _OTHERS
        for k, c in enumerate(report.classes):
            out[values == c.code, :3] = colour(k)
    out[known, 3] = 255
    return out


def _stretch(report: ProbeResults) -> tuple[float, float]:
    """What is darkest and brightest: 2 and 98 % of the labels."""
    known = np.concatenate([v[np.isfinite(v)] for v in report.labels])
    low, high = np.percentile(known, (2, 98))
    return float(low), float(high)


def _legend(report: ProbeResults, width: int) -> np.ndarray:
    """Colours and what they mean, in as many lines as are needed."""
    if report.task == "regression":
        low, high = _stretch(report)
        canvas = Canvas(54, width)
        long = min(300, width - 12)
        canvas.image[6:22, 6 : 6 + long] = ramp(np.linspace(0, 1, long))[None]
        step = 10.0 ** (math.floor(math.log10(max(high - low, 1e-9))) - 1)
        canvas.text(6, 30, _number(low, step))
        canvas.text(6 + long, 30, _number(high, step), align="right")
        return canvas.image
    entries = [(c.name, colour(k)) for k, c in enumerate(report.classes)]
    if report.left_out:
        entries.append(("labels in one group alone: not judged", _OTHERS))
    return legend(entries, width)


def scatter(report: ProbeResults) -> np.ndarray:
    """How many pixels have each label and each mapped value, by colour; on the line it is right."""
    truth = np.concatenate([v.ravel() for v in report.labels])
    found = np.concatenate([v.ravel() for v in report.maps[report.name]])
    known = np.isfinite(truth) & np.isfinite(found)
    truth, found = truth[known], found[known]
    low, high, step = _range(float(truth.min()), float(truth.max()))
    side, left, top = 420, 110, 96
    canvas = Canvas(top + side + 70, max(left + side + 50, 40 + _widest([_subtitle(report)])))
    canvas.text(20, 18, f"{report.name}: {len(truth):,} pixels", size=TITLE)
    canvas.text(20, 46, _subtitle(report), ink=GREY)
    bins = 70
    edges = np.linspace(low, high, bins + 1)
    counts, _, _ = np.histogram2d(np.clip(found, low, high), truth, bins=[edges, edges])
    share = np.log1p(counts) / max(np.log1p(counts).max(), 1e-9)
    cells = np.where((counts > 0)[..., None], ramp(0.95 - 0.95 * share), np.array(PAPER))
    cells = cells[::-1].repeat(side // bins, 0).repeat(side // bins, 1)
    canvas.image[top : top + side, left : left + side] = cells
    canvas.line([(left, top + side), (left + side, top)], GREY, 2)
    for i in range(round((high - low) / step) + 1):
        at = side * (i * step) / (high - low)
        text = _number(low + i * step, step)
        canvas.text(left + at, top + side + 12, text, align="middle")
        canvas.text(left - 10, top + side - at - 5, text, align="right")
    canvas.text(left + side / 2, top + side + 40, "label", align="middle")
    canvas.text(20, top - 22, "map")
    return canvas.image
