"""A folder of .npy files by itself: every file is read, its pixels are held against the rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..progress import Progress, progress_bar
from ..untrusted.readers import Unreadable, map_npy, read_json
from .findings import Check
from .places import SCALES, markers, state_folder
from .state_check import check_markers
from .value_rules import Fault, float_faults, quantized_faults

_PIXELS = 1 << 16  # read at once: 32 MiB of float32 at E = 128


def check_folder(out: Check, progress: Progress) -> None:
    """Add what is wrong with the .npy files in the folder ``out.path``."""
    ours = state_folder(out.path).exists()
    again = "Remove it and run the same `tessera-fast embed` again" if ours else "Write it again"
    arrays = {
        f: a for f in sorted(out.path.glob("*.npy")) if (a := _opened(out, f, again)) is not None
    }
    tiles = {f: a for f, a in arrays.items() if a.ndim == 3}
    for file in arrays.keys() - tiles.keys():
        whose = file.with_name(f"{file.stem.removesuffix(SCALES)}.npy")
        if not file.stem.endswith(SCALES) or not whose.exists():
            out.problem(
                file,
                f"holds {arrays[file].shape} {arrays[file].dtype}, which are neither "
                "embeddings (H, W, E) nor the scales of any",
                "Remove it",
            )
    with progress_bar(sum(a.shape[0] * a.shape[1] for a in tiles.values()), "check", progress) as (
        tick
    ):
        before = 0
        for file, values in tiles.items():
            for rows in _tile(out, file, values, arrays, again):
                tick(before + rows * values.shape[1])
            before += values.shape[0] * values.shape[1]

    if (record := _record(out)) is not None:
        check_markers(out, record, None)
        known = {m.stem for m in markers(out.path)}
        if foreign := [f.name for f in tiles if f.stem not in known]:
            out.notes.append(f"without a marker, so not known to be whole: {', '.join(foreign)}")


def _record(out: Check) -> dict[str, Any] | None:
    """What the folder says of its embeddings; None without a record."""
    file = state_folder(out.path) / "provenance.json"
    try:
        record = read_json(file)
    except FileNotFoundError:
        return None
    except (OSError, Unreadable) as error:
        out.problem(file, f"cannot be read ({error})", "Write the tiles to another folder")
        return None
    return record


def _opened(out: Check, file: Path, again: str) -> np.ndarray | None:
    try:
        array = map_npy(file)
        if 0 in array.shape:
            raise Unreadable(f"an array without values, of shape {array.shape}")
        return array
    except (OSError, ValueError) as error:  # ValueError: no array at all, or an empty one
        out.problem(file, f"cannot be read ({file.stat().st_size:,} bytes: {error})", again)
        return None


def _tile(
    out: Check, file: Path, values: np.ndarray, arrays: dict[Path, np.ndarray], again: str
) -> Iterator[int]:
    """Look at one tile; yields how many rows have been looked at."""
    out.count("tiles")
    height, width, _ = values.shape
    scales: np.ndarray | None = None
    if values.dtype == np.int8:
        beside = file.with_name(f"{file.stem}{SCALES}.npy")
        scales = arrays.get(beside)
        if scales is None:
            if not beside.exists():
                out.problem(file, f"int8 codes without {beside.name} beside them", again)
            return
        if scales.shape != (height, width) or scales.dtype != np.float32:
            out.problem(
                beside,
                f"expected float32 {(height, width)} to match {file.name}, got "
                f"{scales.dtype} {scales.shape}",
                again,
            )
            return
    elif values.dtype != np.float32:
        out.problem(file, f"expected int8 or float32, got {values.dtype}", again)
        return
    seen: set[str] = set()
    step = max(1, _PIXELS // max(1, width))
    for start in range(0, height, step):
        part = np.array(values[start : start + step])
        if scales is None:
            valid = np.isfinite(part).all(axis=-1)
            faults: Iterator[Fault] = float_faults(part)
        else:
            valid = np.isfinite(scales[start : start + step])
            ours = state_folder(out.path).exists()
            faults = quantized_faults(part, np.array(scales[start : start + step]), ours=ours)
        out.count("pixels with data", int(valid.sum()))
        for where, what in faults:
            if where.any() and what not in seen:
                seen.add(what)
                row, column = (int(v) for v in np.argwhere(where)[0])
                out.problem(
                    f"{file}, row {start + row} column {column} and perhaps more", what, again
                )
        yield min(start + step, height)
