"""Float embeddings to int8 codes with one scale a pixel, and back. The plain numpy statement; the
cpu back end's own op (csrc/cpu/quantize-inl.h) returns the same bits."""

from typing import NamedTuple

import numpy as np

from .errors import InputError
from .untrusted.suggest import checks_keywords

ABSMAX_FLOOR = 1e-12  # of v2; v1.x floors the scale at 1e-8 instead (spec.py)


class QuantizedEmbeddings(NamedTuple):
    """``value = codes * scales[..., None]``. No data: codes 0, scale +inf."""

    codes: np.ndarray  # (..., E) int8
    scales: np.ndarray  # (...,) float32


@checks_keywords()
def quantize(
    embeddings: np.ndarray, *, absmax_floor: float = ABSMAX_FLOOR, scale_floor: float = 0.0
) -> QuantizedEmbeddings:
    """Symmetric linear int8 per pixel, the format of the published embeddings.

    ``embeddings``: (..., E) float; computed in float32. scale = max(max|e|, absmax_floor) / 127, at
    least ``scale_floor``; code = round-half-even(e / scale) in [-127, 127]. A pixel with a NaN has
    no data: codes 0, scale +inf. Raises InputError for an array without a last axis.
    """
    e = np.asarray(embeddings, np.float32)
    if e.ndim == 0 or e.shape[-1] == 0:
        raise InputError(f"embeddings: expected (..., E) with E >= 1, got shape {e.shape}")
    no_data = np.asarray(np.isnan(e).any(-1))
    e = np.where(no_data[..., None], np.float32(0), e)
    absmax = np.maximum(np.abs(e).max(-1), np.float32(absmax_floor))
    scales = np.maximum(absmax / np.float32(127), np.float32(scale_floor))
    codes = np.clip(np.rint(e / scales[..., None]), -127, 127).astype(np.int8)
    return QuantizedEmbeddings(codes, np.where(no_data, np.float32(np.inf), scales))


@checks_keywords()
def dequantize(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(..., E) int8 codes and (...,) float32 scales to (..., E) float32; NaN where no data.

    Raises InputError where the shapes or dtypes do not belong together.
    """
    codes, scales = np.asarray(codes), np.asarray(scales, np.float32)
    if codes.dtype != np.int8 or codes.ndim == 0 or codes.shape[:-1] != scales.shape:
        raise InputError(
            f"dequantize: expected int8 codes (..., E) and scales (...), got {codes.dtype} "
            f"{codes.shape} and {scales.shape}"
        )
    data = np.isfinite(scales)[..., None]
    scale = np.where(data, scales[..., None], np.float32(0))
    return np.where(data, codes.astype(np.float32) * scale, np.float32(np.nan))
