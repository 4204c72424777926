"""Figures held against a gate: each limit with what was found."""

from __future__ import annotations

import math
from typing import NamedTuple

from .figures import Figures
from .gates import ENOUGH_CODES, Gate


class Limit(NamedTuple):
    """One limit of a gate."""

    what: str
    limit: str
    found: str
    kept: bool


def passes(limits: list[Limit]) -> bool:
    return all(limit.kept for limit in limits)


def judge(f: Figures, gate: Gate, floats: bool, *, ignore_missing: bool = False) -> list[Limit]:
    """Every limit that applies. ``floats``: both sides are float32. Nothing compared: not kept."""
    out = [Limit("pixels compared", ">= 1", f"{f.compared:,}", f.compared > 0)]
    if not ignore_missing:
        alone = f.only_a + f.only_b
        out.append(Limit("pixels on one side alone", "0", f"{alone:,}", alone == 0))
    if f.counted:  # what was observed does not depend on the arithmetic
        other = f.other_counts
        out.append(Limit("pixels of other observations", "0", f"{other:,}", other == 0))
    if other := f.other_prefixes:
        out.append(Limit("pixels of other prefixes", "0", f"{other:,}", False))
    if gate.name == "exact":
        same = f.identical == f.compared
        out.append(Limit("identical pixels", "all", f"{f.identical:,} of {f.compared:,}", same))
        return out
    for what, least, count in (
        ("codes identical", gate.same_codes, f.same_codes),
        ("codes within 1", gate.close_codes, f.close_codes),
    ):
        if least:
            few = f.codes * (1 - least) < ENOUGH_CODES
            kept = few or count >= least * f.codes
            found = _share(count, f.codes) + (" (too few to judge)" if few else "")
            out.append(Limit(what, f">= {float(100 * least):g} %", found, kept))
    if gate.max_step < 254:
        step = int(f.step.value)
        out.append(
            Limit("largest step of a code", f"<= {gate.max_step}", f"{step}", step <= gate.max_step)
        )
    scale, worst = f.scale.value, f.deviation.value
    if gate.max_scale < math.inf:
        limit, found = f"<= {100 * gate.max_scale:g} %", f"{100 * scale:.3g} %"
        out.append(Limit("scale of any pixel", limit, found, scale <= gate.max_scale))
    if floats and gate.max_abs < math.inf:
        limit, found = f"<= {gate.max_abs:g}", f"{worst:.3g}"
        out.append(Limit("|A - B| of any value", limit, found, worst <= gate.max_abs))
    for what, bound, value in (
        ("cosine, mean", gate.mean_cosine, f.mean_cosine),
        ("cosine, worst pixel", gate.min_cosine, f.min_cosine),
    ):
        if bound > -1:
            out.append(Limit(what, f">= {bound:g}", cosine(value), 1 - value <= 1 - bound))
    return out


def cosine(value: float) -> str:
    """With the digits that tell it from 1."""
    if value != value:
        return "nothing compared"
    distance = 1 - value
    return "1" if distance == 0 else f"1 - {distance:.0e}" if distance < 1e-6 else f"{value:.7f}"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.4f} %" if total else "none"
