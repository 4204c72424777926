"""Inputs for ops of the cpu back end, in memory that a read or write beyond them ends."""

import numpy as np

SIZES = (1, 2, 3, 5, 6, 7, 11, 12, 13, 36, 110, 144, 440)


DATES = (1, 2, 8, 9, 63, 255, 256, 257)


POISON = np.uint32(0x7FC12345)  # a quiet NaN no arithmetic makes


class Fenced:
    """``view`` (M, D) float32 inside a poisoned array, one row and some columns on every side."""

    def __init__(self, rows: int, columns: int, values=None) -> None:
        whole = np.full((rows + 2, columns + 21), POISON, np.uint32)
        self._outside = np.ones(whole.shape, bool)
        self._outside[1:-1, 4 : 4 + columns] = False
        self._bits = whole
        self.view = whole.view(np.float32)[1:-1, 4 : 4 + columns]
        if values is not None:
            self.view[:] = values

    def result(self) -> np.ndarray:
        assert (self._bits[self._outside] == POISON).all(), "written outside the output"
        return self.view


def placed(values: np.ndarray) -> np.ndarray:
    """A copy between poisoned neighbours: its rows are further apart than they are long."""
    return Fenced(*values.shape, values).view


def normal(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def wide(*arrays):
    return (a.astype(np.float64) for a in arrays)


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def attention(qkv, heads, multiplicity):
    """The padded statement: every key and value as often as its multiplicity says."""
    T = len(qkv)
    q, k, v = np.moveaxis(qkv.astype(np.float64).reshape(T, 3, heads, -1), (1, 2), (0, 1))
    k, v = (np.repeat(a, multiplicity, axis=1) for a in (k, v))
    out = softmax(q @ np.swapaxes(k, 1, 2)) @ v
    return np.swapaxes(out, 0, 1).reshape(T, -1)


def attention_input(T, heads, head_dim):
    """q k v [T, 3 D] with logits of order 1.5, and two multiplicities [T]: ones and 1..8."""
    rng = np.random.default_rng(T)
    D = heads * head_dim
    qkv = normal(rng, T, 3 * D)
    qkv[:, :D] *= np.float32(1.5 / np.sqrt(head_dim))
    return qkv, (np.ones(T, int), rng.integers(1, 9, T))
