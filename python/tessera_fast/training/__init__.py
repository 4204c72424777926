"""Training and distillation. `import tessera_fast` imports nothing of it; running needs torch."""

from ..errors import BackendUnavailable
from ..packages import require


def require_torch() -> None:
    """BackendUnavailable that says what to install."""
    require("torch", "training", BackendUnavailable, extra="train")
