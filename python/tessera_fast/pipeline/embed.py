"""The order of things: tile -> row blocks -> packed tokens -> embedding -> int8. Start here.

A tile is worked through in blocks of whole rows, so that memory is set by `memory` and not by the
tile. H, W rows and columns of the tile, h rows of a block, E embedding width.
"""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .. import env
from ..errors import InputError, TesseraError
from ..machine.free_memory import available_bytes
from ..model.model import Model, Prepared, load_model
from ..packing import Observations
from ..progress import Progress, progress_bar
from ..quantization import QuantizedEmbeddings
from ..sizes import binary, parse_bytes
from ..spec import MAX_SEQUENCE, ModelSpec
from ..tile import Tile, open_tile, suspicions
from ..tile.fields import ARRAYS, SCL
from ..untrusted.suggest import checks_keywords, one_of
from .stages import Ahead, Clock

DEFAULT_MEMORY = 1 << 30  # or twice what is set aside, on machines with many threads
# Set aside of `memory` before blocks are sized: the interpreter with numpy and zarr (80 MiB
# measured), and a thread's share of allocator slack beside its workspace.
_FIXED_BYTES = 128 << 20
_THREAD_BYTES = 4 << 20


T = TypeVar("T")
_log = logging.getLogger(__name__)


class RowBlock(NamedTuple):
    """Rows ``start``.. of a tile, encoded."""

    start: int
    # (h, W, E) float32, NaN where a pixel was never observed; or codes (h, W, E), scales (h, W)
    values: np.ndarray | QuantizedEmbeddings
    counts: np.ndarray  # (h, W, 3) uint16 observed dates of Sentinel-2, S1 ascending, descending

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.start + len(self.counts)


@dataclass(frozen=True)
class Settings:
    """What is the same for every tile of a job."""

    dims: int | None = None  # E, or all that the model has
    memory: int | str | None = None  # None: by what is free
    seed: int = 0
    repeats: int = 1
    processes: int = 1  # that share this machine's memory
    period: str | None = None  # "07-01/06-30" where years are not calendar years; for the record


def embed_row_blocks(
    tiles: Iterator[tuple[T, Tile] | None],
    model: Model,
    settings: Settings,
    clock: Clock,
    progress: Callable[[int], None] | None = None,
    *,
    quantized: bool = False,
) -> Generator[tuple[T, RowBlock | TesseraError] | None, None, None]:
    """Encode tiles block by block, top to bottom. Results do not depend on the blocks.

    The next block, of this tile or the next one, is read and packed meanwhile, in a thread that is
    also the one in which ``tiles`` is advanced. In place of a block there may be the error that
    ends its tile. ``quantized`` gives int8 codes and scales, made where the embeddings are.
    ``progress`` is told the pixels done of all tiles. A None among ``tiles`` is passed on.
    """
    width = model.width(settings.dims)
    finished = 0
    failed: list[T] = []  # the tile that was left last
    with Ahead(_prepared(tiles, model, settings, clock), clock, "starved") as ahead:
        for item in ahead:
            if item is None:
                yield None
                continue
            tag, tile, rows, window = item
            del item
            if failed and tag is failed[0]:
                continue
            if isinstance(window, TesseraError):
                failed = [tag]
                yield tag, window
                continue
            shape = (rows.stop - rows.start, tile.width)
            out = _empty(shape[0] * shape[1], width, quantized)
            try:
                with clock.lap("encode"):
                    counts = model.run(window, out, _after(finished, progress))
            except InputError as error:  # of an encoder that packs
                failed = [tag]
                yield tag, InputError(f"{tile.where}, {error}")
                continue
            del window  # before the next but one is read
            finished += shape[0] * shape[1]
            yield tag, RowBlock(rows.start, _as_image(out, shape), counts.reshape(*shape, 3))


def _prepared(
    tiles: Iterator[tuple[T, Tile] | None], model: Model, settings: Settings, clock: Clock
) -> Iterator[tuple[T, Tile, slice, Prepared | TesseraError] | None]:
    """Every block of every tile, its rows read and packed."""
    for item in tiles:
        if item is None:
            yield None
            continue
        tag, tile = item
        rows = slice(0, 0)
        try:
            step = block_rows(tile, model, settings.memory, settings.processes)
            for start in range(0, tile.height, step):
                rows = slice(start, min(start + step, tile.height))
                with clock.lap("read"):
                    raw = tile.rows(rows.start, rows.stop)
                window = _pack(tile, raw, start, model, settings, clock)
                del raw
                yield tag, tile, rows, window
                del window
        except TesseraError as error:
            yield tag, tile, rows, error


def _pack(
    tile: Tile, raw: Observations, start: int, model: Model, settings: Settings, clock: Clock
) -> Prepared:
    try:
        with clock.lap("pack"):
            return model.prepare(
                raw, row0=start, seed=settings.seed, repeats=settings.repeats, binary_masks=True
            )
    except InputError as error:
        raise InputError(f"{tile.where}, {error}") from error


def _empty(pixels: int, width: int, quantized: bool) -> np.ndarray | QuantizedEmbeddings:
    if quantized:
        return QuantizedEmbeddings(np.empty((pixels, width), np.int8), np.empty(pixels, np.float32))
    return np.empty((pixels, width), np.float32)


def _after(pixels: int, progress: Callable[[int], None] | None) -> Callable[[int], None] | None:
    """``progress`` of everything for a block that ``pixels`` come before."""
    return None if progress is None else lambda done: progress(pixels + done)


def check_memory(model: Model, memory: int | str | None) -> None:
    """InputError where ``memory`` is too little whatever the tile."""
    threads, set_aside = _set_aside(model)
    if memory is not None and parse_bytes(memory) < set_aside:
        raise InputError(
            f"memory: {binary(parse_bytes(memory))} cannot hold the work of {threads} threads; "
            f"give at least {(set_aside >> 20) + 2} MiB and what a row of the tile takes, or fewer "
            "threads"
        )


def _set_aside(model: Model) -> tuple[int, int]:
    """Threads, and the bytes that go before any block."""
    threads = env.threads(model.options.threads)
    return threads, _FIXED_BYTES + threads * _workspace_bytes(model.spec)


def block_rows(tile: Tile, model: Model, memory: int | str | None, processes: int = 1) -> int:
    """Rows of a block such that its arrays fit in ``memory``; InputError if not one row does."""
    threads, set_aside = _set_aside(model)
    dates = sum(tile.dates)
    # Of a block in the encoder and one that is read: raw once and packed twice, with a token's day,
    # orbit, multiplicity and step. Of two blocks that are written: values, and codes of one.
    per_pixel = 2 * dates * 12 + 3 * 4 * model.repr_dim + model.repr_dim
    per_row = 3 * tile.bytes_per_row + tile.width * per_pixel
    if memory is None and per_row * tile.height <= _FIXED_BYTES:
        return tile.height  # `_default_memory` is never less
    limit = _default_memory(set_aside, processes) if memory is None else parse_bytes(memory)
    rows = (limit - set_aside) // per_row
    if rows < 1:
        least = (set_aside + per_row + (1 << 20)) >> 20
        raise InputError(
            f"memory: {binary(limit)} cannot hold one row of {tile.name} ({tile.width} pixels, "
            f"{dates} dates) with {threads} threads; give at least {least} MiB, or fewer threads"
        )
    return int(min(rows, tile.height))


def _default_memory(set_aside: int, processes: int) -> int:
    """1 GiB, or more with many threads; half of what is free where that is less."""
    wanted = max(DEFAULT_MEMORY, 2 * set_aside)
    free = available_bytes()
    if free is None:
        return wanted
    return min(wanted, max(free // (2 * processes), set_aside + _FIXED_BYTES))


def _workspace_bytes(spec: ModelSpec) -> int:
    """Of one thread of the cpu back end (csrc/cpu/workspace.h) in the precision that takes most:
    tokens of a block, their int8 beside them, and with a GRU those of a group of pixels."""
    wide = max(3 * spec.d_model, spec.ff_dim)
    block = MAX_SEQUENCE * (3 * spec.d_model + wide + spec.ff_dim // 2)
    group = 2048 * 4 * spec.d_model if spec.needs_steps else 0
    return _THREAD_BYTES + 4 * (block + group)


def _as_image(
    values: np.ndarray | QuantizedEmbeddings, shape: tuple[int, int]
) -> np.ndarray | QuantizedEmbeddings:
    if isinstance(values, QuantizedEmbeddings):
        return QuantizedEmbeddings(values.codes.reshape(*shape, -1), values.scales.reshape(shape))
    return values.reshape(*shape, -1)


@checks_keywords(*ARRAYS, SCL)
def embed(
    tile: Any = None,
    model: str | os.PathLike[str] | Model = "v2-medium",
    *,
    weights: str | os.PathLike[str] | None = None,
    backend: str = "auto",
    precision: str = "auto",
    output: str = "float32",
    dims: int | None = None,
    device: Any = None,
    threads: int | None = None,
    progress: Progress = None,
    memory: int | str | None = None,
    seed: int = 0,
    repeats: int = 1,
    allow_missing_s1: bool = False,
    s1_units: str | None = None,
    s2_offset: str | int = "removed",
    period: Any = None,
    **arrays: Any,
) -> Any:
    """TESSERA embeddings of a tile: (H, W, E) float32, NaN where a pixel was never observed.

    ``tile``: a folder in the official d-pixel layout, a Zarr or netCDF cube, a URL of one, a dict
    of arrays, an xarray.Dataset with named bands, or a Tile; or give the arrays as keywords
    ``bands`` (T, H, W, 10), ``masks``, ``doys``, ``sar_ascending``, ``sar_ascending_doy``,
    ``sar_descending``, ``sar_descending_doy``,
    all in raw units (digital numbers, and Sentinel-1 on the official int16 scale).
    ``model``: a name, a checkpoint's path, or what `load_model` returned; ``weights``, ``backend``,
    ``precision``, ``device`` and ``threads`` are those of `load_model`.
    ``output="int8"`` returns QuantizedEmbeddings(codes (H, W, E) int8, scales (H, W) float32).
    ``dims`` keeps a Matryoshka prefix (v2: 16, 32, 64, 128). ``memory`` bounds what the work takes
    beside the model's weights and the result, as "512MiB" or bytes; None: 1 GiB, more where many
    threads need it, or half of what is free where that is less. ``seed`` and ``repeats`` concern
    v1.0, which draws dates at random. ``allow_missing_s1`` accepts a tile without Sentinel-1.
    ``s1_units``, ``s2_offset`` and ``period`` are those of `open_tile`. Observations that seem to
    be in other units than is said are logged as a warning.
    ``progress``: None shows a bar on a terminal; True, False, or a function of (done, total).

    A Dataset gives a DataArray (y, x, band) with the Dataset's coordinates for float32 output.
    Raises InputError, WeightsError or BackendUnavailable; nothing is written anywhere.
    """
    one_of("output", output, ("float32", "int8"))
    if (tile is None) == (not arrays):
        raise InputError(
            "embed: give either a tile (a folder, dict, Dataset or Tile) or the arrays as keywords "
            f"(bands=, masks=, ...), got {'neither' if tile is None else 'both'}"
        )
    source = open_tile(
        arrays if tile is None else tile,
        allow_missing_s1=allow_missing_s1,
        s1_units=s1_units,
        s2_offset=s2_offset,
        period=period,
    )
    loaded = load_model(
        model, device, weights=weights, backend=backend, precision=precision, threads=threads
    )
    for suspicion in suspicions(source):
        _log.warning("%s: %s", source.where, suspicion)
    shape = (source.height, source.width)
    dtype = np.int8 if output == "int8" else np.float32
    values = np.zeros((*shape, loaded.width(dims)), dtype)
    scales = np.full(shape, np.inf, np.float32)
    with progress_bar(shape[0] * shape[1], f"{source.name} {loaded.label}", progress) as done:
        settings = Settings(dims, memory, seed, repeats)
        blocks = embed_row_blocks(
            iter([(source, source)]), loaded, settings, Clock(), done, quantized=output == "int8"
        )
        for _, block in filter(None, blocks):
            if isinstance(block, TesseraError):
                raise block
            rows = slice(block.start, block.start + len(block.counts))
            if isinstance(block.values, QuantizedEmbeddings):
                values[rows], scales[rows] = block.values
            else:
                values[rows] = block.values
    if output == "int8":
        return QuantizedEmbeddings(values, scales)
    if type(tile).__module__.partition(".")[0] == "xarray":
        from ..tile.dataset_place import as_data_array

        return as_data_array(values, tile)
    return values
