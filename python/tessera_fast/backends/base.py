"""The seam between the pipeline and the engines: five names, no tensors of any framework."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..packing import Observations, PackedTokens
from ..spec import ModelSpec
from ..weights import Weights


@dataclass(frozen=True)
class Plan:
    """How to run: what a back end is asked for by name it runs, or it refuses."""

    precision: str = "auto"  # "auto" | "fp32" | "bf16" | "int8" | what else a back end names
    device: str | None = None  # None: the back end's own choice
    threads: int | None = None  # None: env.threads()


class Encoder(Protocol):
    """A loaded model. ``encode`` may be called from one thread at a time."""

    precision: str  # what runs, never "auto"
    place: str  # the device it runs on: "cpu", "cuda:0"
    provenance: dict[str, Any]  # what else a store should record, e.g. {"isa": "avx2"}

    def encode(
        self,
        s2: PackedTokens,
        s1: PackedTokens,
        out: np.ndarray,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write the first ``out.shape[1]`` embedding dimensions of every pixel.

        ``out``: (P, E) float32 (the reference back end also takes float64), E at most the model's
        ``saved_dim``. A pixel without a token in either stream becomes a row of NaN; one without
        tokens in a single stream gets that stream's constant. ``progress`` is called in this
        thread, now and then and at the end, with the number of pixels done.
        """

    def close(self) -> None:
        """Free what is held; the encoder is not used again."""


@runtime_checkable
class WindowEncoder(Encoder, Protocol):
    """An encoder that packs on its own device, and quantises there."""

    def encode_window(
        self,
        observations: Observations,
        out: Any,
        *,
        row0: int = 0,
        seed: int = 0,
        binary_masks: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """`packing.pack` and ``encode`` in one: returns the (P, 3) uint16 observed dates.

        ``out``: (P, E) float32, or QuantizedEmbeddings(codes (P, E) int8, scales (P,) float32).
        """


class Backend(Protocol):
    """A module-level object of backends/<name>.py."""

    name: str

    def why_not(self, spec: ModelSpec, plan: Plan) -> str | None:
        """None if ``load`` would run here, else the reason as a sentence."""

    def load(self, spec: ModelSpec, weights: Weights, plan: Plan) -> Encoder:
        """Prepare a model; raises BackendUnavailable with ``why_not``'s sentence."""
