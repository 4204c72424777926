"""The cpu back end: csrc/cpu behind the seam. No torch; one body per instruction set."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import env
from ..errors import BackendUnavailable
from ..packing import PackedTokens
from ..positions import positional_table
from ..spec import ModelSpec
from ..weights import Weights
from .base import Plan


class CpuEncoder:
    """A model packed for one instruction set (see backends/base.py)."""

    precision = "fp32"

    def __init__(self, spec: ModelSpec, weights: Weights, threads: int, isa: str) -> None:
        from .. import _cpu

        config = {
            "d_model": spec.d_model,
            "num_layers": spec.num_layers,
            "num_heads": spec.num_heads,
            "ff_dim": spec.ff_dim,
            "out_dim": spec.out_dim,
            "pre_norm": spec.pre_norm,
            "qk_norm": spec.qk_norm,
            "reducer": spec.reducer,
            "final_norm": spec.final_norm,
            "fusion_layers": spec.fusion_layers,
            "pooling": spec.pooling,
            "empty_steps": spec.empty_steps,
            "layer_prefix": spec.layer_name("", 0)[1:-1],
            "s2_mean": _two_rows(spec.statistics.s2_mean),
            "s2_std": _two_rows(spec.statistics.s2_std),
            "s1_mean": np.array(spec.statistics.s1_mean, np.float32),
            "s1_std": np.array(spec.statistics.s1_std, np.float32),
        }
        self._engine: Any = _cpu.Encoder(
            config, positional_table(spec.d_model), weights.tensors, isa
        )
        self._threads = threads
        self.provenance: dict[str, Any] = {"isa": self._engine.isa}

    def encode(
        self,
        s2: PackedTokens,
        s1: PackedTokens,
        out: np.ndarray,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._engine.encode(s2, s1, out, self._threads, progress)

    def close(self) -> None:
        self._engine = None


def _two_rows(row: tuple[float, ...]) -> np.ndarray:
    return np.array([row, row], np.float32)


class CpuBackend:
    name = "cpu"

    def why_not(self, spec: ModelSpec, plan: Plan) -> str | None:
        try:
            from .. import _cpu
        except ImportError as error:
            return f"the extension module tessera_fast._cpu cannot be loaded: {error}"
        if plan.precision not in ("auto", "fp32"):
            return f"the cpu back end runs fp32, not {plan.precision}"
        if plan.device not in (None, "cpu"):
            return f"the cpu back end runs on device 'cpu', not {plan.device!r}"
        try:
            _cpu.select_isa(env.isa() or "")
        except BackendUnavailable as error:
            return f"TESSERA_FAST_ISA: {error}"
        return None

    def load(self, spec: ModelSpec, weights: Weights, plan: Plan) -> CpuEncoder:
        reason = self.why_not(spec, plan)
        if reason:
            raise BackendUnavailable(reason)
        return CpuEncoder(spec, weights, plan.threads or env.threads(), env.isa() or "")


cpu = CpuBackend()
