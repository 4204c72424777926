"""The rows of a plan, and the Parquet file that holds them: every value of a file is checked."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, TesseraError
from ..packages import require
from ..tile.georeference import check_crs
from ..tile.tile import OPENING
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import (
    MAX_PATH,
    MAX_SIZE,
    Unreadable,
    parse_json,
    plain_name,
    printable,
    shown,
    take,
    take_numbers,
    take_or_none,
    take_whole,
)

_KEY = b"tessera_fast.plan"  # metadata of the Parquet schema: what a plan holds beside its rows
MOST_WORKERS = 1 << 20  # and shards of a job
_LARGEST = 1 << 24  # pixels a side
_UNPACKED, _RATIO = 16 << 20, 100  # bytes of columns: at most so many, and times the file's
_TEXT = ("name", "source", "crs", "fingerprint")
_LONGEST = 1 << 16  # bytes of a text; a CRS as WKT takes a few thousand
_WHOLE = (
    "s2_dates",
    "s1_asc_dates",
    "s1_desc_dates",
    "pixels",
    "s2_tokens",
    "s1_tokens",
    "bytes_in",
    "bytes_out",
)


@dataclass(frozen=True)
class Calibration:
    """Seconds of a tile: ``per_tile + per_pixel * pixels + per_flop * FLOP``."""

    per_tile: float
    per_pixel: float
    per_flop: float
    source: str  # where the figures come from, for a reader

    def seconds(self, pixels: int, flop: float) -> float:
        return self.per_tile + self.per_pixel * pixels + self.per_flop * flop


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One tile of a plan. Tokens and FLOP are estimates from a sample of the tile's rows."""

    name: str
    source: str  # path or URL for `open_tile`
    year: int | None
    crs: str | None
    transform: tuple[float, ...] | None  # (a, b, c, d, e, f) of the pixel corners
    height: int
    width: int
    s2_dates: int
    s1_asc_dates: int
    s1_desc_dates: int
    pixels: int
    s2_tokens: int
    s1_tokens: int
    flop: float
    bytes_in: int  # of raw observations
    bytes_out: int  # before compression
    fingerprint: str  # of the observations, as Tile.fingerprint() gives it
    seconds: float | None = None

    @property
    def tokens(self) -> int:
        return self.s2_tokens + self.s1_tokens

    def timed(self, seconds: float) -> "PlanRow":
        return replace(self, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Failure:
    """A tile that is not in the plan, and why."""

    source: str
    message: str


def need_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet; TesseraError says how to install them."""
    what = "a plan's file is Parquet, which"
    return require("pyarrow", what, TesseraError), require("pyarrow.parquet", what, TesseraError)


def write_plan(
    path: Path, rows: Sequence[PlanRow], failed: Sequence[Failure], head: dict[str, Any]
) -> None:
    """Write the file of a plan; ``head`` is what it holds beside its rows. OSError, InputError."""
    arrow, parquet = need_pyarrow()
    columns = {
        f.name: _column(arrow, f.name, [getattr(r, f.name) for r in rows]) for f in fields(PlanRow)
    }
    head["failed"] = [{k: printable(v) for k, v in asdict(f).items()} for f in failed]
    about = {_KEY: json.dumps(head, default=str).encode()}
    table = arrow.table(columns).replace_schema_metadata(about)
    parquet.write_table(table, path, write_page_checksum=True)


def parse_plan(data: bytes) -> dict[str, Any]:
    """The fields of the Plan in a file of these bytes; Unreadable for anything else."""
    arrow, parquet = need_pyarrow()
    head, records = _read_parquet(arrow, parquet, data)
    return {
        "rows": list(_checked_rows(records)),
        "failed": [_failure(f) for f in take(head, "failed", list)],
        "options": _options(head),
        "memory": _limits(head),
        "calibration": _calibration(head),
        "weights_bytes": take_whole(head, "weights_bytes", 0, MAX_SIZE),
    }


def _column(arrow: Any, name: str, values: list[Any]) -> Any:
    kind = arrow.int64()
    if name in _TEXT:
        kind = arrow.string()
    elif name in ("flop", "seconds"):
        kind = arrow.float64()
    elif name == "transform":
        kind = arrow.list_(arrow.float64(), 6)
    try:
        return arrow.array(values, kind)
    except (UnicodeEncodeError, OverflowError, arrow.ArrowException) as error:
        raise InputError(
            f"plan: {name} of a tile cannot be kept in a file ({error!a:.200}); text must be "
            "UTF-8 and numbers below 2^63: rename the tile's folder, or correct the number"
        ) from error


def _read_parquet(arrow: Any, parquet: Any, data: bytes) -> tuple[Any, Iterator[dict[str, Any]]]:
    """What a plan's file says beside its rows, and the rows, unchecked."""
    names = [f.name for f in fields(PlanRow)]
    try:  # no metadata of columns: pyarrow 26 ends the process where they are damaged
        file = parquet.ParquetFile(
            arrow.BufferReader(data), read_dictionary=_TEXT, page_checksum_verification=True
        )
        schema, about = file.schema_arrow, file.metadata
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    except damaged() as error:
        raise Unreadable(first_line(error)) from error
    if schema.names != names or _KEY not in (schema.metadata or {}):
        raise Unreadable("a Parquet file of other columns")
    if not 0 <= size <= _UNPACKED + _RATIO * len(data):
        raise Unreadable(f"columns of {size} bytes in a file of {len(data)}")
    return parse_json(schema.metadata[_KEY], len(data)), _records(arrow, file)


def _records(arrow: Any, file: Any) -> Iterator[dict[str, Any]]:
    import pyarrow.compute

    try:
        for batch in file.iter_batches(batch_size=1024):
            for name in _TEXT:  # before they are repeated in every row
                column = batch.column(name)
                texts = getattr(column, "dictionary", column)
                longest = pyarrow.compute.max(pyarrow.compute.binary_length(texts)).as_py()
                if longest is not None and longest > _LONGEST:
                    raise Unreadable(f"{name}: {longest} bytes, expected at most {_LONGEST}")
            yield from batch.to_pylist()
    except Unreadable:
        raise
    except damaged() as error:
        raise Unreadable(first_line(error)) from error


def _checked_rows(records: Iterable[dict[str, Any]]) -> Iterator[PlanRow]:
    names: set[str] = set()
    for number, record in enumerate(records, 1):
        try:
            row = _checked_row(record)
            if row.name in names:
                raise Unreadable("another row has this name")
        except (Unreadable, InputError) as error:
            raise Unreadable(f"row {number}, {shown(record.get('name'))}: {error}") from error
        names.add(row.name)
        yield row


def _checked_row(record: dict[str, Any]) -> PlanRow:
    """A row of a file as a tile can have it; Unreadable or InputError otherwise."""
    name, source = take(record, "name", str), take(record, "source", str)
    if not plain_name(name):
        raise Unreadable("expected a name that a file can have")
    if not source or "\0" in source or len(source) > MAX_PATH:
        raise Unreadable(f"source: expected a path or URL, got {shown(source)}")
    crs, year, transform = take_or_none(record, "crs", str), record.get("year"), None
    if crs is not None:
        check_crs(crs)
    if record.get("transform") is not None:
        transform = take_numbers(record, "transform", 6)
        a, b, _, d, e, _ = transform
        if not 0 < abs(a * e - b * d) < math.inf:
            raise Unreadable(f"transform: expected pixels of some size, got {shown(transform)}")
    whole = {n: take_whole(record, n, 0, MAX_SIZE) for n in _WHOLE}
    sizes = {n: take_whole(record, n, 1, _LARGEST) for n in ("height", "width")}
    if whole["pixels"] != sizes["height"] * sizes["width"]:
        raise Unreadable(f"pixels: expected height x width, got {shown(whole['pixels'])}")
    flop, seconds = take(record, "flop", float), take_or_none(record, "seconds", float)
    if flop < 0 or (seconds is not None and seconds < 0):
        raise Unreadable("flop and seconds: expected numbers of at least 0")
    return PlanRow(
        name=name,
        source=source,
        crs=crs,
        transform=transform,
        year=None if year is None else take_whole(record, "year", 1, 9999),
        fingerprint=take(record, "fingerprint", str),
        flop=flop,
        seconds=seconds,
        **whole,
        **sizes,
    )


def _failure(value: Any) -> Failure:
    record = value if isinstance(value, dict) else {}
    return Failure(take(record, "source", str), take(record, "message", str))


def _limits(head: dict[str, Any]) -> tuple[int, int] | None:
    if head.get("memory") is None:
        return None
    least, used = take_numbers(head, "memory", 2)
    return int(least), int(used)


def _calibration(head: dict[str, Any]) -> Calibration | None:
    record = take_or_none(head, "calibration", dict)
    if record is None:
        return None
    speed = [take(record, n, float) for n in ("per_tile", "per_pixel", "per_flop")]
    if min(speed) < 0:
        raise Unreadable(f"calibration: expected seconds of at least 0, got {shown(record)}")
    return Calibration(speed[0], speed[1], speed[2], take(record, "source", str))


def _options(head: dict[str, Any]) -> dict[str, Any]:
    options = take(head, "options", dict)
    take(options, "model", str)
    take_whole(options, "workers", 1, MOST_WORKERS)
    take_or_none(options, "dims", int)
    unknown = set(take(options, "open", dict)) - set(OPENING)
    if unknown:
        raise Unreadable(f"expected options of open_tile, got {shown(sorted(unknown))}")
    return options
