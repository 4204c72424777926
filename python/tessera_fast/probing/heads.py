"""The heads: scikit-learn's estimators on standardised features. n pixels, F features."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..errors import InputError
from ..untrusted.suggest import one_of
from .packages import require_sklearn

CLASSIFIERS = ("logistic", "knn", "mlp", "forest")
REGRESSORS = ("ridge", "knn", "mlp", "forest")
_NEIGHBOURS = 5


class Head:
    """An estimator, and the standardisation that it was fitted with.

    Every feature is standardised over the drawn labels. A missing value is the mean, 0; a feature
    that does not vary, or is missing everywhere, is 0. Values to be regressed are standardised as
    well.
    """

    def __init__(self, head: Any, task: str, seed: int) -> None:
        self._head, self._task, self._seed = head, task, seed
        self._estimator: Any = None
        self._only: Any = None  # the label, where there is one alone
        self._middle, self._unit = 0.0, 1.0  # of values to be regressed

    def fit(self, features: np.ndarray, labels: np.ndarray) -> Head:
        """``features`` (n, F) float32, NaN for missing; ``labels`` (n,)."""
        known = np.isfinite(features)
        count = np.maximum(known.sum(axis=0), 1)
        wide = np.where(known, features, 0).astype(np.float64)
        self._mean = wide.sum(axis=0) / count
        spread = np.sqrt(np.where(known, (wide - self._mean) ** 2, 0).sum(axis=0) / count)
        self._scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)
        if len(np.unique(labels)) == 1:
            self._only = labels[0]
            return self
        self._estimator = estimator(self._head, self._task, self._seed, len(labels))
        if self._task == "regression":
            self._middle, self._unit = float(labels.mean()), float(labels.std())
            labels = (labels - self._middle) / self._unit
        with warnings.catch_warnings():
            if self._head == "mlp":  # which is stopped after a number of steps, and would say so
                stopped = require_sklearn("sklearn.exceptions").ConvergenceWarning
                warnings.simplefilter("ignore", stopped)
            self._estimator.fit(self._standardised(features), labels)
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Labels of (n, F) features, (n,)."""
        if self._estimator is None:
            return np.full(len(features), self._only)
        found: np.ndarray = self._estimator.predict(self._standardised(features))
        return found * self._unit + self._middle if self._task == "regression" else found

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        moved = features - self._mean.astype(np.float32)
        moved *= self._scale.astype(np.float32)
        moved[~np.isfinite(moved)] = 0
        return moved


def check_head(head: Any, task: str) -> str:
    """The head's name; InputError if the task has none of that name."""
    known = CLASSIFIERS if task == "classification" else REGRESSORS
    if not isinstance(head, str):
        needed = ("fit", "predict", "get_params")
        if isinstance(head, type) or not all(hasattr(head, name) for name in needed):
            raise InputError(
                f"head: expected {', '.join(known)} or a scikit-learn estimator, got {head!r}"
            )
        base = require_sklearn("sklearn.base")
        other = base.is_regressor if task == "classification" else base.is_classifier
        if other(head):
            raise InputError(f"head: expected an estimator for {task}, got {head!r}")
        return type(head).__name__
    one_of(f"head of a {task}", head, known)
    return head


def estimator(head: Any, task: str, seed: int, labels: int) -> Any:
    """A new estimator for so many labelled pixels."""
    if not isinstance(head, str):
        return require_sklearn("sklearn.base").clone(head)
    kind = "Classifier" if task == "classification" else "Regressor"
    if head == "logistic":
        return require_sklearn("sklearn.linear_model").LogisticRegression(max_iter=1000)
    if head == "ridge":  # the penalty is chosen by leaving out one labelled pixel at a time
        return require_sklearn("sklearn.linear_model").RidgeCV(alphas=np.logspace(-1, 4, 11))
    if head == "knn":
        neighbours = getattr(require_sklearn("sklearn.neighbors"), f"KNeighbors{kind}")
        return neighbours(min(_NEIGHBOURS, labels), weights="distance")
    if head == "forest":
        forest = getattr(require_sklearn("sklearn.ensemble"), f"RandomForest{kind}")
        return forest(100, random_state=seed)
    network = getattr(require_sklearn("sklearn.neural_network"), f"MLP{kind}")
    return network(
        hidden_layer_sizes=(128,), solver="lbfgs", alpha=1.0, max_iter=300, random_state=seed
    )
