"""How two rasters of embeddings differ: by pixel, and summed up without keeping the pixels.

P is a number of pixels, E the embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .gates import Gate


class Pixels(NamedTuple):
    """Pixels of one side. ``values`` only where both sides are float32."""

    codes: np.ndarray  # (P, E) int8; of float32 values: what they would be quantised to
    scales: np.ndarray  # (P,) float32
    values: np.ndarray | None  # (P, E) float32

    def floats(self) -> np.ndarray:
        """(P, E) float32, as a reader gets them."""
        return self.codes * self.scales[:, None] if self.values is None else self.values

    def picked(self, which: np.ndarray) -> Pixels:
        values = None if self.values is None else self.values[which]
        return Pixels(self.codes[which], self.scales[which], values)


@dataclass
class Differences:
    """Of P pixels that both sides hold; 0 everywhere in a pixel with the same bits."""

    step: np.ndarray  # largest difference of a code
    deviation: np.ndarray  # largest |a - b| of a value
    distance: np.ndarray  # 1 - cosine
    scale: np.ndarray  # ratio of the scales, b / a, minus 1
    norm: np.ndarray  # ratio of the norms, b / a, minus 1
    changed: np.ndarray  # bool: any bit differs
    codes_within: tuple[int, int, int]  # all codes, identical ones, those within one

    def beyond(self, gate: Gate, floats: bool) -> np.ndarray:
        """(P,) bool: pixels that break a limit of the gate by themselves."""
        if gate.name == "exact":
            return self.changed
        off = (self.step > gate.max_step) | (self.distance > 1 - gate.min_cosine)
        off |= np.abs(self.scale) > gate.max_scale
        return off | (self.deviation > gate.max_abs) if floats else off


def measure(a: Pixels, b: Pixels) -> Differences:
    """Compare P pixels that both sides hold."""
    steps = np.abs(a.codes.astype(np.int16) - b.codes)
    step = steps.max(axis=1, initial=0)
    within = (steps.size, int((steps == 0).sum()), int((steps <= 1).sum()))
    changed = (step > 0) | (a.scales != b.scales)
    if a.values is not None and b.values is not None:
        changed |= (a.values.view(np.uint32) != b.values.view(np.uint32)).any(axis=1)
    zeros = np.zeros((4, len(step)))
    out = Differences(step, zeros[0], zeros[1], zeros[2], zeros[3], changed, within)
    if changed.any():
        a, b = a.picked(changed), b.picked(changed)
        va, vb = a.floats().astype(np.float64), b.floats().astype(np.float64)
        na, nb = (np.sqrt((v * v).sum(axis=1)) for v in (va, vb))
        out.deviation[changed] = np.abs(va - vb).max(axis=1)
        out.distance[changed] = _distance(va, vb, na, nb)
        out.scale[changed] = _ratio(a.scales.astype(np.float64), b.scales.astype(np.float64))
        out.norm[changed] = _ratio(na, nb)
    return out


def _distance(va: np.ndarray, vb: np.ndarray, na: np.ndarray, nb: np.ndarray) -> np.ndarray:
    """1 - cosine, exact near 0: half the squared distance of the unit vectors."""
    unit = va / np.where(na > 0, na, 1)[:, None] - vb / np.where(nb > 0, nb, 1)[:, None]
    distance = 0.5 * (unit * unit).sum(axis=1)
    # A zero vector has no direction: equal to another one, orthogonal to anything else.
    return np.where((na > 0) & (nb > 0), distance, (na > 0) != (nb > 0))


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    safe = np.where(a > 0, a, 1)
    return np.where(a > 0, b / safe - 1, np.where(b > 0, math.inf, 0.0))


class Histogram:
    """Quantiles of numbers near 0 of either sign, to 2.5 % of a value, in bounded memory."""

    _LOW, _DECADES, _PER_DECADE = -16, 18, 50  # smaller ones count as 0

    def __init__(self) -> None:
        self._zero = self._DECADES * self._PER_DECADE  # the bin of 0
        self._bins = np.zeros(2 * self._zero + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        size = np.abs(values).clip(10.0**self._LOW, 10.0 ** (self._LOW + self._DECADES))
        place = np.ceil((np.log10(size) - self._LOW) * self._PER_DECADE).astype(np.int64)
        place = np.sign(values).astype(np.int64) * place.clip(0, self._zero)
        self._bins += np.bincount(self._zero + place, minlength=self._bins.size)

    def merge(self, other: Histogram) -> None:
        self._bins += other._bins

    def quantile(self, share: float) -> float:
        """The value that ``share`` of the numbers do not exceed; NaN without any."""
        total = int(self._bins.sum())
        if not total:
            return math.nan
        rank = max(1, math.ceil(share * total))
        place = int(np.searchsorted(np.cumsum(self._bins), rank)) - self._zero
        if place == 0:
            return 0.0
        middle = self._LOW + (abs(place) - 0.5) / self._PER_DECADE
        return math.copysign(10.0**middle, place)


@dataclass
class Extreme:
    """The largest of the values given, and the pixel it is at."""

    value: float = 0.0
    at: tuple[int, ...] | None = None  # number of the pair, row and column of the overlap

    def add(self, values: np.ndarray, at: np.ndarray) -> None:
        """``values`` (P,) >= 0 of the pixels ``at`` (P, 3)."""
        if values.size and (worst := float(values.max())) > self.value:
            self.value, self.at = worst, tuple(at[int(values.argmax())].tolist())

    def merge(self, other: Extreme) -> None:
        if other.value > self.value:
            self.value, self.at = other.value, other.at


@dataclass
class Figures:
    """Sums over the pixels of a layer, or of all layers."""

    compared: int = 0
    identical: int = 0  # pixels with the same bits
    off: int = 0  # pixels that break a limit of the gate by themselves
    only_a: int = 0  # pixels with data on one side alone
    only_b: int = 0
    masked: int = 0  # data on one side, marked as water (scale NaN) on the other
    codes: int = 0
    same_codes: int = 0
    close_codes: int = 0
    counted: int = 0  # pixels whose observation counts are known on both sides
    other_counts: int = 0  # of these, where they differ
    swapped_counts: int = 0  # of these, where the two orbits' counts are exchanged
    other_prefixes: int = 0  # pixels whose prefix arrays differ otherwise than the embeddings
    sum_distance: float = 0.0
    step: Extreme = field(default_factory=Extreme)
    deviation: Extreme = field(default_factory=Extreme)
    distance: Extreme = field(default_factory=Extreme)
    scale: Extreme = field(default_factory=Extreme)
    norm: Extreme = field(default_factory=Extreme)
    distances: Histogram = field(default_factory=Histogram)
    scales: Histogram = field(default_factory=Histogram)
    norms: Histogram = field(default_factory=Histogram)

    def add(self, found: Differences, off: np.ndarray, at: np.ndarray) -> None:
        """``at``: (P, 3) number of the pair, row and column of each pixel."""
        self.compared += len(off)
        self.identical += int((~found.changed).sum())
        self.off += int(off.sum())
        for name, count in zip(
            ("codes", "same_codes", "close_codes"), found.codes_within, strict=True
        ):
            setattr(self, name, getattr(self, name) + count)
        self.sum_distance += float(found.distance.sum())
        for name in ("step", "deviation", "distance", "scale", "norm"):
            getattr(self, name).add(np.abs(getattr(found, name)), at)
        for name in ("distance", "scale", "norm"):
            getattr(self, f"{name}s").add(getattr(found, name))

    def merge(self, other: Figures) -> None:
        for name, value in vars(other).items():
            if isinstance(value, (Extreme, Histogram)):
                getattr(self, name).merge(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    @property
    def mean_cosine(self) -> float:
        return 1 - self.sum_distance / self.compared if self.compared else math.nan

    @property
    def min_cosine(self) -> float:
        return 1 - self.distance.value if self.compared else math.nan

    def share(self, name: str) -> float:
        """Of all codes, those of ``same_codes`` or ``close_codes``."""
        return getattr(self, name) / self.codes if self.codes else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the pixels' places. Cosine percentiles: 0.1, 1, 5, 50 %."""
        plain = {k: v for k, v in vars(self).items() if isinstance(v, int)}
        return {
            **plain,
            "share_same_codes": _finite(self.share("same_codes")),
            "share_close_codes": _finite(self.share("close_codes")),
            "worst_code_step": int(self.step.value),
            "worst_deviation": _finite(self.deviation.value),
            "cosine_mean": _finite(self.mean_cosine),
            "cosine_min": _finite(self.min_cosine),
            "cosine_percentiles": {
                f"{100 * q:g}": _finite(1 - self.distances.quantile(1 - q))
                for q in (0.001, 0.01, 0.05, 0.5)
            },
            "scale_ratio_median": _finite(1 + self.scales.quantile(0.5)),
            "scale_ratio_worst_drift": _finite(self.scale.value),
            "norm_ratio_median": _finite(1 + self.norms.quantile(0.5)),
            "norm_ratio_worst_drift": _finite(self.norm.value),
        }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
