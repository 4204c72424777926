"""The seam between the pipeline and the engines: five names, no tensors of any framework."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ..errors import InputError
from ..packing import Observations, PackedTokens
from ..spec import ModelSpec
from ..weights import Weights

if TYPE_CHECKING:
    import torch

_CAPTURING = threading.Lock()


@dataclass(frozen=True)
class RunOptions:
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

    def why_not(self, spec: ModelSpec, options: RunOptions) -> str | None:
        """None if ``load`` would run here, else the reason as a sentence."""

    def load(self, spec: ModelSpec, weights: Weights, options: RunOptions) -> Encoder:
        """Prepare a model; raises BackendUnavailable with ``why_not``'s sentence."""


def check_tokens(spec: ModelSpec, s2: PackedTokens, s1: PackedTokens) -> None:
    """InputError unless both streams are of the same pixels and packed for this model."""
    if s2.pixels != s1.pixels:
        raise InputError(
            f"packed tokens: expected as many Sentinel-1 as Sentinel-2 pixels ({s2.pixels}), "
            f"got {s1.pixels}"
        )
    if spec.needs_steps and (s2.steps is None or s1.steps is None):
        raise InputError(
            f"packed tokens: model {spec.name} reads the padded sequence in order, "
            "got tokens without steps; pack them with this model's spec"
        )


def check_out(
    spec: ModelSpec, pixels: int, out: np.ndarray, dtypes: tuple[str, ...] = ("float32",)
) -> None:
    """InputError unless ``out`` is (pixels, E), E at most ``saved_dim``, of one of ``dtypes``."""
    if out.ndim != 2 or len(out) != pixels or not 1 <= out.shape[1] <= spec.saved_dim:
        raise InputError(
            f"out: expected ({pixels}, 1..{spec.saved_dim}) for {pixels} pixels of model "
            f"{spec.name}, got {out.shape}"
        )
    if out.dtype.name not in dtypes:
        raise InputError(f"out: expected {' or '.join(dtypes)}, got {out.dtype}")


@contextmanager
def capturing(stream: "torch.cuda.Stream") -> Iterator["torch.cuda.CUDAGraph"]:
    """A CUDA graph of what this thread enqueues on ``stream``, captured instead of run.

    Torch allows one capture at a time in a process, so others wait for this one; other threads
    may use the GPU meanwhile.
    """
    import torch

    graph = torch.cuda.CUDAGraph()
    with (
        _CAPTURING,
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        yield graph
