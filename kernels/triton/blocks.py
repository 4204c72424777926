"""Pieces of the kernels: products, rounding, quantised rows, LayerNorm over two blocks."""

import triton
import triton.language as tl

# Adding 1.5 * 2^23 leaves no bit below 1: the sum is rounded to nearest even, and its low byte is
# the integer in two's complement.
_ROUND = tl.constexpr(12582912.0)
_SMALLEST_MAXIMUM = tl.constexpr(1e-30)  # of a row: a row of zeros stays zeros
# sm_90 sums products of fp8 in some 14 bits: so many at most, before they join a float32 sum. It
# is two instructions of depth 32. Of fewer rows Triton multiplies there in fp16 and float32.
_IMPRECISE = tl.constexpr(64)
_LEAST_ROWS = tl.constexpr(64)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, or a b if acc is None: float32, or int32 of int8."""
    SUM: tl.constexpr = tl.int32 if a.dtype == tl.int8 else tl.float32
    DEPTH: tl.constexpr = a.shape[1]
    COARSE: tl.constexpr = a.dtype.is_fp8() and a.shape[0] >= _LEAST_ROWS
    if COARSE and DEPTH <= _IMPRECISE and acc is not None:
        # an addition that Triton merges with the product where the target sums in float32
        return acc + tl.dot(a, b, out_dtype=SUM)
    FEW: tl.constexpr = min(_IMPRECISE, DEPTH) if COARSE else None
    return tl.dot(a, b, acc, input_precision=PRECISION, max_num_imprecise_acc=FEW, out_dtype=SUM)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """float32 to DTYPE, to nearest even."""
    return x.to(DTYPE)


@triton.jit
def quantize(x, inverse, DTYPE: tl.constexpr):
    """Codes of DTYPE, int8 or e4m3: x [R, K] float32 times inverse [R], to nearest even."""
    y = x * inverse[:, None]
    if tl.int8 == DTYPE:
        return (y + _ROUND).to(tl.int32, bitcast=True).to(tl.int8)
    else:
        return y.to(DTYPE)


@triton.jit
def largest_of_rows(x):
    """The largest absolute value of each row of x [R, K], float32 [R]."""
    return tl.max(tl.abs(x.to(tl.float32)), axis=1)


@triton.jit
def row_scale(largest, TOP: tl.constexpr):
    """(scale, 1 / scale) of rows whose largest absolute value becomes the code TOP."""
    largest = tl.maximum(largest, _SMALLEST_MAXIMUM)
    return largest / TOP, TOP / largest


@triton.jit
def row_sum(x, cols, N: tl.constexpr):
    """Sums over the columns below N of x [R, B] float32."""
    return tl.sum(tl.where((cols < N)[None, :], x, 0.0), axis=1)


@triton.jit
def normalize(x, mean, rstd, gamma, beta, cols, N: tl.constexpr):
    """(x - mean) rstd gamma + beta; gamma and beta point to float32 [N], or are None."""
    y = (x - mean[:, None]) * rstd[:, None]
    if gamma is not None:
        y = y * tl.load(gamma + cols, mask=cols < N, other=0.0)[None, :]
    if beta is not None:
        y = y + tl.load(beta + cols, mask=cols < N, other=0.0)[None, :]
    return y


@triton.jit
def square_deviation(x, mean, cols, N: tl.constexpr):
    """Sums over the columns below N of (x - mean)^2, x [R, B] float32."""
    centred = x - mean[:, None]
    return row_sum(centred * centred, cols, N)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def parts(n: int, smallest: int = 16) -> tuple[int, int]:
    """One block of at least ``smallest`` columns over n, or two where they cover n with less."""
    whole = max(power_of_two(n), smallest)
    first = max(1 << (n.bit_length() - 1), smallest)
    rest = max(power_of_two(n - first), smallest) if n > first else 0
    return (first, rest) if first + rest < whole else (whole, 0)
