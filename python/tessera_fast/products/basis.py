"""One PCA basis for all pictures of an output, from a bounded sample, kept as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..drawing.quicklook import PcaBasis, pca_basis
from ..errors import InputError
from ..store.reader import Embeddings
from ..untrusted.readers import (
    Unreadable,
    local_path,
    local_target,
    read_json,
    shown,
    take,
    take_numbers,
)
from .files import whole
from .parts import OutputPart, Window

_WINDOWS = 64  # read for the sample, evenly over all parts: 2 GiB of codes at most at E = 128
_PIXELS = 100_000  # sampled in all
_IDENTITY = ("model", "weights_sha256", "period")


def basis_of(output: Embeddings, parts: Sequence[OutputPart]) -> PcaBasis:
    """Components and stretch of a sample of all ``parts``; InputError if none has data."""
    windows = [(part, window) for part in parts for _, _, window in part.blocks()]
    holding = [(part, window) for part, window in windows if part.layer.valid(*window).any()]
    if not holding:
        raise InputError(f"{output.path}: no pixel has data, so there is nothing to draw")
    picks = np.unique(np.linspace(0, len(holding) - 1, min(_WINDOWS, len(holding))).astype(int))
    each = _PIXELS // len(picks)
    samples = [_sample(part, window, each) for part, window in (holding[k] for k in picks)]
    return pca_basis(np.concatenate(samples))


def _sample(part: OutputPart, window: Window, count: int) -> np.ndarray:
    """At most ``count`` pixels with data, evenly over the window, (n, E) float32."""
    at = np.flatnonzero(part.layer.valid(*window))
    at = at[np.unique(np.linspace(0, at.size - 1, min(count, at.size)).astype(int))]
    values = part.layer.values(*window)
    return values.reshape(-1, values.shape[-1])[at]


def save_basis(
    basis: PcaBasis, output: Embeddings, path: str | os.PathLike[str], overwrite: bool
) -> None:
    """Write a basis with what made its embeddings."""
    record = {
        "tessera_fast": "pca basis",
        **{k: output.provenance.get(k) for k in _IDENTITY},
        **{k: getattr(basis, k).tolist() for k in ("mean", "components", "low", "high")},
    }
    with whole(local_target(path, "basis"), overwrite) as partial:
        partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")


def load_basis(path: str | os.PathLike[str], output: Embeddings) -> PcaBasis:
    """Read what `save_basis` wrote.

    InputError if it is another file, of another width, or of another model or other weights than
    the output records: colours would then mean nothing.
    """
    dims = output.layers[0].dims
    shapes = {"mean": (dims,), "components": (3, dims), "low": (3,), "high": (3,)}
    try:
        record = read_json(local_path(path, "basis"))
        arrays = {k: _numbers(record, k, shape) for k, shape in shapes.items()}
    except (OSError, Unreadable) as error:
        raise InputError(
            f"{path}: expected a basis of {dims} dimensions that quicklook --save-basis wrote, got "
            f"another file ({error})"
        ) from error
    for key in _IDENTITY:
        ours, its = output.provenance.get(key), record.get(key)
        if ours != its and None not in (ours, its):
            raise InputError(
                f"{path}: is of {key} {shown(its)}, {output.path} of {ours!r}; pictures of "
                "different models or weights cannot be compared"
            )
    return PcaBasis(**arrays)


def _numbers(record: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.array(take_numbers(record, name, shape[0]), np.float64)
    rows = take(record, name, list)
    if len(rows) != shape[0]:
        raise Unreadable(f"{name}: expected {shape[0]} rows, got {len(rows)}")
    return np.stack([_numbers({name: row}, name, shape[1:]) for row in rows])
