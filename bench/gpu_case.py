"""What the GPU benchmark runs on, and the gates that its figures must pass.

A case is a pool of pixels of equal lengths, larger than the L2 cache, that batches rotate over.
Every date is read once, so nobody pads: that favours the stock engines, whose rule pads 50 dates
to 56. Values are random, spread as the model's statistics say.
"""

import os
import runpy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import gpu_stock
import tessera_fast as tf
from tessera_fast import backends
from tessera_fast.backends.base import RunOptions
from tessera_fast.model.model import Model
from tessera_fast.packing import PackedTokens, pack
from tessera_fast.spec import MAX_DOY, ModelSpec
from tessera_fast.weights import Weights

GATES = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tests" / "helpers" / "oracle.py"))
V1_0_DATES = (40, 40)  # what v1.0 draws of each stream, however many there are
SAMPLE = 48  # pixels that are compared with the reference
CLEAR = 0.5  # share of a tile's Sentinel-2 dates that a pixel sees


class Ours(NamedTuple):
    """A contender of ours: "triton" kernels, the "fused" CUDA kernel, or the "cpu" back end."""

    engine: str
    precision: str

    @staticmethod
    def parse(text: str) -> "Ours":
        """Of "triton:bf16"."""
        engine, _, precision = text.partition(":")
        if engine not in ("triton", "fused", "cpu") or not precision:
            raise SystemExit(f"a contender is triton:bf16, fused:bf16 or cpu:fp32, not {text!r}")
        return Ours(engine, precision)

    @property
    def label(self) -> str:
        return f"{self.engine} {self.precision}"

    def load(self, weights: Weights, device: str) -> Model:
        """``device``: "cuda:0", or "interpreter" or "cpu" for a run without a GPU."""
        cpu = self.engine == "cpu"
        plan = RunOptions(self.precision, None if cpu else device)
        os.environ["TESSERA_FAST_FUSED"] = "1" if self.engine == "fused" else "0"
        name, encoder = backends.load("cpu" if cpu else "cuda", weights.spec, weights, plan)
        return Model(weights, name, encoder, plan)


def torch_device(device: str) -> torch.device:
    """Where tensors of a contender's inputs lie; it becomes torch's current device."""
    if not device.startswith("cuda"):
        return torch.device("cpu")
    torch.cuda.set_device(device)
    return torch.device(device)


def misses() -> list[str]:
    """A list that fills with the kernels that this process has to compile: the warm-up's gaps."""
    names: list[str] = []
    try:
        from triton import knobs
    except ImportError:  # a torch without Triton
        return names

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            names.append(src.name)

    knobs.compilation.listener = listen
    return names


def failures() -> tuple[type[Exception], ...]:
    """What torch and Triton raise where they cannot run something, out of memory included."""
    errors: tuple[type[Exception], ...] = (RuntimeError, NotImplementedError)
    try:
        from triton.errors import TritonError
    except ImportError:  # a torch without Triton
        return errors
    return (*errors, TritonError)


def dates(spec: ModelSpec, asked: tuple[int, int]) -> tuple[int, int]:
    return V1_0_DATES if spec.sampling == "v1.0" else asked


@dataclass(frozen=True)
class Stream:
    """Pixels of one stream and of equal lengths."""

    bands: np.ndarray  # (P, T, C) uint16 or int16
    days: np.ndarray  # (P, T) uint16, ascending
    orbit: np.ndarray  # (P, T) uint8

    @classmethod
    def draw(cls, mean: Any, std: Any, pixels: int, steps: int, dtype: type, seed: int) -> "Stream":
        """``mean`` and ``std`` have a row per orbit; the first half of the dates is of orbit 0."""
        rng = np.random.default_rng(seed)
        mean, std = (np.array(rows, np.float32) for rows in (mean, std))
        row = np.zeros(steps, np.uint8)
        row[(steps + 1) // 2 :] = len(mean) - 1
        values = rng.standard_normal((pixels, steps, mean.shape[1]), np.float32)
        values = np.clip(values * std[row] + mean[row], 1, 16_000).astype(dtype)
        days = np.sort(rng.integers(1, MAX_DOY + 1, (pixels, steps), np.uint16), 1)
        return cls(values, days, np.tile(row, (pixels, 1)))

    def tokens(self, first: int, last: int, steps: bool, device: torch.device | None) -> Any:
        """Pixels as packed tokens: of numpy arrays, or with a device of tensors there."""
        pixels, length = last - first, self.days.shape[1]
        offsets = np.arange(0, pixels * length + 1, length, dtype=np.int64)
        order = np.tile(np.arange(length, dtype=np.int32), pixels) if steps else None
        arrays = (
            self.bands[first:last].reshape(pixels * length, -1),
            self.days[first:last].reshape(-1),
            self.orbit[first:last].reshape(-1),
            np.ones(pixels * length, np.uint16),
        )
        if device is None:
            return PackedTokens(*arrays, offsets, order, offsets if steps else None)
        # offsets stay where Python reads them: on the device they would be fetched in every call
        there = [torch.from_numpy(a).to(device) for a in arrays]
        if order is None:
            return PackedTokens(*there, offsets)
        return PackedTokens(*there, offsets, torch.from_numpy(order).to(device), offsets)


@dataclass(frozen=True)
class Case:
    """``pixels`` pixels with ``lengths`` tokens of Sentinel-2 and Sentinel-1."""

    spec: ModelSpec
    lengths: tuple[int, int]
    pixels: int

    @property
    def name(self) -> str:
        return "{} + {} tokens".format(*self.lengths)

    @cached_property
    def streams(self) -> tuple[Stream, Stream]:
        s = self.spec.statistics
        s2 = Stream.draw([s.s2_mean], [s.s2_std], self.pixels, self.lengths[0], np.uint16, 2)
        s1 = Stream.draw(s.s1_mean, s.s1_std, self.pixels, self.lengths[1], np.int16, 1)
        return s2, s1

    def packed(
        self, first: int, last: int, device: torch.device | None = None
    ) -> tuple[PackedTokens, PackedTokens]:
        s2, s1 = (s.tokens(first, last, self.spec.needs_steps, device) for s in self.streams)
        return s2, s1

    def sequences(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole pool as the stock engines take it."""
        s2, s1 = (
            torch.from_numpy(gpu_stock.sequences(self.spec, s.bands, s.days, s.orbit)).to(device)
            for s in self.streams
        )
        return s2, s1


def reference(
    spec: ModelSpec, weights: Weights, s2: PackedTokens, s1: PackedTokens, device: torch.device
) -> np.ndarray:
    """(P, E) float64: what every contender is judged by."""
    _, encoder = backends.load("reference", spec, weights, RunOptions("fp64", str(device)))
    out = np.full((s2.pixels, spec.saved_dim), np.nan)
    encoder.encode(s2, s1, out)
    encoder.close()
    return out


def tile_arrays(spec: ModelSpec, lengths: tuple[int, int], size: int) -> dict[str, np.ndarray]:
    """A square tile of which a pixel reads ``lengths`` dates on average: the arrays `embed` takes.

    Twice the Sentinel-2 dates, each clear at half of the pixels; lengths differ between pixels.
    """
    rng = np.random.default_rng(3)
    listed = round(lengths[0] / CLEAR)
    shape = (listed, size, size)
    arrays = {
        "bands": rng.integers(200, 8_000, (*shape, 10), np.uint16),
        "masks": (rng.random(shape, np.float32) < CLEAR).astype(np.uint8),
        "doys": _calendar(listed),
    }
    for name, count in (("ascending", (lengths[1] + 1) // 2), ("descending", lengths[1] // 2)):
        arrays[f"sar_{name}"] = rng.integers(1_000, 9_000, (count, size, size, 2), np.int16)
        arrays[f"sar_{name}_doy"] = _calendar(count)
    return arrays


def _calendar(count: int) -> np.ndarray:
    return np.linspace(1, MAX_DOY - 1, count).astype(np.int32)


def first_row(spec: ModelSpec, arrays: dict[str, np.ndarray]) -> tuple[PackedTokens, PackedTokens]:
    """The tokens of a tile's first row, packed by the native code on the CPU."""
    s2, s1, _ = pack(tf.open_tile(dict(arrays)).rows(0, 1), spec)
    return s2, s1


def gate(got: np.ndarray, expected: np.ndarray, precision: str, ours: bool) -> dict[str, Any]:
    """Agreement with the reference, and whether it is enough: tests/helpers/oracle.py says what is.

    Stock engines in a reduced precision are held to the mean cosine alone.
    """
    finite = bool(np.isfinite(got).all())
    row: dict[str, Any] = {"equal": finite, "gate": "" if finite else "not finite"}
    if not finite:
        return row
    cosine = GATES["cosines"](got, expected)
    row["cosine_mean"], row["cosine_min"] = float(cosine.mean()), float(cosine.min())
    row["max_abs_difference"] = float(np.abs(got - expected).max())
    if precision == "fp32":
        return {**row, **_judged("assert_golden", got, expected)}
    loose = not ours or precision in ("fp8", "int8")
    kind = "bf16" if not loose else "fp8" if precision == "fp8" and ours else "int8"
    return {**row, **_judged("assert_reduced", got, expected, kind)}


def gate_int8(
    codes: np.ndarray, scales: np.ndarray, expected: np.ndarray, spec: ModelSpec, precision: str
) -> dict[str, Any]:
    """The same of int8 embeddings."""
    if precision == "fp32":
        floors = {"absmax_floor": spec.absmax_floor, "scale_floor": spec.scale_floor}
        wanted = tf.quantize(expected.astype(np.float32), **floors)
        return _judged("assert_same_codes", codes, wanted.codes)
    return gate(codes * scales[:, None].astype(np.float64), expected, precision, ours=True)


def _judged(check: str, *args: Any) -> dict[str, Any]:
    try:
        GATES[check](*args)
    except AssertionError as error:
        return {"equal": False, "gate": str(error)}
    return {"equal": True, "gate": ""}
