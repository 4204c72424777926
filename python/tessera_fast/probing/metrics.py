"""How right predictions are. P pixels, K classes."""

from __future__ import annotations

import numpy as np

CLASSIFICATION = ("balanced_accuracy", "accuracy", "macro_f1")
REGRESSION = ("r2", "rmse", "mae")
LESS_IS_BETTER = ("rmse", "mae")


def confusion(truth: np.ndarray, found: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(K, K) int64: pixels of the class of the row that were given the class of the column."""
    k = len(classes)
    index = np.searchsorted(classes, truth) * k + np.searchsorted(classes, found)
    return np.bincount(index, minlength=k * k).reshape(k, k)


def of_confusion(matrix: np.ndarray) -> dict[str, float]:
    """Accuracy; the mean over classes of recall and of F1. Classes that were not judged are left
    out of the means."""
    right, truth, found = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    judged = truth > 0
    recall = right[judged] / truth[judged]
    f1 = 2 * right[judged] / (truth[judged] + found[judged])
    return {
        "balanced_accuracy": float(recall.mean()),
        "accuracy": float(right.sum() / matrix.sum()),
        "macro_f1": float(f1.mean()),
    }


def of_values(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """R2, root of the mean squared error, mean absolute error, in float64."""
    error = found.astype(np.float64) - truth
    spread = float(((truth - truth.mean(dtype=np.float64)) ** 2).sum())
    squares = float((error**2).sum())
    return {
        "r2": 1 - squares / spread if spread > 0 else float("nan"),
        "rmse": float(np.sqrt(squares / len(error))),
        "mae": float(np.abs(error).mean()),
    }
