"""What the extra `[probe]` has."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from ..errors import BackendUnavailable


def require_sklearn(module: str) -> Any:
    """A module of scikit-learn, or of scipy, which comes with it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"a probe needs scikit-learn: pip install 'tessera_fast[probe]' ({error})"
        ) from error


def has(package: str) -> bool:
    """True if a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None
