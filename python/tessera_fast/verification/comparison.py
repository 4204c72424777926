"""`tf.verify`: are two outputs the same embeddings?"""

from __future__ import annotations

import os
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..progress import Progress
from ..store.metadata import UNREADABLE
from ..store.reader import Embeddings, open_embeddings
from ..suggest import checks_keywords
from .causes import likely_causes
from .compare import Reader, Streamed, stream
from .figures import Figures
from .gates import Gate, choose
from .judge import Limit, judge, passes
from .maps import Maps
from .pairs import Matching, Pair, match

KEEP = 20  # pixels that a comparison names


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
    layers: dict[str, Figures]
    pixels: tuple[dict[str, Any], ...]  # the worst first
    lonely: tuple[dict[str, Any], ...]  # the first pixels with data on one side alone
    matching: Matching
    maps: tuple[Path, ...]  # the files written

    @property
    def same(self) -> bool:
        """Whether the two are equal, or equal within the gate."""
        return not self.verdict.startswith("different")

    def __str__(self) -> str:
        from .report import text

        return text(self)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, for a file."""
        from .report import plain

        return plain(self)


@checks_keywords()
def verify(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    gate: str = "auto",
    maps: str | os.PathLike[str] | None = None,
    ignore_provenance: bool = False,
    ignore_missing: bool = False,
    progress: Progress = None,
) -> Comparison:
    """Compare the embeddings of two outputs, pixel by pixel, where both have them.

    ``a``, ``b``: a Zarr store, ours or geotessera's, or a folder of .npy files. Two folders are
    matched by the names of their tiles, everything else by zone, year and coordinates. ``gate``:
    "exact", "fp32", "bf16", "int8" or "fp8", or "auto": the laxer of what the two record. Counts of
    observations have to agree where both sides have them: other counts are other inputs. ``maps``:
    a folder for pictures of where they differ. Outputs of other models, weights or periods are
    different whatever their numbers, unless ``ignore_provenance``; so are outputs of which one
    lacks pixels that the other has, unless ``ignore_missing``. Reads by windows, in bounded
    memory. Raises StoreError if an output cannot be read or nothing is common to both, InputError
    for an unknown gate.
    """
    first, second = _opened(a), _opened(b)
    recorded = first.provenance, second.provenance
    chosen, reason = choose(gate, (recorded[0].get("precision"), recorded[1].get("precision")))
    matching = match(first, second)
    pairs = matching.pairs
    with nullcontext() if maps is None else closing(Maps(Path(maps))) as sink:
        found = stream(first, second, pairs, chosen, keep=KEEP, sink=sink, progress=progress)

    overall = found.overall
    floats = not any(p.a.quantized or p.b.quantized for p in pairs)
    limits = judge(overall, chosen, floats, ignore_missing=ignore_missing)
    conflicts = [] if ignore_provenance else _conflicts(*recorded)
    shifted = any(p.lattice_shift != (0.0, 0.0) for p in pairs)
    complete = ignore_missing or not overall.only_a + overall.only_b
    if conflicts:
        verdict = f"different: other {' and '.join(conflicts)}"
    elif shifted or not passes(limits):
        verdict = "different"
    elif overall.identical == overall.compared and complete:
        verdict = "equal"
    else:
        verdict = f"equal within the {chosen.name} gate"
    causes: list[str] = []
    if verdict == "different":
        readers = Reader(first), Reader(second)
        causes = likely_causes(readers, pairs, found, chosen)
    return Comparison(
        first, second, verdict, chosen, reason, tuple(limits), tuple(_warnings(*recorded)),
        tuple(causes), overall,
        {p.name: f for p, f in zip(pairs, found.layers, strict=True)},
        tuple(_named(pairs, found)), tuple(_alone(pairs, found)), matching,
        tuple(sink.files) if sink else (),
    )  # fmt: skip


def _opened(path: str | os.PathLike[str]) -> Embeddings:
    try:
        return open_embeddings(path)
    except StoreError:
        raise
    except UNREADABLE as error:
        raise StoreError(
            f"{path}: cannot be opened ({type(error).__name__}: {error}); `tessera-fast verify "
            f"{path}` names what is damaged"
        ) from error


def _conflicts(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Which of model, weights and period both sides record, and differ."""
    if not a or not b:
        return []
    names = {"model": "model", "weights_sha256": "weights", "period": "period"}
    return [
        f"{word} ({str(a.get(key))[:16]} and {str(b.get(key))[:16]})"
        for key, word in names.items()
        if a.get(key) != b.get(key)
    ]


def _warnings(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    out = []
    for side, recorded in (("A", a), ("B", b)):
        if not recorded:
            out.append(f"{side} records no model, weights or precision: nothing is known of it")
    for key in ("seed", "repeats"):
        if a and b and a.get(key) != b.get(key):
            out.append(f"{key}: A has {a.get(key)}, B has {b.get(key)}: other random draws")
    return out


def _named(pairs: tuple[Pair, ...], found: Streamed) -> list[dict[str, Any]]:
    return [
        {
            **place(pairs[p.pair], p.row, p.column),
            "beyond_gate": p.beyond,
            "deviation": p.deviation,
            "cosine": 1 - p.distance,
            "code_step": p.step,
        }
        for p in found.worst
    ]


def _alone(pairs: tuple[Pair, ...], found: Streamed) -> list[dict[str, Any]]:
    return [
        {**place(pairs[number], row, column), "only_in": side.upper()}
        for side, number, row, column in found.lonely
    ]


def place(pair: Pair, row: int, column: int) -> dict[str, Any]:
    """A pixel of the overlap: layer, row and column of A, and, where known, coordinates."""
    out: dict[str, Any] = {
        "layer": pair.name,
        "row": row + pair.a_start[0],
        "column": column + pair.a_start[1],
    }
    if pair.transform is None or pair.crs is None:
        return out
    a, b, c, d, e, f = pair.transform
    x = c + a * (column + 0.5) + b * (row + 0.5)
    y = f + d * (column + 0.5) + e * (row + 0.5)
    out |= {"x": x, "y": y, "crs": pair.crs}
    try:
        from pyproj import Transformer
    except ImportError:  # installed or not, x and y have to do
        return out
    lon, lat = Transformer.from_crs(pair.crs, "EPSG:4326", always_xy=True).transform(x, y)
    return out | {"lon": lon, "lat": lat}
