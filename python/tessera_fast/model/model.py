"""A loaded model: what `load_model` returns and every `model=` accepts."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import backends, env
from ..backends.base import Encoder, RunOptions, WindowEncoder
from ..errors import InputError
from ..machine.notebook import table
from ..packing import Observations, PackedTokens, pack
from ..quantization import QuantizedEmbeddings
from ..spec import ModelSpec
from ..untrusted.suggest import checks_keywords
from ..weights import Weights, load_weights


@dataclass(frozen=True)
class Prepared:
    """A window on its way to the encoder: packed, or raw where packing has to come later."""

    row0: int
    seed: int
    repeats: int
    binary_masks: bool
    observations: Observations | None
    packed: tuple[PackedTokens, PackedTokens, np.ndarray] | None


class Model:
    """Weights prepared on one back end. Use as a context manager, or leave it to the collector.

    Several threads may share a model: they pack side by side and take turns to encode.
    """

    def __init__(
        self, weights: Weights, backend: str, encoder: Encoder, options: RunOptions
    ) -> None:
        self.weights = weights
        self.backend = backend
        self.options = options
        self.encoder = encoder
        self._turn = threading.Lock()

    @property
    def spec(self) -> ModelSpec:
        return self.weights.spec

    @property
    def repr_dim(self) -> int:
        """Width E of the embedding, under the official name."""
        return self.spec.saved_dim

    @property
    def precision(self) -> str:
        return self.encoder.precision

    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:0"."""
        return self.encoder.place

    @property
    def trained(self) -> bool:
        """False for seeded random weights: the embeddings then mean nothing."""
        return self.weights.trained

    @property
    def label(self) -> str:
        return self.spec.name + ("" if self.trained else " (untrained)")

    def provenance(self) -> dict[str, Any]:
        """What made the numbers: back end, precision and the back end's own facts."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            **self.encoder.provenance,
        }

    def width(self, dims: int | None) -> int:
        """The output width for ``dims``; InputError unless that prefix stands alone."""
        if dims is None:
            return self.repr_dim
        if dims not in self.spec.prefixes():
            allowed = ", ".join(map(str, self.spec.prefixes()))
            raise InputError(
                f"dims: model {self.spec.name} can be cut to {allowed} dimensions, got {dims}"
            )
        return dims

    def check_repeats(self, repeats: int) -> None:
        """InputError unless this model can average ``repeats`` random draws."""
        if repeats < 1 or (repeats > 1 and self.spec.sampling != "v1.0"):
            raise InputError(
                "repeats: expected 1, or more with a v1.0 model, which draws dates at random; "
                f"got {repeats} with {self.spec.name}"
            )

    def encode(
        self,
        observations: Observations,
        out: np.ndarray | QuantizedEmbeddings,
        *,
        row0: int = 0,
        seed: int = 0,
        repeats: int = 1,
        binary_masks: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Pack a window and write ``out``; returns the (P, 3) uint16 observed dates.

        ``out``: (P, E) float32, or QuantizedEmbeddings(codes (P, E) int8, scales (P,) float32).
        ``repeats`` averages that many random draws of a v1.0 model (its ``repeat_times``), with
        seeds ``seed``, ``seed + 1``, ...
        """
        window = self.prepare(
            observations, row0=row0, seed=seed, repeats=repeats, binary_masks=binary_masks
        )
        return self.run(window, out, progress)

    @property
    def quantizes(self) -> bool:
        """Whether the encoder packs and quantises by itself, on its device."""
        return isinstance(self.encoder, WindowEncoder)

    def prepare(
        self,
        observations: Observations,
        *,
        row0: int = 0,
        seed: int = 0,
        repeats: int = 1,
        binary_masks: bool = False,
    ) -> Prepared:
        """What can be done of `encode` while the encoder runs for another window."""
        self.check_repeats(repeats)
        if self.quantizes or repeats > 1:
            return Prepared(row0, seed, repeats, binary_masks, observations, None)
        packed = self._pack(observations, row0, seed, binary_masks)
        return Prepared(row0, seed, repeats, binary_masks, None, packed)

    def run(
        self,
        window: Prepared,
        out: np.ndarray | QuantizedEmbeddings,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """The rest of `encode`."""
        quantized = isinstance(out, QuantizedEmbeddings)
        if window.repeats == 1 and (not quantized or self.quantizes):
            return self._draw(window, 0, out, progress)
        codes = out.codes if isinstance(out, QuantizedEmbeddings) else out
        values = np.empty(codes.shape, np.float32) if quantized else codes
        total = np.zeros_like(values)
        for draw in range(window.repeats):
            done = progress if draw == window.repeats - 1 else None
            counts = self._draw(window, draw, values, done)
            total += values
        np.divide(total, np.float32(window.repeats), out=values)
        if isinstance(out, QuantizedEmbeddings):
            out.codes[:], out.scales[:] = self.quantize(values)
        return counts

    def _draw(
        self, window: Prepared, draw: int, out: Any, progress: Callable[[int], None] | None
    ) -> np.ndarray:
        """Encode with the dates that ``draw`` gives."""
        seed = window.seed + draw
        if isinstance(self.encoder, WindowEncoder):
            assert window.observations is not None
            with self._turn:
                return self.encoder.encode_window(
                    window.observations,
                    out,
                    row0=window.row0,
                    seed=seed,
                    binary_masks=window.binary_masks,
                    progress=progress,
                )
        packed = window.packed
        if packed is None:
            assert window.observations is not None
            packed = self._pack(window.observations, window.row0, seed, window.binary_masks)
        s2, s1, counts = packed
        with self._turn:
            self.encoder.encode(s2, s1, out, progress)
        return counts

    def _pack(
        self, observations: Observations, row0: int, seed: int, binary_masks: bool
    ) -> tuple[PackedTokens, PackedTokens, np.ndarray]:
        return pack(
            observations,
            self.spec,
            row0=row0,
            seed=seed,
            binary_masks=binary_masks,
            threads=self.options.threads,
        )

    def quantize(self, values: np.ndarray) -> QuantizedEmbeddings:
        """(..., E) float32 to int8 codes and scales by the model's floors, in native code."""
        from .. import _cpu

        rows = values.reshape(-1, values.shape[-1])
        codes, scales = _cpu.quantize(rows, self.spec.absmax_floor, self.spec.scale_floor)
        return QuantizedEmbeddings(codes.reshape(values.shape), scales.reshape(values.shape[:-1]))

    def close(self) -> None:
        """Free the weights; the model is not used again."""
        self.encoder.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Model({self.label}, backend={self.backend}, precision={self.precision})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        prefixes = [str(k) for k in self.spec.prefixes() if k != self.repr_dim]
        rows = [
            ("embedding", f"{self.repr_dim} numbers"),
            ("prefixes", ", ".join(prefixes) or "none"),
            ("runs on", f"{self.backend}, {self.device}, {self.precision}"),
            ("weights", self.weights.source),
        ]
        below = () if self.trained else ("untrained weights: embeddings mean nothing",)
        return table(self.label, rows, below=below)


@dataclass(frozen=True)
class ModelOptions:
    """The arguments of `load_model`, to be passed on; other processes can be given them if
    ``model`` is no loaded one."""

    model: "str | os.PathLike[str] | Model" = "v2-medium"
    device: str | None = None
    weights: str | os.PathLike[str] | None = None
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None

    def load(self) -> Model:
        """What `load_model` returns for them."""
        return load_model(
            self.model,
            self.device,
            weights=self.weights,
            backend=self.backend,
            precision=self.precision,
            threads=self.threads,
        )


@checks_keywords()
def load_model(
    model: "str | os.PathLike[str] | Model" = "v2-medium",
    device: Any = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Model:
    """Load a TESSERA model once, to be passed as ``model=`` many times.

    ``model``: a released name (v2-nano, v2-small, v2-medium, v2-large, v2-teacher, v1.1-mpc,
    v1.1-aws, v1.0-qat, v1.0), demo-nano, whose small weights are part of the package and are for
    trying things out, or the path of a .pt or .safetensors checkpoint, whose family and sizes are
    recognised. ``weights``: where a released model's parameters come from instead of the hub: a
    path, or ``"untrained"`` (``"untrained:<seed>"``) for seeded random ones, with which
    embeddings mean nothing. ``device``: None or "auto" for the best there is, "cpu", "cuda",
    "cuda:1" or a torch.device, as the official loader takes. ``threads``: of the cpu back end;
    default TESSERA_FAST_THREADS, or the CPUs
    that affinity and control groups leave to this process.

    Raises WeightsError for a checkpoint that is absent, unsafe, truncated or mismatched, and
    BackendUnavailable where the back end, precision or device asked for cannot run here.
    """
    if isinstance(model, Model):
        if (weights, device, backend, precision, threads) != (None, None, "auto", "auto", None):
            raise InputError(
                "model: a loaded model was given together with weights, device, backend, precision "
                "or threads; pass those to load_model"
            )
        return model
    if threads is not None:
        threads = env.threads(threads)
    env.warn_of_unknown()
    place = None if device is None or str(device) == "auto" else str(device)
    options = RunOptions(precision, place, threads)
    loaded = load_weights(model, weights)
    name, encoder = backends.load(backend, loaded.spec, loaded, options)
    return Model(loaded, name, encoder, options)
