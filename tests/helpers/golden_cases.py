"""The golden files: what the official code returned on seeded weights, and its inputs.

``CASES`` lists every (model, input) pair. Files are read from ../shared/golden and ../shared/data
where they exist; tests/golden holds those of the synthetic inputs, so that the repository passes
alone. A file that is absent skips the test that asks for it, with the reason.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest

from places import REPOSITORY, SHARED
from tessera_fast.packing import Observations, Orbit, PackedTokens
from tessera_fast.spec import STATISTICS, ModelSpec, released, variant
from tessera_fast.weights import Weights
from tessera_fast.weights.untrained import untrained

GOLDEN_FOLDERS = (SHARED / "golden", REPOSITORY / "tests" / "golden")
SEED = 1

MODELS: dict[str, ModelSpec] = {  # golden file -> model
    "v2_nano": released("v2-nano"),
    "v2_small": released("v2-small"),
    "v2_medium": released("v2-medium"),
    "v2_large": released("v2-large"),
    "v2_qknorm": variant(
        "v2-nano", name="v2-qknorm", d_model=48, num_layers=3, ff_dim=80, qk_norm=True
    ),
    "v2_teacher_mini": variant(
        "v2-teacher",
        name="v2-teacher-mini",
        d_model=96,
        num_layers=2,
        ff_dim=200,
        out_dim=64,
        saved_dim=64,
    ),
    "v1_1_mpc": released("v1.1-mpc"),
    "v1_1_mini_aws": variant(
        "v1.1-aws",
        name="v1.1-mini-aws",
        d_model=64,
        ff_dim=96,
        out_dim=16,
        saved_dim=16,
        statistics=STATISTICS["v1.1-aws"],
    ),
    "v1_0_qat": released("v1.0-qat"),
    "v1_0_early": released("v1.0"),
}
REAL_CROPS = {"flanders_8x8": ("flanders_2018", 8), "treesat_6x6": ("abies_2020", 6)}
MODEL_INPUT = "model_input"  # v1.0: 40 standardised dates per stream, nothing left to draw


@dataclass(frozen=True)
class GoldenCase:
    """One golden output: a model of ``MODELS`` on one input."""

    stem: str
    input: str

    @property
    def spec(self) -> ModelSpec:
        return MODELS[self.stem]

    def weights(self) -> Weights:
        """The seeded parameters. Only the last model's are kept: order tests by model."""
        return golden_weights(self.stem)

    def observations(self) -> Observations:
        """The raw input; a v1.0 case has none (:meth:`model_input`)."""
        return golden_observations(self.input)

    def model_input(self) -> tuple[PackedTokens, PackedTokens]:
        """The packed Sentinel-2 and Sentinel-1 tokens of a v1.0 case."""
        file = golden_file(self.stem)
        return _standardized_tokens(file["s2"]), _standardized_tokens(file["s1"])

    def expected(self, precision: str) -> np.ndarray:
        """(P, E) float32; ``precision`` "f32" or "f64" is what the official module was cast to."""
        file, key = golden_file(self.stem), self._key(precision)
        if key not in file:
            pytest.skip(f"{key} of {self.stem}.npz is only in {GOLDEN_FOLDERS[0]}")
        return file[key].reshape(-1, file[key].shape[-1])

    def expected_int8(self, precision: str) -> tuple[np.ndarray, np.ndarray] | None:
        """codes (P, E) int8 and scales (P,) float32, where the file holds them (v1.1)."""
        file, key = golden_file(self.stem), self._key(precision)
        if f"{key}_int8" not in file:
            return None
        codes = file[f"{key}_int8"]
        return codes.reshape(-1, codes.shape[-1]), file[f"{key}_scales"].reshape(-1)

    def compared(self) -> np.ndarray:
        """(P,) bool: pixels with an observation. The others are no data here, not there."""
        if self.input == MODEL_INPUT:
            return np.ones(len(self.expected("f32")), bool)
        seen = self.observations()
        masks = seen.s2_masks
        observed = np.ones(seen.shape, bool) if masks is None else (masks != 0).any(axis=0)
        for orbit in seen.orbits:
            observed = observed | (orbit.bands != 0).any(axis=(0, 3))
        return observed.reshape(-1)

    def _key(self, precision: str) -> str:
        return precision if self.input == MODEL_INPUT else f"{self.input}_{precision}"

    def __str__(self) -> str:
        return f"{self.stem}-{self.input}"


def _inputs(stem: str) -> tuple[str, ...]:
    if stem.startswith("v1_0"):
        return (MODEL_INPUT,)
    series = ("series",) if stem.startswith("v2") else ()
    return ("tile", "long", *series, *REAL_CROPS)


CASES = [GoldenCase(stem, name) for stem in MODELS for name in _inputs(stem)]


@cache
def golden_file(stem: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file; skips the test if no folder has it."""
    for folder in GOLDEN_FOLDERS:
        path = folder / f"{stem}.npz"
        if path.exists():
            with np.load(path) as file:
                return dict(file)
    pytest.skip(f"golden file {stem}.npz is in none of {', '.join(map(str, GOLDEN_FOLDERS))}")


@cache
def golden_observations(name: str) -> Observations:
    """Raw observations of an input: a name of golden files, or a real crop."""
    if name in REAL_CROPS:
        folder, size = REAL_CROPS[name]
        return tile_observations(_real_tile(SHARED / "data" / folder, size))
    arrays = golden_file(name)
    return _series_observations(arrays) if name == "series" else tile_observations(arrays)


@lru_cache(maxsize=1)
def golden_weights(stem: str) -> Weights:
    """Seed 1 parameters of a model, as the golden files were made."""
    drawn = untrained(MODELS[stem], SEED)
    return Weights(MODELS[stem], dict(drawn), drawn.sha256, f"untrained:{SEED}")


def tile_observations(arrays: dict[str, np.ndarray]) -> Observations:
    """The seven official arrays as Observations; an orbit may be missing."""
    orbits = tuple(
        Orbit(index, arrays[name], arrays[f"{name}_doy"].astype(np.int32))
        for index, name in enumerate(("sar_ascending", "sar_descending"))
        if name in arrays
    )
    doys = arrays["doys"].astype(np.int32)
    return Observations(arrays["bands"], arrays["masks"], doys, orbits)


def _real_tile(folder: Path, size: int) -> dict[str, np.ndarray]:
    """The top-left size x size pixels of a tile folder."""
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is absent")
    arrays = {}
    for name in (
        "bands",
        "masks",
        "doys",
        "sar_ascending",
        "sar_ascending_doy",
        "sar_descending",
        "sar_descending_doy",
    ):
        path = folder / f"{name}.npy"
        if path.exists():
            array = np.load(path, mmap_mode="r")
            crop = array if array.ndim == 1 else array[:, :size, :size]
            arrays[name] = np.ascontiguousarray(crop)
    return arrays


def _series_observations(arrays: dict[str, np.ndarray]) -> Observations:
    """Pixel series (P, T, C) as a window of P x 1, float32 as upstream takes them."""

    def window(name: str) -> np.ndarray:
        return np.ascontiguousarray(np.swapaxes(arrays[name], 0, 1)[:, :, None])

    orbits = tuple(
        Orbit(index, window(f"s1_{orbit}_bands"), window(f"s1_{orbit}_doys"))
        for index, orbit in enumerate(("asc", "desc"))
    )
    return Observations(window("s2_bands"), window("s2_masks"), window("s2_doys"), orbits)


def _standardized_tokens(dates: np.ndarray) -> PackedTokens:
    """(P, T, C + 1) standardised bands and the day: every date a token, once, in order."""
    pixels, steps, _ = dates.shape
    offsets = np.arange(0, pixels * steps + 1, steps, dtype=np.int64)
    tokens = pixels * steps
    return PackedTokens(
        bands=np.ascontiguousarray(dates[..., :-1]).reshape(tokens, -1),
        doy=dates[..., -1].reshape(-1).astype(np.uint16),
        orbit=np.zeros(tokens, np.uint8),
        multiplicity=np.ones(tokens, np.uint16),
        offsets=offsets,
        steps=np.tile(np.arange(steps, dtype=np.int32), pixels),
        step_offsets=offsets,
        standardized=True,
    )
