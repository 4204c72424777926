"""The cpu back end: csrc/cpu behind the seam. No torch; one body per instruction set.

Every instruction set runs every precision; "auto" is bf16 where the machine has instructions for
its products, fp32 elsewhere, where bf16 would give no speed for its rounding. int8 is opt-in.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import env
from ..errors import BackendUnavailable
from ..packing import PackedTokens
from ..spec import ModelSpec
from ..weights import Weights
from ..weights.positions import positional_table
from .base import RunOptions

PRECISIONS = ("fp32", "bf16", "int8")


class CpuEncoder:
    """A model packed for one instruction set and precision (see backends/base.py)."""

    place = "cpu"

    def __init__(
        self, spec: ModelSpec, weights: Weights, threads: int, isa: str, precision: str
    ) -> None:
        from .. import _cpu

        if precision == "auto":
            precision = automatic_precision(isa)

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
        self._engine: Any = _cpu.load_encoder(
            config, positional_table(spec.d_model), weights.tensors, isa, precision
        )
        self.precision = precision
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

    def profile(self, s2: PackedTokens, s1: PackedTokens, out: np.ndarray) -> dict[str, float]:
        """``encode``, returning the seconds each op took, summed over threads."""
        seconds: dict[str, float] = self._engine.encode(
            s2, s1, out, self._threads, None, profile=True
        )
        return seconds

    def close(self) -> None:
        self._engine = None


def _two_rows(row: tuple[float, ...]) -> np.ndarray:
    return np.array([row, row], np.float32)


def automatic_precision(isa: str) -> str:
    """What "auto" is on an instruction set ("" for the best that runs)."""
    from .. import _cpu

    return "bf16" if _cpu.native_bf16(isa) else "fp32"


class CpuBackend:
    name = "cpu"

    def why_not(self, spec: ModelSpec, options: RunOptions) -> str | None:
        try:
            from .. import _cpu
        except ImportError as error:
            return f"the extension module tessera_fast._cpu cannot be loaded: {error}"
        if options.precision not in ("auto", *PRECISIONS):
            return f"the cpu back end runs {', '.join(PRECISIONS)}, not {options.precision}"
        if options.device not in (None, "cpu"):
            return f"the cpu back end runs on device 'cpu', not {options.device!r}"
        try:
            _cpu.select_isa(env.isa() or "")
        except BackendUnavailable as error:
            return f"TESSERA_FAST_ISA: {error}"
        return None

    def load(self, spec: ModelSpec, weights: Weights, options: RunOptions) -> CpuEncoder:
        reason = self.why_not(spec, options)
        if reason:
            raise BackendUnavailable(reason)
        threads = env.threads(options.threads)
        return CpuEncoder(spec, weights, threads, env.isa() or "", options.precision)


cpu = CpuBackend()
