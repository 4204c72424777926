"""Every tolerance of tests/ and bench/, with its reason: no other file may write one.

Gates come from docs/correctness.md: when two runs count as the same embedding.
"""

from fractions import Fraction

import numpy as np

# fp32 engine against the official outputs. The official float32 and float64 runs agree to 3e-6;
# ours reaches 9e-6 at the widest model.
GOLDEN_ATOL = 2e-5
# int8 codes identical, same precision, another back end; the others off by one.
SAME_CODES = Fraction(995, 1000)
MAX_CODE_STEP = 1
MAX_SCALE_RATIO = 1e-3
MIN_COSINE = 0.99999
# One op in float32 against float64 naive arithmetic: error relative to the largest output. The
# longest sums here have some 2,000 terms, whose rounding adds up to about 1e-6.
OP_RTOL = 4e-6


def assert_golden(got: np.ndarray, expected: np.ndarray) -> None:
    """Float embeddings (..., E), every pixel observed: finite and within GOLDEN_ATOL."""
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    worst = float(np.abs(got.astype(np.float64) - expected).max())
    assert worst <= GOLDEN_ATOL, f"max abs error {worst:.2e} > {GOLDEN_ATOL:.0e}"


def assert_same_codes(got: np.ndarray, expected: np.ndarray) -> None:
    """int8 codes: identical for SAME_CODES of them, no other off by more than one."""
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.int8
    step = np.abs(got.astype(int) - expected.astype(int))
    assert step.max() <= MAX_CODE_STEP
    same = Fraction(int((step == 0).sum()), step.size)
    assert same >= SAME_CODES, f"only {float(same):.2%} of the codes are identical"


def assert_op(got: np.ndarray, expected: np.ndarray, terms: float | None = None) -> None:
    """One float32 op against float64: error relative to the largest expected value.

    ``terms``: what the error is relative to instead, where the terms of a sum may cancel: the
    largest sum of their absolute values.
    """
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    scale = max(terms or float(np.abs(expected).max()), np.finfo(np.float32).tiny)
    worst = float(np.abs(got.astype(np.float64) - expected).max()) / scale
    assert worst <= OP_RTOL, f"relative error {worst:.2e} > {OP_RTOL:.0e}"
