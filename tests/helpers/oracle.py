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
# Reduced precisions against fp32, over all pixels compared: the gates of docs/correctness.md.
REDUCED_MIN_COSINE = 0.999  # mean; of int8 and whatever stock engine calls itself reduced
# e4m3 has three bits of mantissa, so products of it miss that gate with seeded weights (0.997 of
# v2-nano): an experiment, and held to what it reaches.
FP8_MIN_COSINE = 0.995
LEAST_COSINE = {"int8": REDUCED_MIN_COSINE, "fp8": FP8_MIN_COSINE}
BF16_MIN_COSINE, BF16_WORST_COSINE = 0.9999, 0.9995  # mean, and any pixel
BF16_CLOSE_CODES, BF16_MAX_CODE_STEP = Fraction(999, 1000), 3  # share within one step; any code
BF16_MAX_SCALE_RATIO = 0.016
ENOUGH_CODES = 10  # that the gate would let be further off: fewer say nothing of a share
# Half a unit in the last place of bfloat16: what a value rounded to it may be off.
BF16_RTOL = 2.0**-8
# Half a unit in the last place of what a kernel stores, by the dtype's name.
STORED_RTOL = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": BF16_RTOL}
# tf32 on a GPU: both factors of a product are rounded, or cut, to 10 bits.
TF32_RTOL = 2.0**-9
# A value next to a tie may get its neighbour's code, where it differs in its last float32 bits: one
# code of int8, or the largest step of e4m3, of a row's largest value.
CODE_STEP = {"int8": 1 / 127, "fp8": 32 / 448}
# How many hidden values of a feed-forward block, or of the embedding, may be rounded the other way
# at once and add up in one output.
HIDDEN_ROUNDINGS, EMBED_ROUNDINGS = 2, 4
# Half a code of int8, relative to the largest value of a row.
INT8_RTOL = 0.5 / 127
# One op in float32 against float64 naive arithmetic: error relative to the largest output. The
# longest sums here have some 2,000 terms, whose rounding adds up to about 1e-6.
OP_RTOL = 4e-6
# The kernels of the GPU, by element and relative to the largest output. Attention rounds the
# probabilities and the result; its block also q, k, v and o, roundings that do not all add up;
# pooling the result alone; a recurrence its state once a step, and a gate damps what was before.
# tf32 rounds the factors of every product.
ATTENTION_RTOL = {"fp32": OP_RTOL, "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2 * BF16_RTOL}
PEAKED = 4  # times that, where logits are in the hundreds
BLOCK_RTOL = {"fp32": 2 * OP_RTOL, "tf32": 2.0**-8, "fp16": 2.0**-9, "bf16": 4 * BF16_RTOL}
POOL_RTOL = {"fp32": OP_RTOL, "tf32": OP_RTOL, "fp16": 2.0**-11 + OP_RTOL, "bf16": BF16_RTOL}
GRU_RTOL = {"fp32": 4 * OP_RTOL, "tf32": 2.0**-8, "fp16": 2.0**-9, "bf16": 4 * BF16_RTOL}

# A launcher's whole result beside float64 arithmetic on its inputs, where bench/gpu_ops.py looks
# for the one that is wrong: as above, with room for the quantised operands of fp8 and int8, whose
# errors do not all add up. A wrong index, mask or barrier is off by far more.
DEVIATION = {"fp8": 4 * CODE_STEP["fp8"], "int8": 4 * CODE_STEP["int8"]}


def op_deviation(op: str, element: str) -> float:
    """What an op of the GPU may be off, relative to its largest output."""
    found = GRU_RTOL if op == "gru" else BLOCK_RTOL
    return PEAKED * found[element] if element in found else DEVIATION[element]


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


def cosines(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cosine of every row of two arrays (P, E), in float64."""
    a, b = got.astype(np.float64), expected.astype(np.float64)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _quantized(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = embeddings.astype(np.float64)
    scales = np.abs(wide).max(-1, keepdims=True) / 127
    return np.clip(np.rint(wide / scales), -127, 127), scales


def assert_reduced(got: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """Embeddings (P, E) in "bf16", "int8" or "fp8" against those in fp32, within the gate of the
    precision. A share of codes is judged where there are enough to have one."""
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    cosine = cosines(got, expected)
    if precision in LEAST_COSINE:
        assert cosine.mean() >= LEAST_COSINE[precision], f"mean cosine {cosine.mean():.6f}"
        return
    assert cosine.mean() >= BF16_MIN_COSINE, f"mean cosine {cosine.mean():.6f}"
    assert cosine.min() >= BF16_WORST_COSINE, f"worst cosine {cosine.min():.6f}"
    (codes, scales), (wanted, wanted_scales) = _quantized(got), _quantized(expected)
    step = np.abs(codes - wanted)
    close = Fraction(int((step <= 1).sum()), step.size)
    enough = step.size * (1 - BF16_CLOSE_CODES) >= ENOUGH_CODES
    if enough:
        assert close >= BF16_CLOSE_CODES, f"only {float(close):.3%} of the codes are within one"
    assert step.max() <= BF16_MAX_CODE_STEP
    assert np.abs(scales / wanted_scales - 1).max() <= BF16_MAX_SCALE_RATIO


def assert_rounded(got: np.ndarray, expected: np.ndarray, terms: float) -> None:
    """bfloat16 values, as float32, of a float32 op: that op's error, and one rounding."""
    assert got.shape == expected.shape
    error = np.abs(got.astype(np.float64) - expected)
    assert (error <= BF16_RTOL * np.abs(expected) + OP_RTOL * terms).all()


def assert_reduced_op(got: np.ndarray, expected: np.ndarray, terms: float) -> None:
    """An op that rounds its own intermediate results to bfloat16: a few roundings of ``terms``."""
    assert got.shape == expected.shape
    worst = float(np.abs(got.astype(np.float64) - expected).max()) / terms
    assert worst <= BF16_RTOL, f"relative error {worst:.2e} > {BF16_RTOL:.2e}"
