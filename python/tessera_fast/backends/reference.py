"""The reference back end: the oracle of reference/ behind the seam, for tests and doubt.

Slow and dense on purpose. float64 is its own: every other back end is judged against it.
Results of a pixel may differ in the last bits with its neighbours, as torch picks a matrix
product by its shape.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import env
from ..errors import BackendUnavailable
from ..packages import has, how_to_install, problem, require
from ..packing import PackedTokens
from ..spec import ModelSpec
from ..weights import Weights
from .base import RunOptions, check_out, check_tokens

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {"fp32": "float32", "fp64": "float64"}


class ReferenceEncoder:
    """A loaded model, parameters as torch tensors of the precision."""

    def __init__(self, spec: ModelSpec, weights: Weights, options: RunOptions) -> None:
        import torch

        from ..reference.model import to_tensors

        self.precision = _precision(options)
        self.place = options.device or "cpu"
        self.provenance: dict[str, Any] = {"torch": torch.__version__}
        self._spec = spec
        self._dtype = getattr(torch, _DTYPES[self.precision])
        self._threads = env.threads(options.threads)
        self._tensors: dict[str, Tensor] = to_tensors(
            weights.tensors, self._dtype, options.device or "cpu"
        )

    def encode(
        self,
        s2: PackedTokens,
        s1: PackedTokens,
        out: np.ndarray,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """As ``Encoder.encode``; ``out`` (P, E) float32 or float64. Reports progress at the end."""
        import torch

        from ..reference.model import forward

        check_tokens(self._spec, s2, s1)
        check_out(self._spec, s2.pixels, out, ("float32", "float64"))
        threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            out[:] = forward(self._spec, self._tensors, s2, s1, self._dtype)[:, : out.shape[1]]
        finally:
            torch.set_num_threads(threads_before)
        if progress is not None:
            progress(s2.pixels)

    def close(self) -> None:
        """Free the parameters."""
        self._tensors = {}


class ReferenceBackend:
    """PyTorch in float32 or float64."""

    name = "reference"

    def why_not(self, spec: ModelSpec, options: RunOptions) -> str | None:
        """None if ``load`` would run here, else the reason as a sentence."""
        if not has("torch"):
            return f"torch is not installed: {how_to_install('torch')}"
        if options.precision != "auto" and options.precision not in _DTYPES:
            return f"precision {options.precision} is not one of auto, {', '.join(_DTYPES)}"
        device = options.device or "cpu"
        if device == "cpu":
            return None
        kind, _, index = device.partition(":")
        if kind != "cuda" or not (index or "0").isdigit():
            return f"device {device} is not cpu, cuda or cuda:N"
        reason = problem("torch")
        if reason is not None:
            return reason
        import torch

        found = torch.cuda.device_count()
        if int(index or 0) >= found:
            return f"device {device} was asked for, and torch finds {found} CUDA devices"
        return None

    def load(self, spec: ModelSpec, weights: Weights, options: RunOptions) -> ReferenceEncoder:
        """Prepare a model; raises BackendUnavailable with ``why_not``'s sentence."""
        reason = self.why_not(spec, options)
        if reason is not None:
            raise BackendUnavailable(f"back end {self.name}: {reason}")
        require("torch", "the reference back end", BackendUnavailable)
        return ReferenceEncoder(spec, weights, options)


def _precision(options: RunOptions) -> str:
    return "fp32" if options.precision == "auto" else options.precision


reference = ReferenceBackend()
