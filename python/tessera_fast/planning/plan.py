"""What a job would read, compute and write, before it is run: `tf.plan`, `tessera-fast plan`.

Tiles are opened one at a time, so the memory of a plan does not grow with them but for a row each.
Tokens are counted in a sample of a tile's rows, by the packer itself, and scaled to all its pixels.
"""

import math
import os
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from .. import env
from ..errors import BackendUnavailable, InputError, TesseraError
from ..model.flop import work
from ..model.model import Model
from ..packages import has
from ..packing import pack
from ..progress import Progress, progress_bar
from ..spec import NAMED, ModelSpec
from ..store import TileKey, zone
from ..tile import Tile, open_tile, unplaced
from ..untrusted.numbers import whole_number
from ..untrusted.readers import local_path, shown
from ..untrusted.suggest import checks_keywords, keywords_of, one_of
from ..version import __version__
from ..weights import Weights, spec_of
from .rate import calibrate_rate, nominal
from .rows import MOST_WORKERS, Calibration, Failure, PlanRow
from .sources import absolute, listed
from .table import Plan

SAMPLE_ROWS = 4  # of a tile: 0.8 % of one of 500 rows, in which tokens come within 2 % of all
_SMALL = 1024  # pixels of a tile that is read whole
_MOST_RATE = 1e15  # px/s


@checks_keywords(*keywords_of(open_tile))
def plan(
    tiles: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: str | os.PathLike[str] | Model = "v2-medium",
    *,
    backend: str = "auto",
    precision: str = "auto",
    device: Any = None,
    threads: int | None = None,
    dims: int | None = None,
    out: str | os.PathLike[str] | None = None,
    int8: bool = False,
    year: int | None = None,
    allow_missing_s1: bool = False,
    workers: int = 1,
    calibrate: bool = True,
    rate: float | None = None,
    on_error: str = "raise",
    progress: Progress = None,
    **opening: Any,
) -> Plan:
    """Open every tile and say what embedding them takes: pixels, tokens, bytes, memory and time.

    ``tiles``: paths or URLs that `open_tile` takes, folders of tiles, or ``@list.txt``; ``year``,
    ``allow_missing_s1`` and whatever else is given are passed on to `open_tile`. ``model``: a
    released name, a checkpoint's path, of which only the sizes matter, or a loaded model. ``out``
    and ``int8`` are those of the job: for a store (its name ends in .zarr) a tile that cannot be
    placed is refused; without ``out`` a store is assumed where zarr is installed. ``workers``:
    processes that share the tiles, each on a machine of its own like this one.

    Time is measured: ``backend``, ``precision``, ``device`` and ``threads``, as in `load_model`,
    encode pixels of the plan's own tiles with made-up parameters for about three seconds; no
    weights are needed. ``rate`` (px/s of one worker, from elsewhere) takes its place, and with
    ``calibrate=False`` there is no estimate of time.

    ``on_error="skip"`` goes on at a tile that cannot be opened, or whose name an earlier one has,
    and lists it in ``failed``. Raises InputError for such a tile otherwise, for no tile at all and
    for impossible options, WeightsError for an unreadable checkpoint, BackendUnavailable where
    ``calibrate`` asks for a back end that cannot run here.
    """
    _check(workers, rate, on_error, threads)
    sources = list(listed(_checked(tiles)))
    if not sources:
        raise InputError("plan: expected at least one tile, got none")
    spec = _spec(model)
    width = _width(spec, dims)
    in_store = has("zarr") if out is None else local_path(out, "out").suffix == ".zarr"
    prefixes = tuple(d for d in spec.matryoshka if d < width) if in_store else ()
    stored = _bytes_per_pixel(width, prefixes, in_store, int8)
    opened = {"year": year, "allow_missing_s1": allow_missing_s1, **opening}

    rows: list[PlanRow] = []
    failed: list[Failure] = []
    widest, names = (0, ""), dict[str, str]()
    with progress_bar(len(sources), "opening tiles", progress) as done:
        for number, item in enumerate(sources, 1):
            source = item.given
            try:
                if item.error is not None:
                    raise item.error
                tile = open_tile(source, **opened)
                row = _row(tile, source, spec, stored, out is not None and in_store)
                if row.name in names:
                    raise InputError(
                        f"{source}: expected tiles of different names, got {row.name!r} of "
                        f"{names[row.name]} again; rename a folder, or plan them apart"
                    )
            except TesseraError as error:
                if on_error == "raise":
                    raise
                failed.append(Failure(source, str(error)))
            else:
                names[row.name] = source
                rows.append(row)
                widest = max(widest, (_row_size(tile), source))
            done(number)
    rows.sort(key=lambda r: (-(r.s2_tokens + r.s1_tokens), r.name))

    limits: tuple[int, int] | None = None
    speed: Calibration | None = None
    if rows:
        limits = _memory(open_tile(widest[1], **opened), spec, threads)
    if rows and rate is not None:
        speed = nominal(rate, rows)
    elif rows and calibrate:
        try:
            speed = calibrate_rate(
                rows,
                model if isinstance(model, Model) else spec,
                backend=backend,
                precision=precision,
                device=device,
                threads=threads,
                width=width,
                prefixes=prefixes,
                in_store=in_store,
                int8=int8,
                opening=opened,
            )
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"{error}. To plan for another machine give its rate in px/s (rate=, --rate), or "
                "leave time out (calibrate=False, --no-calibrate)"
            ) from error
    if speed is not None:
        rows = [r.timed(speed.seconds(r.pixels, r.flop)) for r in rows]
    options = {
        "model": spec.name if spec == NAMED.get(spec.name) else absolute(_name(model)),
        "backend": backend,
        "precision": precision,
        "threads": threads,
        "dims": dims,
        "device": None if device is None else str(device),
        "out": None if out is None else os.fspath(out),
        "int8": int8,
        "workers": workers,
        "open": opened,
        "package_version": __version__,
    }
    return Plan(rows, failed, options, limits, speed, 4 * _parameters(spec))


def _check(workers: int, rate: float | None, on_error: str, threads: int | None) -> None:
    whole_number("workers", workers, 1, MOST_WORKERS)
    if threads is not None:
        env.threads(threads)
    if rate is not None:
        number = isinstance(rate, int | float | np.number) and not isinstance(rate, bool)
        if not number or not 0 < rate <= _MOST_RATE:
            raise InputError(f"rate: expected px/s above 0, got {shown(rate)}")
    one_of("on_error", on_error, ("raise", "skip"))


def _checked(tiles: Any) -> list[str | os.PathLike[str]]:
    many = isinstance(tiles, Iterable) and not isinstance(tiles, str | os.PathLike)
    given = list(tiles) if many else [tiles]
    for source in given:
        if not isinstance(source, str | os.PathLike):
            raise InputError(
                "plan: expected paths or URLs of tiles, which another process can open too, got "
                f"{type(source).__name__}; write the tile to a folder first"
            )
    return given


def _name(model: str | os.PathLike[str] | Model) -> str:
    return model.weights.source if isinstance(model, Model) else os.fspath(model)


def _spec(model: str | os.PathLike[str] | Model) -> ModelSpec:
    """The sizes and rules of a model; of a checkpoint its values are not read."""
    if isinstance(model, Model):
        return model.spec
    return spec_of(model)


def _width(spec: ModelSpec, dims: int | None) -> int:
    return _sizes_only(spec, None).width(dims)


def _sizes_only(spec: ModelSpec, threads: int | None) -> Model:
    """A model without parameters or engine, for what reads its sizes alone."""
    from ..backends.base import Encoder, RunOptions

    weights = Weights(spec, {}, "", "untrained:0")
    return Model(weights, "cpu", cast(Encoder, None), RunOptions(threads=threads))


def _bytes_per_pixel(width: int, prefixes: tuple[int, ...], in_store: bool, int8: bool) -> int:
    """Of an output, uncompressed: codes, their prefixes, a scale, three counts; or values."""
    if in_store:
        return width + sum(prefixes) + 4 + 3 * 2
    return width + 4 if int8 else 4 * width


def _row(tile: Tile, source: str, spec: ModelSpec, stored: int, placed: bool) -> PlanRow:
    crs, transform = _place(tile, placed)
    pixels = tile.height * tile.width
    s2, s1, flop = _tokens(tile, spec)
    t_s2, t_asc, t_desc = tile.dates
    return PlanRow(
        name=tile.name,
        source=source,
        year=tile.year,
        crs=crs,
        transform=transform,
        height=tile.height,
        width=tile.width,
        s2_dates=t_s2,
        s1_asc_dates=t_asc,
        s1_desc_dates=t_desc,
        pixels=pixels,
        s2_tokens=round(s2),
        s1_tokens=round(s1),
        flop=flop,
        bytes_in=tile.bytes_per_row * tile.height,
        bytes_out=stored * pixels,
        fingerprint=tile.fingerprint(),
    )


def _place(tile: Tile, needed: bool) -> tuple[str | None, tuple[float, ...] | None]:
    """CRS and transform. Where they are not ``needed``, what cannot be read counts as absent."""
    try:
        crs, transform = tile.crs, tile.transform
    except TesseraError:
        if needed:
            raise
        return None, None
    reason = unplaced(tile) if needed else None
    if reason is not None:
        raise InputError(
            f"{tile.where}: {reason}. Or write .npy files (an output name without .zarr)"
        )
    if needed:
        where = {"crs": crs, "transform": cast(Any, transform), "year": tile.year}
        zone.place(TileKey(tile.name, tile.height, tile.width, "", **where))
    return crs, transform


def _tokens(tile: Tile, spec: ModelSpec) -> tuple[float, float, float]:
    """Estimated Sentinel-2 and Sentinel-1 tokens of all pixels, and the FLOP to encode them."""
    H, W = tile.height, tile.width
    if H * W <= _SMALL or H <= SAMPLE_ROWS:
        bands = [(0, H)]
    else:
        middles = [(2 * i + 1) * H // (2 * SAMPLE_ROWS) for i in range(SAMPLE_ROWS)]
        bands = [(row, row + 1) for row in middles]
    totals = [0.0, 0.0, 0.0]
    for start, stop in bands:
        try:
            s2, s1, _ = pack(tile.rows(start, stop), spec, row0=start, binary_masks=True, threads=1)
        except InputError as error:
            raise InputError(f"{tile.where}, {error}") from error
        found = (s2.offsets[-1], s1.offsets[-1], sum(work(spec, s2, s1).values()))
        totals = [a + float(b) for a, b in zip(totals, found, strict=True)]
    scale = H / sum(stop - start for start, stop in bands)
    return totals[0] * scale, totals[1] * scale, totals[2] * scale


def _row_size(tile: Tile) -> int:
    """What grows with the memory that one row takes."""
    return 2 * tile.bytes_per_row + 12 * tile.width * sum(tile.dates)


def _memory(tile: Tile, spec: ModelSpec, threads: int | None) -> tuple[int, int]:
    """The least working memory that embeds ``tile``, and what is used where none is set."""
    from ..pipeline.embed import block_rows

    model = _sizes_only(spec, env.threads(threads))
    rows = block_rows(tile, model, None)

    def enough_for(rows: int) -> int:
        low, high = 0, 1 << 24  # MiB
        while high - low > 1:
            middle = (low + high) // 2
            try:
                fits = block_rows(tile, model, middle << 20) >= rows
            except InputError:
                fits = False
            low, high = (low, middle) if fits else (middle, high)
        return high << 20

    return enough_for(1), enough_for(rows)


def _parameters(spec: ModelSpec) -> int:
    return sum(math.prod(shape) for shape in spec.parameter_shapes().values())
