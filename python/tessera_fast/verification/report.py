"""A comparison and a check as text for people and as plain values for a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..machine import notebook
from ..store.reader import Embeddings
from .alone import Alone
from .figures import Figures
from .gates import Gate
from .judge import Limit, cosine
from .layout import table, wrapped
from .pairs import Matching

SHOWN = 10  # pixels, and names on one side alone


@dataclass(frozen=True)
class Comparison:
    """What `tf.verify` found; ``print`` it for the report.

    ``verdict`` is "equal" (every bit), "equal within the NAME gate" or "different", ``same`` is
    False for the last alone. ``layers`` has the figures of each zone and year, or tile.
    """

    a: Embeddings
    b: Embeddings
    verdict: str
    gate: Gate
    gate_reason: str  # why this gate
    limits: tuple[Limit, ...]  # of the gate, with what was found
    warnings: tuple[str, ...]  # about the provenances
    causes: tuple[str, ...]  # what a difference is consistent with
    overall: Figures
    layers: dict[str, Figures]  # also of what is on one side alone, with 0 pixels compared
    pixels: tuple[dict[str, Any], ...]  # the worst first
    lonely: tuple[dict[str, Any], ...]  # the first pixels with data on one side alone
    matching: Matching
    alone: tuple[Alone, ...]  # layers, or parts of them, that only one side holds
    arrays_only_a: tuple[str, ...]  # "utm31/embeddings_d16", where both are stores with a record
    arrays_only_b: tuple[str, ...]
    maps: tuple[Path, ...]  # the files written

    @property
    def same(self) -> bool:
        """Whether the two are equal, or equal within the gate."""
        return not self.verdict.startswith("different")

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, and the limits that it comes from."""
        rows = [(x.what, x.limit, x.found, "" if x.kept else "NOT KEPT") for x in self.limits]
        head = (f"gate {self.gate.name}", "limit", "found", "")
        below = [*self.warnings, *self.causes, f"A: {self.a.path}", f"B: {self.b.path}"]
        return notebook.table(self.verdict, rows, head, below)

    def text(self, width: int | None = None) -> str:
        """The report, in lines of ``width`` columns if given."""
        return text(self, width)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, for a file."""
        return plain(self)


def text(c: Comparison, width: int | None = None) -> str:
    """The report that `tessera-fast verify A B` prints, in lines of ``width`` columns if given."""
    return wrapped(_lines(c, width), width)


def _lines(c: Comparison, width: int | None) -> Iterator[str]:
    yield f"A: {_described(c.a)}"
    yield f"B: {_described(c.b)}"
    yield c.verdict
    for warning in c.warnings:
        yield f"  {warning}"
    for cause in c.causes:
        yield f"  {cause}"
    if len({layer.quantized for p in c.matching.pairs for layer in (p.a, p.b)}) == 2:
        yield "  one side is float32: it was quantised, and compared as int8"
    yield ""
    if c.verdict != "equal":
        gate = [(f"gate {c.gate.name}", "limit", "found", "")]
        gate += [(x.what, x.limit, x.found, "" if x.kept else "NOT KEPT") for x in c.limits]
        yield from table(gate, width)
        yield f"  ({c.gate_reason})"
        yield ""
    layers = dict(c.layers)
    if len(layers) > 1:
        layers["all"] = c.overall
    yield from table([_CODES, *(_codes(name, f) for name, f in layers.items())], width)
    if c.verdict != "equal":
        yield ""
        compared = {name: f for name, f in layers.items() if f.compared}
        yield from table([_VALUES, *(_values(name, f) for name, f in compared.items())], width)
    if c.overall.masked:
        yield f"  {c.overall.masked:,} pixels that one side marks as water were left out"
    for side, arrays in (("a", c.arrays_only_a), ("b", c.arrays_only_b)):
        names = [str(x) for x in c.alone if x.side == side]
        if names or arrays:
            yield f"  only in {side.upper()}: {_some([*names, *arrays])}"
    for reason in c.matching.unplaced:
        yield f"  not compared: {reason}"
    if not c.same:
        yield from _pixels(c)
    for file in c.maps:
        yield f"map: {file}"


def _described(output: Embeddings) -> str:
    p = output.provenance
    if not p:
        return f"{output.path} (records no model)"
    engine = f"{p['backend']} {p['isa']}" if p.get("isa") else p.get("backend") or "?"
    trained = "" if p.get("trained", True) else " (untrained)"
    return (
        f"{output.path}: {p.get('model')}{trained}, {p.get('precision')}, {engine}, "
        f"weights {str(p.get('weights_sha256'))[:12]}"
    )


_CODES = (
    "pixels and codes",
    "compared",
    "identical",
    "beyond gate",
    "only A",
    "only B",
    "same codes",
    "within 1",
    "largest step",
)
_VALUES = (
    "values",
    "max |A-B|",
    "cosine mean",
    "1 % below",
    "worst",
    "scale B/A",
    "worst",
    "norm B/A",
    "worst",
)


def _codes(name: str, f: Figures) -> tuple[str, ...]:
    shares = [_percent(f.same_codes, f.codes), _percent(f.close_codes, f.codes)]
    counts = [f.compared, f.identical, f.off, f.only_a, f.only_b]
    return (name, *(f"{n:,}" for n in counts), *shares, f"{int(f.step.value)}")


def _values(name: str, f: Figures) -> tuple[str, ...]:
    return (
        name,
        f"{f.deviation.value:.2g}",
        cosine(f.mean_cosine),
        cosine(1 - f.distances.quantile(0.99)),
        cosine(f.min_cosine),
        f"{1 + f.scales.quantile(0.5):.6g}",
        f"{100 * f.scale.value:.2g} %",
        f"{1 + f.norms.quantile(0.5):.6g}",
        f"{100 * f.norm.value:.2g} %",
    )


def _percent(part: int, whole: int) -> str:
    """Rounded, but 100 only for all of it."""
    if not whole:
        return ""
    return "100 %" if part == whole else f"{min(100 * part / whole, 99.99):.2f} %"


def _pixels(c: Comparison) -> Iterator[str]:
    if c.overall.off:
        yield ""
        yield f"{c.overall.off:,} pixels beyond the gate by themselves; the worst:"
    elif c.pixels:
        yield ""
        yield "no pixel is beyond the gate by itself; the worst:"
    for p in c.pixels[:SHOWN]:
        yield (
            f"  {_position(p)}: |A - B| {p['deviation']:.3g}, code step {p['code_step']}, cosine "
            f"{cosine(p['cosine'])}"
        )
    if c.lonely:
        yield ""
        yield "pixels with data on one side alone; the first:"
    for p in c.lonely[:SHOWN]:
        yield f"  {_position(p)}: only in {p['only_in']}"


def _position(p: dict[str, Any]) -> str:
    out = f"{p['layer']} row {p['row']} column {p['column']}"
    if "x" in p:
        out += f", x {p['x']:.1f} y {p['y']:.1f} ({p['crs']}"
        out += f", {p['lon']:.6f} E {p['lat']:.6f} N)" if "lon" in p else ")"
    return out


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def plain(c: Comparison) -> dict[str, Any]:
    """A comparison as JSON: every number of the report, and its pixels."""
    return {
        "a": {"path": str(c.a.path), "provenance": c.a.provenance},
        "b": {"path": str(c.b.path), "provenance": c.b.provenance},
        "verdict": c.verdict,
        "same": c.same,
        "gate": c.gate.name,
        "gate_reason": c.gate_reason,
        "limits": [x._asdict() for x in c.limits],
        "warnings": list(c.warnings),
        "causes": list(c.causes),
        "overall": c.overall.to_json(),
        "layers": {name: f.to_json() for name, f in c.layers.items()},
        "worst_pixels": list(c.pixels),
        "pixels_on_one_side": list(c.lonely),
        "only_in_a": list(c.matching.only_a),
        "only_in_b": list(c.matching.only_b),
        "alone": [
            {"only_in": x.side.upper(), "layer": x.layer, "whole": x.whole, "pixels": x.pixels}
            for x in c.alone
        ],
        "arrays_only_in_a": list(c.arrays_only_a),
        "arrays_only_in_b": list(c.arrays_only_b),
        "not_compared": list(c.matching.unplaced),
        "maps": [str(file) for file in c.maps],
    }
