"""What became of a job: of each tile, and of the whole. It can be kept as JSON."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..errors import StoreError
from ..machine.notebook import table
from ..products.files import check_writable, whole
from ..store import Provenance
from ..untrusted.readers import local_path, read_start
from .runner import TileReport

_BEGINNING = b'{\n "out": '  # of a report's file


@dataclass
class JobReport:
    """What became of a job's tiles, and where its time went.

    Every tile of the job, or of its shard, is in ``tiles`` once.
    """

    out: str
    tiles: list[TileReport] = field(default_factory=list)
    provenance: Provenance | None = None  # None: there was nothing to do, or no model was loaded
    seconds: dict[str, float] = field(default_factory=dict)  # of every stage, over all processes
    wall: float = 0.0
    joules: float | None = None  # of this machine's processors meanwhile, where they are counted
    error: str | None = None  # what ended the job before its end
    warnings: list[str] = field(default_factory=list)  # of the job, not of a tile

    def count(self, state: str) -> int:
        """Tiles that are "done", "skipped", "failed" or "pending"."""
        return sum(tile.state == state for tile in self.tiles)

    def end(self, pending: Iterable[TileReport], error: BaseException | None) -> None:
        """Add the tiles that were not reached, and what ended the job."""
        self.tiles.extend(pending)
        if error is not None:
            self.error = f"{type(error).__name__}: {error}".removesuffix(": ")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what became of every tile as JSON, whole or not at all.

        Missing folders are made. StoreError where it cannot be written.
        """
        tiles = []
        for tile in self.tiles:
            record = {f.name: getattr(tile, f.name) for f in fields(tile)}
            tiles.append({**record, "error": None if tile.error is None else str(tile.error)})
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        made = None if self.provenance is None else self.provenance.to_json()
        text = json.dumps({**record, "provenance": made, "tiles": tiles}, indent=1)
        target = report_path(path, self.out)
        with whole(target, overwrite=True) as partial:
            partial.write_text(text, encoding="ascii")

    def _repr_html_(self) -> str:
        """What a notebook shows: the tiles, and the summary below them."""
        rows = [
            (
                t.name,
                t.state,
                f"{t.pixels:,}",
                f"{t.seconds:.1f} s",
                "; ".join([*t.warnings, *([] if t.error is None else [str(t.error)])]),
            )
            for t in self.tiles
        ]
        head = ("tile", "state", "pixels", "time", "what to mind")
        return table(f"embeddings in {self.out}", rows, head, self.summary().splitlines())

    def summary(self) -> str:
        """What was done, and how busy the encoder was, as two lines of text."""
        warnings = "".join(f"\nwarning: {warning}" for warning in self.warnings)
        if not self.tiles:
            return f"no tile is to be embedded -> {self.out}{warnings}"
        made = ""
        if self.provenance is not None:
            p = self.provenance
            model = p.model if p.trained else f"{p.model} (untrained)"
            made = f" with {model} ({p.backend}, {p.precision})"
        text = f"{self.count('done')} of {len(self.tiles)} tiles embedded{made} in "
        text += f"{self.wall:.1f} s -> {self.out}"
        for state, said in (
            ("skipped", "done before"),
            ("failed", "failed"),
            ("pending", "not reached"),
        ):
            text += f"; {self.count(state)} {said}" if self.count(state) else ""
        text += warnings
        if not self.count("done"):
            return text
        if "run" not in self.seconds:  # of workers that were killed it is not known
            return text
        spent = dict(self.seconds)
        run, starved, blocked = (spent.pop(name, 0.0) for name in ("run", "starved", "blocked"))
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
        return (
            f"{text}\nencoder busy {spent.get('encode', 0.0) / run:.0%} of {run:.1f} s; it waited "
            f"{starved:.1f} s for input and {blocked:.1f} s for output\n({stages})"
        )


def report_path(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Where the report of a job that writes ``out`` lies, links followed.

    StoreError for a folder, a device, a place within a store, or a file that is no report: one of
    the same job run again takes the place of the earlier one. InputError for what is no path.
    """
    target = Path(os.path.realpath(local_path(path, "report")))
    output = Path(os.path.realpath(local_path(out, "out")))
    if output.suffix == ".zarr" and output in (target, *target.parents):
        raise StoreError(f"{path}: a report cannot lie in the store {output}; write it beside")
    if target.exists() and not target.is_file():
        raise StoreError(f"{path}: the report needs the name of a file, got one of another kind")
    if target.exists() and not _may_be_replaced(target):
        raise StoreError(f"{path}: exists and is no report of a job; give the report another name")
    return target


def _may_be_replaced(file: Path) -> bool:
    """Whether a file is empty, or begins as `JobReport.save` does."""
    try:
        return read_start(file, len(_BEGINNING)) in (b"", _BEGINNING)
    except OSError as error:
        raise StoreError(f"{file}: the report cannot be written there ({error})") from error


def check_report(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """StoreError where a report could not be written to ``path`` at the end of the job."""
    check_writable(report_path(path, out))
