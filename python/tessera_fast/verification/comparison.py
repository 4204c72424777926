"""`tf.verify`: are two outputs the same embeddings, or is one sound?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Any, overload

from ..errors import InputError, StoreError
from ..files import refuse_filled
from ..progress import Progress
from ..store.reader import Embeddings, open_embeddings
from ..untrusted.damage import damaged
from ..untrusted.readers import local_path
from ..untrusted.suggest import checks_keywords
from .alone import Alone, alone, lone_arrays
from .causes import likely_causes
from .compare import Reader, Streamed, stream
from .figures import Figures
from .findings import Check
from .gates import choose
from .judge import Limit, judge, passes
from .maps import Maps
from .pairs import Matching, Pair, match
from .report import Comparison
from .selfcheck import check

KEEP = 20  # pixels that a comparison names


@overload
def verify(
    a: str | os.PathLike[str],
    b: None = None,
    *,
    progress: Progress = None,
) -> Check: ...


@overload
def verify(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    gate: str = "auto",
    maps: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    ignore_provenance: bool = False,
    ignore_missing: bool = False,
    progress: Progress = None,
) -> Comparison: ...


@checks_keywords()
def verify(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str] | None = None,
    *,
    gate: str = "auto",
    maps: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    ignore_provenance: bool = False,
    ignore_missing: bool = False,
    progress: Progress = None,
) -> Comparison | Check:
    """Compare the embeddings of two outputs, pixel by pixel, or check that one is sound.

    ``a``, ``b``: a Zarr store, ours or geotessera's, or a folder of .npy files. Without ``b``, all
    of ``a`` is read and checked by itself: the result is a `Check` with its ``problems``. Two
    folders are matched by the names of their tiles, everything else by zone, year and coordinates.
    ``gate``: "exact", "fp32", "bf16", "int8" or "fp8", or "auto": the laxer of what the two record.
    Counts of observations have to agree where both sides have them: other counts are other inputs.
    ``maps``: a folder for pictures of where they differ, new or empty unless ``overwrite``. Outputs
    of other models, weights or periods are different whatever their numbers, unless
    ``ignore_provenance``. What only one of the two holds is a difference (zones, years, tiles,
    pixels, and arrays of a store), unless ``ignore_missing``, which compares the common part. Reads
    by windows, in bounded memory. Raises StoreError if an output cannot be read or nothing is
    common to both, InputError for an unknown gate, or for an option that compares where there is no
    ``b``.
    """
    if b is None:
        asked = {
            "gate": gate != "auto",
            "maps": maps is not None,
            "ignore_provenance": ignore_provenance,
            "ignore_missing": ignore_missing,
        }
        if names := [name for name, given in asked.items() if given]:
            raise InputError(f"{names[0]}: compares two outputs, got one; give a second one, b")
        return check(a, progress=progress)
    folder = None if maps is None else local_path(maps, "maps")
    if folder is not None:
        refuse_filled(folder, overwrite)
    first, second = _opened(a), _opened(b)
    recorded = first.provenance, second.provenance
    chosen, reason = choose(gate, (recorded[0].get("precision"), recorded[1].get("precision")))
    matching = match(first, second)
    pairs = matching.pairs
    with nullcontext() if folder is None else closing(Maps(folder)) as sink:
        found = stream(first, second, pairs, chosen, keep=KEEP, sink=sink, progress=progress)
    readers = Reader(first), Reader(second)
    lone = alone(readers, (first, second), pairs, KEEP)
    arrays = lone_arrays(first, second)

    layers = {p.name: f for p, f in zip(pairs, found.layers, strict=True)}
    for part in lone:
        figures = layers.setdefault(part.layer, Figures())
        figures.only_a += part.pixels * (part.side == "a")
        figures.only_b += part.pixels * (part.side == "b")
    overall = Figures()
    for figures in layers.values():
        overall.merge(figures)
    floats = not any(p.a.quantized or p.b.quantized for p in pairs)
    limits = judge(overall, chosen, floats, ignore_missing=ignore_missing)
    if not ignore_missing:
        limits += _missing(lone, arrays, matching)
    conflicts = [] if ignore_provenance else _conflicts(*recorded)
    shifted = any(p.lattice_shift != (0.0, 0.0) for p in pairs)
    if conflicts:
        verdict = f"different: other {' and '.join(conflicts)}"
    elif shifted or not passes(limits):
        verdict = "different"
    elif overall.identical == overall.compared:
        verdict = "equal"
    else:
        verdict = f"equal within the {chosen.name} gate"
    causes: list[str] = []
    if verdict == "different":
        causes = likely_causes(readers, pairs, found, overall, chosen)
    return Comparison(
        first,
        second,
        verdict,
        chosen,
        reason,
        tuple(limits),
        tuple(_warnings(*recorded)),
        tuple(causes),
        overall,
        layers,
        tuple(_named(pairs, found)),
        tuple([*_lonely(pairs, found), *_beyond(lone, first, second)][:KEEP]),
        matching,
        tuple(lone),
        *arrays,
        tuple(sink.files) if sink else (),
    )


def _missing(
    lone: list[Alone], arrays: tuple[tuple[str, ...], tuple[str, ...]], matching: Matching
) -> list[Limit]:
    """What one side lacks beside pixels; only what was found."""
    whole = sum(part.whole and part.differs for part in lone)
    counts = {
        "zones and years, or tiles, on one side alone": whole,
        "arrays on one side alone": len(arrays[0]) + len(arrays[1]),
        "tiles whose place is not known": len(matching.unplaced),
    }
    return [Limit(what, "0", f"{count:,}", False) for what, count in counts.items() if count]


def _opened(path: str | os.PathLike[str]) -> Embeddings:
    try:
        return open_embeddings(path)
    except StoreError:
        raise
    except damaged() as error:
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


def _lonely(pairs: tuple[Pair, ...], found: Streamed) -> list[dict[str, Any]]:
    return [
        {**place(pairs[number], row, column), "only_in": side.upper()}
        for side, number, row, column in found.lonely
    ]


def _beyond(lone: list[Alone], a: Embeddings, b: Embeddings) -> list[dict[str, Any]]:
    """The same of pixels that no pair covers; rows and columns are those of their own layer."""
    out = []
    for part in lone:
        layer = (a if part.side == "a" else b).layer(part.layer)
        for row, column in part.first:
            at = {"layer": layer.name, "row": row, "column": column}
            at |= _located(layer.crs, layer.transform, row, column)
            out.append({**at, "only_in": part.side.upper()})
    return out


def place(pair: Pair, row: int, column: int) -> dict[str, Any]:
    """A pixel of the overlap: layer, row and column of A, and, where known, coordinates."""
    out = {"layer": pair.name, "row": row + pair.a_start[0], "column": column + pair.a_start[1]}
    return out | _located(pair.crs, pair.transform, row, column)


def _located(
    crs: str | None, transform: Sequence[float] | None, row: int, column: int
) -> dict[str, Any]:
    """Coordinates of a pixel's centre, in ``crs`` and in degrees; none where they are not known."""
    if transform is None or crs is None:
        return {}
    a, b, c, d, e, f = transform
    x = c + a * (column + 0.5) + b * (row + 0.5)
    y = f + d * (column + 0.5) + e * (row + 0.5)
    out = {"x": x, "y": y, "crs": crs}
    try:
        from pyproj import Transformer
    except ImportError:  # installed or not, x and y have to do
        return out
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return out | {"lon": lon, "lat": lat}
