"""Raw series to packed tokens: which dates a model reads, how often, and in which order.

The rules of every generation live in csrc/pack; this file prepares their arguments. N tokens of
all pixels, P pixels, C bands, S steps.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Orbit:
    """One Sentinel-1 orbit of a window. ``index`` 0 ascending, 1 descending: its statistics row."""

    index: int
    bands: np.ndarray  # (T, H, W, 2), C-contiguous in the last two axes at least
    doys: np.ndarray  # (T,) or (T, H, W) int32


@dataclass(frozen=True)
class Observations:
    """The raw series of a window of H x W pixels, as views: nothing is copied to make one.

    A list of P pixels is a window of P x 1.
    """

    s2_bands: np.ndarray  # (T, H, W, 10) uint16, int16 or float32
    s2_masks: np.ndarray | None  # (T, H, W) uint8, not 0 = clear; None = all clear
    s2_doys: np.ndarray  # (T,) or (T, H, W) int32
    orbits: tuple[Orbit, ...]  # ascending before descending; an absent orbit is left out
    standardized: bool = False  # float32 bands that are already (x - mean) / std

    @property
    def shape(self) -> tuple[int, int]:
        return self.s2_bands.shape[1], self.s2_bands.shape[2]


@dataclass(frozen=True)
class PackedTokens:
    """One stream of P pixels, ragged and without padding. Pixel p owns tokens offsets[p:p + 2]."""

    bands: np.ndarray  # [N, C] raw uint16, int16 or float32
    doy: np.ndarray  # [N] uint16, 1..366
    orbit: np.ndarray  # [N] uint8, row of the statistics (0 for Sentinel-2)
    multiplicity: np.ndarray  # [N] uint16 >= 1, how often the padded sequence holds this date
    offsets: np.ndarray  # [P + 1] int64
    steps: np.ndarray | None = None  # [S] int32, the padded sequence as indices into p's tokens
    step_offsets: np.ndarray | None = None  # [P + 1] int64; both None where no GRU reads them
    standardized: bool = False

    @property
    def pixels(self) -> int:
        return len(self.offsets) - 1
