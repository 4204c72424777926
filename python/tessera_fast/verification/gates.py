"""When two runs count as the same embedding: the limits of docs/correctness.md, as data.

A gate names the laxest arithmetic of the two runs. `tests/helpers/oracle.py` has the same limits
for the tests, and `tests/verification/test_verify_figures.py` holds the two together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from ..errors import InputError
from ..untrusted.suggest import one_of

ENOUGH_CODES = 10  # codes that a share would let be further off: fewer say nothing of a share


@dataclass(frozen=True)
class Gate:
    """Limits over all pixels compared, and for any one of them. The defaults limit nothing."""

    name: str
    same_codes: Fraction = Fraction(0)  # least share of identical int8 codes
    close_codes: Fraction = Fraction(0)  # least share of codes within one
    max_step: int = 254  # of any code
    max_scale: float = math.inf  # |ratio of the scales - 1| of any pixel
    max_abs: float = math.inf  # of any value, where both sides are float32
    mean_cosine: float = -1.0
    min_cosine: float = -1.0  # of any pixel


GATES = {
    gate.name: gate
    for gate in (
        # Bit for bit; no other limit applies.
        Gate("exact", max_step=0, max_scale=0.0, max_abs=0.0),
        # The official float32 and float64 runs agree to 3e-6, ours with them to 9e-6: sums in
        # another order. Such bits turn a code at a tie, by one.
        Gate(
            "fp32",
            same_codes=Fraction(995, 1000),
            max_step=1,
            max_scale=1e-3,
            max_abs=2e-5,
            min_cosine=0.99999,
        ),  # fp32, fp64
        # Products of 8 bits of mantissa; measured 0.99998 in the mean, 0.99997 at the worst pixel.
        Gate(
            "bf16",
            close_codes=Fraction(999, 1000),
            max_step=3,
            max_scale=0.016,
            mean_cosine=0.9999,
            min_cosine=0.9995,
        ),  # bf16, fp16, tf32
        # Measured 0.9996 to 0.9999 in the mean. The worst pixel measured is 0.9995; the limit is
        # ten times as far from 1, so that a few foreign pixels do not hide in the mean.
        Gate("int8", mean_cosine=0.999, min_cosine=0.995),
        # e4m3 has three bits of mantissa: 0.997 measured, and an experiment. Limits as for int8.
        Gate("fp8", mean_cosine=0.995, min_cosine=0.97),
    )
}
STRICTEST_FIRST = tuple(GATES)
_OF_PRECISION = {
    "fp64": "fp32",
    "fp32": "fp32",
    "tf32": "bf16",
    "fp16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
}


def choose(name: str, precisions: tuple[str | None, str | None]) -> tuple[Gate, str]:
    """The gate called ``name``, or for "auto" the laxer of two ``precisions``; and why.

    A precision that is not known (None: another program wrote it) counts as fp32.
    """
    if name != "auto":
        one_of("gate", name, ("auto", *GATES))
        return GATES[name], "as asked"
    for precision in precisions:
        if precision is not None and precision not in _OF_PRECISION:
            raise InputError(
                f"precision {precision!r} of an output has no gate; name one: {', '.join(GATES)}"
            )
    known = [_OF_PRECISION[p or "fp32"] for p in precisions]
    gate = GATES[max(known, key=STRICTEST_FIRST.index)]
    a, b = (p or "unknown, taken as fp32" for p in precisions)
    return gate, f"A and B are {a}" if a == b else f"A is {a}, B is {b}"
