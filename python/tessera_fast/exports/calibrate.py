"""The range of every activation that int8 or fp8 quantises, from real or synthetic pixels.

The encoders run in float32 in ONNX Runtime with the inputs of their products as outputs. Kept is
the largest magnitude of each, on the pixels as they are and on the same pixels as white as snow:
what a tile of fields does not show, another place or year will, and a clipped value costs far more
than a coarser step (docs/design/0008 has the figures).
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..packing import Observations, PackedTokens, pack
from ..spec import ModelSpec
from ..weights import Weights
from . import feeds, network
from .form import Form
from .runtime import save, session

PIXELS = 256  # some 10,000 tokens a stream
_SLOTS = 2048  # of one run: bounds what its outputs take
_WHITE = 16_000  # digital number that snow and thin cloud reach, in every band
_STRONG = 1.5  # of the official int16 scale: 7 dB at its middle, 14 near its top
# e4m3's steps are relative, so room above what was seen costs nothing until values become
# subnormal, 2^-15 of the largest: two of those fifteen octaves.
HEADROOM = {"int8": 1.0, "fp8": 4.0}


_SIDE = 32  # pixels of the synthetic tile


class ActivationRanges(NamedTuple):
    """Ranges, and the name of the tile that they come from."""

    source: str
    ranges: dict[str, float]


def synthetic_calibration(weights: Weights, precision: str) -> ActivationRanges:
    """`calibrated_ranges` from the synthetic tile, for those who have no tile at hand."""
    from ..synthetic import synthetic_tile

    window = synthetic_tile(_SIDE, _SIDE).rows(0, _SIDE)
    ranges = calibrated_ranges(weights.spec, weights.tensors, window, precision)
    return ActivationRanges("synthetic tile", ranges)


def calibrated_ranges(
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    observations: Observations,
    precision: str,
    pixels: int = PIXELS,
) -> dict[str, float]:
    """Magnitude that "int8" or "fp8" is to hold of the input of every quantised linear, by name.

    At most ``pixels`` pixels, spread evenly over the window, are read. Raises InputError for a
    window without an observation in one of the streams.
    """
    chosen = _spread(observations, pixels)
    ranges: dict[str, float] = {}
    for window in (chosen, _bright(chosen)):
        s2, s1, _ = pack(window, spec)
        for stream, tokens in (("s2", s2), ("s1", s1)):
            if len(tokens.doy) == 0:
                raise InputError(
                    "calibration: expected observations of Sentinel-2 and Sentinel-1, got none of "
                    f"{stream.upper()}; calibrate on another tile"
                )
            for name, largest in _largest(spec, tensors, stream, tokens).items():
                ranges[name] = max(ranges.get(name, 0.0), largest * HEADROOM[precision])
    return ranges


def _largest(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], stream: str, tokens: PackedTokens
) -> dict[str, float]:
    """The largest magnitude of the input of every linear of the encoder's layers."""
    taps: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "encoder.data"
        model = network.encoder(spec, tensors, stream, Form(layout="dense"), data=data, taps=taps)
        run = session(save(model, Path(scratch) / "encoder.onnx"))
        found = dict.fromkeys(taps, 0.0)
        for _, inputs in feeds.bins(spec, tokens, lambda length: max(1, _SLOTS // length)):
            values = run.run([f"tap:{name}" for name in taps], inputs)
            for name, value in zip(taps, values, strict=True):
                found[name] = max(found[name], float(np.abs(value).max()))
    return found


def _bright(observations: Observations) -> Observations:
    """The same series, every band's of a pixel scaled until its brightest date is white."""
    bands = observations.s2_bands.astype(np.float32)
    brightest = np.maximum(bands.max(axis=0, keepdims=True), 1)
    bands = (bands * np.maximum(_WHITE / brightest, 1)).astype(observations.s2_bands.dtype)

    def stronger(radar: np.ndarray) -> np.ndarray:
        top = np.iinfo(np.int16).max
        return np.clip(radar.astype(np.float32) * _STRONG, 0, top).astype(radar.dtype)

    orbits = tuple(replace(o, bands=stronger(o.bands)) for o in observations.orbits)
    return replace(observations, s2_bands=bands, orbits=orbits)


def _spread(observations: Observations, pixels: int) -> Observations:
    """Evenly spread rows, and of those evenly spread columns."""
    height, width = observations.shape
    rows = max(1, round(height * min(1.0, pixels / (height * width)) ** 0.5))
    columns = max(1, min(width, pixels // rows))
    cut = observations.window(
        slice(None, None, -(-height // rows)), slice(None, None, -(-width // columns))
    )
    orbits = tuple(replace(o, bands=np.ascontiguousarray(o.bands)) for o in cut.orbits)
    return replace(cut, s2_bands=np.ascontiguousarray(cut.s2_bands), orbits=orbits)
