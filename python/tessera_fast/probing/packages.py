"""What the extra `[probe]` has."""

from __future__ import annotations

from typing import Any

from ..errors import BackendUnavailable
from ..packages import require


def require_sklearn(module: str) -> Any:
    """A module of scikit-learn, or of scipy, which comes with it."""
    return require(module, "a probe", BackendUnavailable)
