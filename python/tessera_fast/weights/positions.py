"""The sinusoidal encoding of the day of year, as a table."""

import math

import numpy as np

from ..spec import MAX_DOY


def positional_table(d_model: int) -> np.ndarray:
    """(367, d_model) float32: row d holds sin(d f_i), cos(d f_i) interleaved.

    f_i = exp(-2i ln(10000) / d_model), Vaswani et al. 2017, section 3.5. Frequencies, products,
    sines and cosines are float32, as upstream computes them: a float64 table moves embeddings by
    6e-6. Each float32 operation is done in float64 and rounded once, so the table is the same on
    every machine.
    """
    step = np.float32(-(math.log(10000.0) / d_model))
    exponent = np.arange(0, d_model, 2).astype(np.float32) * step
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    days = np.arange(MAX_DOY + 1, dtype=np.float32)
    angle = (days[:, None] * frequency).astype(np.float64)
    table = np.empty((MAX_DOY + 1, d_model), np.float32)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle)
    return table
