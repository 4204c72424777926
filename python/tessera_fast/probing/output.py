"""A report as a folder: text, JSON, pictures, and maps with a place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from ..drawing.palette import Colour, colour
from ..drawing.quicklook import write_png
from ..errors import StoreError
from ..files import refuse_existing
from ..packages import has
from ..products.files import whole
from ..products.geotiff import Raster, written
from ..version import __version__
from . import figures
from .results import ProbeResults


def save(report: ProbeResults, folder: Path, overwrite: bool) -> Path:
    """Write everything of a report; see `ProbeResults.save`."""
    check_folder(folder, overwrite)
    with whole(folder, overwrite) as out:
        out.mkdir()
        (out / "report.txt").write_text(report.text() + "\n", encoding="utf-8")
        content = json.dumps(report.to_json(), indent=1, allow_nan=False)
        (out / "report.json").write_text(content, encoding="utf-8")
        write_png(out / "scores.png", figures.scores(report))
        if report.task == "classification":
            write_png(out / "confusion.png", figures.confusion(report))
        elif report.maps:
            write_png(out / "scatter.png", figures.scatter(report))
        for i in range(len(report.images) if report.maps else 0):
            name = re.sub(r"[^\w.-]", "_", report.images[i].name)
            write_png(out / f"map_{name}.png", figures.maps(report, i))
            _write_tiff(report, i, out / f"map_{name}.tif")
    return folder


def check_folder(folder: Path, overwrite: bool) -> None:
    """StoreError if a report cannot be put there: something exists, and it may not be replaced or
    is no report."""
    refuse_existing([folder], overwrite)
    if folder.exists() and not (folder / "report.json").is_file():
        raise StoreError(
            f"{folder}: expected a report (report.json is in it) to replace, got something else; "
            "choose another folder"
        )


def _palette(report: ProbeResults) -> dict[int, Colour]:
    """The colours of the picture, by the code of the class."""
    return {c.code: colour(k) for k, c in enumerate(report.classes)}


def _write_tiff(report: ProbeResults, i: int, path: Path) -> None:
    """The map of the embeddings as codes of classes or values; nothing without a place, or without
    rasterio: a note of the report says so."""
    image, values = report.images[i], report.maps[report.name][i]
    if image.crs is None or image.transform is None or not has("rasterio"):
        return
    dtype = "float32"
    if report.task == "classification":
        codes = [*(c.code for c in report.classes), int(report.nodata)]
        kinds = ("uint8", "uint16", "int32", "int64")
        dtype = next(
            k for k in kinds if np.iinfo(k).min <= min(codes) and max(codes) <= np.iinfo(k).max
        )
    tags = {f"CLASS_{c.code}": c.name for c in report.classes}
    tags |= {
        "TESSERA_SOFTWARE": f"tessera_fast {__version__}",
        "PROBE_EMBEDDINGS": report.name,
        "PROBE_HEAD": report.head,
        "PROBE_SPLIT": report.split,
    }
    raster = Raster(
        image.crs,
        image.transform,
        image.height,
        image.width,
        1,
        dtype=dtype,
        nodata=report.nodata,
        names=["class" if report.classes else "value"],
        tags=tags,
        colours=_palette(report) if dtype in ("uint8", "uint16") else {},
    )
    with written(path, raster, overwrite=False) as write:
        write(0, 0, values[None].astype(np.dtype(dtype)))
