"""How many dimensions of embeddings are in use."""

from __future__ import annotations

import math

import numpy as np

from ..errors import InputError
from ..untrusted.suggest import checks_keywords


@checks_keywords()
def rankme(embeddings: np.ndarray) -> float:
    """Normalised RankMe of (..., E) embeddings, 0 to 1: about 1 if all dimensions are in use.

    The entropy of the singular values over their sum, by log(min(P, E)), of the P pixels without
    NaN, not centred, in float64. RankMe itself is min(P, E) to this power. Raises InputError for
    fewer than two pixels or dimensions, or embeddings that are all 0.
    """
    rows = np.asarray(embeddings)
    rows = rows.reshape(-1, rows.shape[-1]) if rows.ndim > 1 else rows[None]
    rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
    if min(rows.shape) < 2 or not rows.any():
        raise InputError(
            f"embeddings: expected at least two pixels with data and two dimensions, not all 0, "
            f"got {rows.shape}"
        )
    # E x E at most, whatever the number of pixels; the triangle has their singular values
    values = np.linalg.svd(np.linalg.qr(rows, mode="r"), compute_uv=False)
    p = values / values.sum()
    p = p[p > 0]
    return float(-(p * np.log(p)).sum()) / math.log(min(rows.shape))
