"""How long a plan takes here: pixels of its own tiles are encoded, a tile is written, timed.

Speed does not depend on what a model's parameters are, so made-up ones do, and no weights are
needed. A tile's time is a constant, a part that grows with its pixels (writing) and one that grows
with its FLOP (encoding); the third is nearly all of it.
"""

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import backends, env
from ..backends.base import RunOptions
from ..errors import StoreError
from ..model.flop import work
from ..model.model import Model
from ..packing import Observations, pack
from ..quantization import QuantizedEmbeddings
from ..spec import ModelSpec
from ..store import Provenance, TileKey, open_output
from ..tile import Tile, open_tile
from ..weights import Weights
from .rows import Calibration, PlanRow

SECONDS = 2.5  # of encoding
_SAMPLES = 4  # tiles of different sizes
_PIECE = 64  # pixels of a thread, where a tile gives them
# More parameters than this are not made and packed for a calibration (2 GB, half a minute), but
# those of a model with one layer a stream, whose FLOP are of the same kinds and shapes.
_MOST_PARAMETERS = 120_000_000


def nominal(rate: float, rows: Sequence[PlanRow]) -> Calibration:
    """``rate`` px/s over all ``rows``, of which those with more to compute take longer."""
    flop = sum(r.flop for r in rows)
    seconds = sum(r.pixels for r in rows) / rate
    source = "at the rate that was given"
    if flop == 0:
        return Calibration(0.0, 1 / rate, 0.0, source)
    return Calibration(0.0, 0.0, seconds / flop, source)


def calibrate_rate(
    rows: Sequence[PlanRow],
    model: Model | ModelSpec,
    *,
    backend: str,
    precision: str,
    device: Any,
    threads: int | None,
    width: int,
    prefixes: tuple[int, ...],
    in_store: bool,
    int8: bool,
    opening: Mapping[str, Any],
    seconds: float = SECONDS,
) -> Calibration:
    """Measure on tiles of ``rows`` (largest first). A loaded ``model`` runs as it is.

    ``width`` and ``prefixes`` of the embedding, ``in_store`` and ``int8`` say what is written.
    Raises BackendUnavailable where the back end, precision or device cannot run here.
    """
    if isinstance(model, Model):
        loaded = model
    else:
        place = None if device is None or str(device) == "auto" else str(device)
        loaded = made_up_model(model, backend, RunOptions(precision, place, threads))
    try:
        picks = sorted({round(i * (len(rows) - 1) / (_SAMPLES - 1)) for i in range(_SAMPLES)})
        used = env.threads(loaded.options.threads)
        tiles = [open_tile(rows[i].source, **opening) for i in picks]
        per_flop = _seconds_per_flop(loaded, tiles, used, seconds)
    finally:
        if not isinstance(model, Model):
            loaded.close()
    facts = [str(v) for k, v in loaded.provenance().items() if k in ("isa", "device")]
    if loaded.backend in ("cpu", "reference"):
        facts.append(f"{used} thread{'s' * (used > 1)}")
    where = ", ".join([f"{loaded.backend} {loaded.precision}", *facts])
    per_tile, per_pixel = _writing(width, prefixes, in_store, int8)
    return Calibration(per_tile, per_pixel, per_flop, f"measured here: {where}")


class _MadeUp(Mapping[str, np.ndarray]):
    """Parameters of the right sizes, drawn from one block of numbers: quick for any model."""

    def __init__(self, spec: ModelSpec) -> None:
        self._shapes = spec.parameter_shapes()
        self._block = np.random.RandomState(0).standard_normal(65_537).astype(np.float32)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        values = np.resize(self._block, shape)
        values /= np.float32(math.sqrt(shape[-1]))  # products keep the size of what goes in
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def made_up_model(spec: ModelSpec, backend: str, running: RunOptions) -> Model:
    """A model that runs as ``spec`` does, and means nothing; of a huge one a layer a stream."""
    if sum(math.prod(shape) for shape in spec.parameter_shapes().values()) > _MOST_PARAMETERS:
        spec = replace(spec, num_layers=1, fusion_layers=min(spec.fusion_layers, 1))
    weights = Weights(spec, _MadeUp(spec), "", "untrained:0")
    name, encoder = backends.load(backend, spec, weights, running)
    return Model(weights, name, encoder, running)


def _seconds_per_flop(model: Model, tiles: Sequence[Tile], threads: int, seconds: float) -> float:
    """Pixels from the middle of ``tiles``, from the disk to int8, for about ``seconds`` in all."""
    least = 2 * threads  # pixels that keep all threads busy
    _encode(model, tiles[0], 1)  # compiles, loads libraries, touches memory
    pixels = least
    while True:  # as many as tell a rate
        took, flop = _encode(model, tiles[0], pixels)
        if took > seconds / 25 or pixels >= tiles[0].height * tiles[0].width:
            break
        pixels *= 4
    # of a slow model one piece: recurrent layers are slower where a thread has few pixels
    pieces = int(seconds / took * pixels / (_PIECE * threads))
    tiles = tiles[: max(pieces, 1)]
    rate, spent, done = flop / took, 0.0, 0.0  # FLOP/s
    for number, tile in enumerate(tiles):
        share = (seconds - spent) / (len(tiles) - number)
        if share <= 0:
            break
        per_pixel = max(_flop(model, _window(tile, least)) / least, 1.0)
        took, flop = _encode(model, tile, max(int(share * rate / per_pixel), least))
        spent, done = spent + took, done + flop
        rate = max(done, 1.0) / spent
    return spent / max(done, 1.0)


def _window(tile: Tile, pixels: int) -> Observations:
    """About so many pixels of the middle of a tile: whole rows, or a part of one."""
    rows = min(max(pixels // tile.width, 1), tile.height)
    columns = min(pixels, tile.width)
    top, left = (tile.height - rows) // 2, (tile.width - columns) // 2
    return tile.rows(top, top + rows).window(slice(None), slice(left, left + columns))


def _flop(model: Model, window: Observations) -> float:
    s2, s1, _ = pack(window, model.spec, threads=1)
    return float(sum(work(model.spec, s2, s1).values()))


def _encode(model: Model, tile: Tile, pixels: int) -> tuple[float, float]:
    """Seconds and FLOP of about so many pixels of a tile."""
    started = time.perf_counter()
    window = _window(tile, pixels)
    count = window.shape[0] * window.shape[1]
    out = QuantizedEmbeddings(
        np.empty((count, model.repr_dim), np.int8), np.empty(count, np.float32)
    )
    model.encode(window, out, binary_masks=True)
    return time.perf_counter() - started, _flop(model, window)


def _writing(
    width: int, prefixes: tuple[int, ...], in_store: bool, int8: bool
) -> tuple[float, float]:
    """Seconds to write a tile to an output of this kind: of each, and of each of its pixels."""
    dtype = "int8" if in_store or int8 else "float32"
    provenance = Provenance("calibration", "", "", False, "", width, dtype, prefixes)
    sides = (16, 16, 16, 16, 256)  # the first makes the output; the last fills a shard of a store
    keys = [
        TileKey(
            f"tile{i}", n, n, "", 2000, "EPSG:32631", (10.0, 0.0, 5e5 + 2560 * i, 0.0, -10.0, 5e6)
        )
        for i, n in enumerate(sides)
    ]
    random = np.random.RandomState(0)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="tessera_fast_") as folder:
        output = open_output(Path(folder) / ("out.zarr" if in_store else "out"), keys, provenance)
        with contextlib.closing(output):
            for key, n in zip(keys, sides, strict=True):
                noise = np.frombuffer(random.bytes(n * n * width), np.int8)
                values = noise.reshape(n, n, width).astype(dtype, copy=False)
                scales = np.full((n, n), 0.02, np.float32) if dtype == "int8" else None
                counts = np.full((n, n, 3), 30, np.uint16)
                started = time.perf_counter()
                writer = output.begin(key)
                if writer is None:
                    raise StoreError(f"{folder}: another process took a tile of this calibration")
                writer.write_rows(0, values, scales, counts)
                writer.commit()
                seconds.append(time.perf_counter() - started)
    small, large = statistics.median(seconds[1:-1]), seconds[-1]
    per_pixel = max(large - small, 0.0) / (sides[-1] ** 2 - sides[1] ** 2)
    return max(small - per_pixel * sides[1] ** 2, 0.0), per_pixel
