"""Where the cuda back end runs: on a GPU, or for tests in an interpreter on the CPU."""

import os

INTERPRETER = "interpreter"


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"
