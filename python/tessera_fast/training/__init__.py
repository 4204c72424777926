"""Training and distillation. `import tessera_fast` imports nothing of it; running needs torch."""

import importlib.util

from ..errors import BackendUnavailable


def require_torch() -> None:
    """BackendUnavailable that says what to install."""
    if importlib.util.find_spec("torch") is None:
        raise BackendUnavailable("training needs torch: pip install 'tessera_fast[train]'")
