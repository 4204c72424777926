"""placeholder"""
from dataclasses import dataclass
from collections.abc import Mapping
import numpy as np
from .spec import ModelSpec

@dataclass(frozen=True)
class Weights:
    """A model's parameters, checked against its spec."""

    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]  # exactly spec.parameter_shapes(), float32, C-contiguous, possibly memory-mapped
    sha256: str  # of the checkpoint file; of the recipe for untrained weights
    source: str  # path, "hub:<repo>/<file>@<revision>" or "untrained:<seed>"

    @property
    def trained(self) -> bool:
        return not self.source.startswith("untrained:")
