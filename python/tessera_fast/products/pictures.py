"""`tf.picture`: an output in false colours, in one basis everywhere, as PNG and as COG."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..drawing.quicklook import PcaBasis, pca_image, side_by_side, stacked, write_png
from ..errors import InputError
from ..files import refuse_existing
from ..progress import Progress, progress_bar
from ..store.reader import Embeddings, Layer, open_embeddings
from ..untrusted.readers import local_target
from ..untrusted.suggest import checks_keywords
from .basis import basis_of, load_basis, save_basis
from .geotiff import Raster, tags, written
from .parts import OutputPart, clusters, parts, placed

_PANELS = 12  # of a picture; the largest
_LEAST = 200  # pixels of a panel's width, for its caption
_GAP = 4  # pixels between panels


@checks_keywords()
def picture(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    cog: str | os.PathLike[str] | None = None,
    year: int | None = None,
    layer: str | None = None,
    tiles: Sequence[str] | None = None,
    basis: str | os.PathLike[str] | PcaBasis | None = None,
    save: str | os.PathLike[str] | None = None,
    size: int = 2000,
    overwrite: bool = False,
    progress: Progress = None,
) -> PcaBasis:
    """Draw the first three principal components of an output's embeddings; the basis used.

    ``out``: a PNG of at most about ``size`` pixels a side. Tiles that touch are one panel, cropped
    to them and captioned; all panels have one scale. At most 12 panels, the largest. ``cog``: a
    georeferenced RGBA COG of one layer, full size. ``year``, ``layer`` ("utm31/2024"), ``tiles``:
    draw only those. ``basis``: of `save`, a JSON file, so that pictures of two outputs compare;
    None: of a sample of what is drawn, at most 64 windows. Captions say UNTRAINED where the weights
    are; then colours mean nothing.

    Raises InputError if there is nothing to draw, or the COG would hold more than one layer;
    StoreError if a file exists and ``overwrite`` is False, or cannot be written.
    """
    if out is None and cog is None and save is None:
        raise InputError("picture: expected a PNG, a COG or a basis to write, got none")
    if size < 100:
        raise InputError(f"size: expected at least 100 pixels, got {size}")
    files = {
        k: local_target(v, k)
        for k, v in (("png", out), ("cog", cog), ("basis", save))
        if v is not None
    }
    refuse_existing(list(files.values()), overwrite)
    output = open_embeddings(store)
    chosen = parts(output, tiles=tiles, years=None if year is None else [year])
    if layer is not None:
        output.layer(layer)  # StoreError lists those that are there
        chosen = [part for part in chosen if part.layer.name == layer]
    if not chosen:
        raise InputError(f"{output.path}: no tile is of year {year} and layer {layer}")
    layers = list({part.layer.name: part.layer for part in chosen}.values())
    if cog is not None and len(layers) > 1:
        names = ", ".join(v.name for v in layers)
        raise InputError(f"cog: a file holds one layer, these are {names}; choose a layer or year")
    if basis is None:
        found = basis_of(output, chosen)
    else:
        found = basis if isinstance(basis, PcaBasis) else load_basis(basis, output)
    panels = _panels(chosen)
    shown = panels[:_PANELS] if out is not None else []
    total = sum(p.height * p.width for p in [*shown, *(panels if cog is not None else [])])
    with progress_bar(total, "quicklook", progress) as tick:
        done = 0

        def step(pixels: int) -> None:
            nonlocal done
            done += pixels
            tick(done)

        if "png" in files:
            write_png(files["png"], _png(output, panels, found, size, step))
        if "cog" in files:
            _write_cog(files["cog"], output, panels, found, overwrite, step)
    if "basis" in files:
        save_basis(found, output, files["basis"], overwrite)
    return found


def _panels(chosen: list[OutputPart]) -> list[OutputPart]:
    """Tiles of a layer that touch as one part, the largest first."""
    by_layer: dict[str, list[OutputPart]] = {}
    for part in chosen:
        by_layer.setdefault(part.layer.name, []).append(part)
    panels = []
    for those in by_layer.values():
        layer = those[0].layer
        for rows, columns in clusters([(p.rows, p.columns) for p in those]):
            held = [
                p
                for p in those
                if rows.start <= p.rows.start < rows.stop
                and columns.start <= p.columns.start < columns.stop
            ]
            name = held[0].name if len(held) == 1 else f"{len(held)} tiles"
            panels.append(OutputPart(name, layer, rows, columns, held[0].tile))
    return sorted(panels, key=lambda p: -p.height * p.width)


@dataclass(frozen=True)
class _Scale:
    """``factor`` pixels of the output are one of the picture, or one is ``zoom`` of it."""

    factor: int
    zoom: int


def _scale(shown: list[OutputPart], columns: int, size: int) -> _Scale:
    """What fits ``columns`` panels, all as large as the largest, into ``size``."""
    rows = math.ceil(len(shown) / columns)
    height, width = max(p.height for p in shown), max(p.width for p in shown)
    room = (size - _GAP * (columns - 1)) / columns, (size - 60 * rows) / rows
    fits = max(width / room[0], height / max(room[1], 1))
    return _Scale(max(1, math.ceil(fits)), max(1, min(math.floor(1 / fits), 8)))


def _png(
    output: Embeddings,
    panels: list[OutputPart],
    basis: PcaBasis,
    size: int,
    step: Callable[[int], None],
) -> np.ndarray:
    """All panels in rows, (h, w, 3) uint8."""
    shown = panels[:_PANELS]
    columns = math.ceil(math.sqrt(len(shown)))
    scale = _scale(shown, columns, size)
    images = [_draw(part, basis, scale.factor, step) for part in shown]
    height, width = (max(i.shape[k] for i in images) for k in (0, 1))
    width = max(width, math.ceil(_LEAST / scale.zoom))
    trained = bool(output.provenance.get("trained", True))
    captions = [_caption(output, part, scale, trained) for part in shown]
    if len(panels) > len(shown):
        captions[-1] += f", {len(panels) - len(shown)} more are not drawn"
    rows = []
    for start in range(0, len(shown), columns):
        row = [_padded(image, height, width) for image in images[start : start + columns]]
        text = captions[start : start + columns]
        flags = [not trained] * len(row)
        while len(row) < columns:
            row.append(np.zeros((height, width, 4), np.uint8))
            text.append("")
            flags.append(False)
        rows.append(side_by_side(row, text, highlight=flags, upscale=scale.zoom))
    return stacked(rows)


def _caption(output: Embeddings, part: OutputPart, scale: _Scale, trained: bool) -> str:
    where = part.layer.name if part.name in part.layer.name else f"{part.layer.name} {part.name}"
    model = output.provenance.get("model", "unknown model")
    weights = "" if trained else ", UNTRAINED weights"
    reduced = f", 1:{scale.factor}" if scale.factor > 1 else ""
    return f"{where} | {part.width} \u00d7 {part.height} px{reduced} | {model}{weights}: PCA"


def _padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    out = np.zeros((height, width, 4), np.uint8)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def _draw(
    part: OutputPart, basis: PcaBasis, factor: int, step: Callable[[int], None]
) -> np.ndarray:
    """A part as (h, w, 4) uint8; a pixel is the mean colour of those with data of factor^2."""
    shape = (math.ceil(part.height / factor), math.ceil(part.width / factor))
    sums = np.zeros((shape[0] * shape[1], 4), np.float64)  # red, green, blue, pixels with data
    for top, left, window in part.blocks():
        image = pca_image(part.layer.values(*window), basis)
        y, x = np.nonzero(image[..., 3])
        at = (top + y) // factor * shape[1] + (left + x) // factor
        for channel in range(3):
            sums[:, channel] += np.bincount(at, image[y, x, channel], len(sums))
        sums[:, 3] += np.bincount(at, minlength=len(sums))
        step(image.shape[0] * image.shape[1])
    count = sums[:, 3:]
    out = np.zeros((*shape, 4), np.uint8)
    out.reshape(-1, 4)[:, :3] = np.rint(sums[:, :3] / np.maximum(count, 1))
    out[..., 3] = np.where(count.reshape(shape) > 0, 255, 0)
    return out


def _write_cog(
    path: Path,
    output: Embeddings,
    panels: list[OutputPart],
    basis: PcaBasis,
    overwrite: bool,
    step: Callable[[int], None],
) -> None:
    layer: Layer = panels[0].layer
    top = min(p.rows.start for p in panels)
    left = min(p.columns.start for p in panels)
    height = max(p.rows.stop for p in panels) - top
    width = max(p.columns.stop for p in panels) - left
    raster = Raster(
        *placed(layer, top, left),
        height,
        width,
        4,
        dtype="uint8",
        nodata=None,
        names=["red", "green", "blue", "alpha"],
        tags=tags(output, layer.year),
        rgba=True,
        cog=True,
    )
    with written(path, raster, overwrite) as write:
        for panel in panels:
            for y, x, window in panel.blocks():
                image = pca_image(panel.layer.values(*window), basis)
                row, column = panel.rows.start - top + y, panel.columns.start - left + x
                if image[..., 3].any():
                    write(row, column, np.moveaxis(image, -1, 0))
                step(image.shape[0] * image.shape[1])
