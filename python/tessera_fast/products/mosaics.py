"""`tf.mosaic`: one raster of a region, from all the tiles and zones that it touches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, StoreError
from ..files import refuse_existing
from ..packages import require
from ..progress import Progress, progress_bar
from ..store.reader import Embeddings, Layer, open_embeddings
from ..untrusted.readers import local_target
from ..untrusted.suggest import checks_keywords, one_of
from .geotiff import Raster, band_names, checked_bands, tags, written
from .globe import near
from .parts import BLOCK, placed
from .sampling import RESAMPLING, Places, bilinear_values, nearest_codes, nearest_values
from .target import Target, of_polygon, of_template

NO_CODE = -128  # codes are -127..127


@checks_keywords()
def mosaic(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    polygon: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    template: str | os.PathLike[str] | None = None,
    year: int | None = None,
    crs: str | None = None,
    resolution: float | None = None,
    bands: Sequence[int] | None = None,
    quantized: bool = False,
    resampling: str = "nearest",
    format: str = "cog",
    overwrite: bool = False,
    progress: Progress = None,
) -> Path:
    """Write the embeddings of a region in one ``year`` as one GeoTIFF (E, H, W); its path.

    ``template``: a raster; the result has its CRS, transform and size. Or ``polygon``: GeoJSON (a
    path or a mapping; longitude and latitude unless it names a CRS); the result is the window
    around it on the store's own 10 m lattice, in the zone that has most of it, and nothing is
    resampled there. ``crs`` and ``resolution`` (in its units) ask for another grid. Pixels whose
    centre is outside the polygon are NaN.

    ``resampling``: "nearest", or "bilinear", which blends embeddings of neighbours. ``bands``:
    indices of dimensions. ``quantized``: int8 codes (-128: no data) at ``out``, and float32 scales
    (NaN) at <out>_scales.tif. ``format``: "cog" or "geotiff".

    Made in blocks of 256 x 256 pixels, so memory does not grow with the region. Files appear whole
    or not at all. Raises InputError if the region has no data or an option does not fit, StoreError
    if ``out`` exists and ``overwrite`` is False, or cannot be written.
    """
    if (polygon is None) == (template is None):
        raise InputError("mosaic: expected a polygon or a template, and not both")
    if template is not None and (crs is not None or resolution is not None):
        raise InputError("crs, resolution: a template has its own")
    one_of("resampling", resampling, RESAMPLING)
    if quantized and resampling != "nearest":
        raise InputError("quantized: codes of neighbours cannot be blended; take nearest")
    one_of("format", format, ("cog", "geotiff"))
    path = local_target(out, "out")
    files = [path, path.with_name(f"{path.stem}_scales{path.suffix}")] if quantized else [path]
    refuse_existing(files, overwrite)
    output = open_embeddings(store)
    layers = of_year(output, year)
    if quantized and not all(layer.quantized for layer in layers):
        raise StoreError(f"{output.path}: holds float32 values, not codes and scales")
    if template is not None:
        target = of_template(template)
    else:
        assert polygon is not None
        target = of_polygon(polygon, layers, crs, resolution)
    layers = sorted(layers, key=lambda layer: layer.crs != target.crs)  # its own zone goes first
    picked = checked_bands(bands, layers[0].dims)
    raster = Raster(
        target.crs,
        target.transform,
        target.height,
        target.width,
        len(picked),
        names=band_names(picked),
        tags=tags(output, layers[0].year),
        cog=format == "cog",
    )
    pyproj = require("pyproj", "a mosaic")
    degrees = {crs: pyproj.CRS(crs).is_geographic for crs in {placed(v)[0] for v in layers}}
    blocks = _Blocks(target, layers, quantized, resampling == "bilinear", degrees)
    with ExitStack() as stack:
        # Left in reverse: the scales get their name first, the codes say that both are there.
        whole = replace(raster, dtype="int8", nodata=NO_CODE) if quantized else raster
        write = stack.enter_context(written(path, whole, overwrite))
        if quantized:
            scales = replace(raster, count=1, names=["scale"])
            write_scales = stack.enter_context(written(files[1], scales, overwrite))
        total = target.height * target.width
        with progress_bar(total, "mosaic", progress) as tick:
            done = known = 0
            for rows, columns, pixels in blocks:
                done += (rows.stop - rows.start) * (columns.stop - columns.start)
                tick(done)
                if pixels is None:
                    continue
                known += 1
                values, factors = pixels
                write(rows.start, columns.start, np.moveaxis(values[..., picked], -1, 0))
                if factors is not None:
                    write_scales(rows.start, columns.start, factors[None])
        if not known:
            raise InputError(
                f"{path.name}: the store has no pixel with data there in {layers[0].year}, so "
                "nothing was written; check the region and the year"
            )
    return path


def of_year(output: Embeddings, year: int | None) -> list[Layer]:
    """The layers of one year; InputError if it is not there, or is not said and there are two."""
    years = sorted({layer.year for layer in output.layers if layer.year is not None})
    there = ", ".join(map(str, years)) or "none that is known"
    if year is None and len(years) != 1:
        raise InputError(f"year: give one, {output.path} has {there}")
    wanted = years[0] if year is None else year
    if wanted not in years:
        raise InputError(f"year: {output.path} has {there}, got {year}")
    return [layer for layer in output.layers if layer.year == wanted]


@dataclass(frozen=True)
class _Blocks:
    """Blocks of the target, with values (h, w, E) and scales (h, w) of codes; None: no data."""

    target: Target
    layers: list[Layer]
    quantized: bool
    bilinear: bool
    degrees: dict[str, bool]  # CRS of a layer -> its units are degrees

    def __iter__(
        self,
    ) -> Iterator[tuple[slice, slice, tuple[np.ndarray, np.ndarray | None] | None]]:
        for top in range(0, self.target.height, BLOCK):
            rows = slice(top, min(top + BLOCK, self.target.height))
            for left in range(0, self.target.width, BLOCK):
                columns = slice(left, min(left + BLOCK, self.target.width))
                yield rows, columns, self._block(rows, columns)

    def _block(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray | None] | None:
        missing = self.target.inside(rows, columns).reshape(-1)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        dims = self.layers[0].dims
        values: np.ndarray | None = None
        scales = None
        x, y = (v.reshape(-1) for v in self.target.centres(rows, columns))
        moved: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for layer in self.layers:
            wanted = np.flatnonzero(missing)
            if not wanted.size:
                break
            crs, _ = placed(layer)
            if crs not in moved:
                moved[crs] = _transformed(self.target.crs, crs, x, y)
            here = moved[crs][0], moved[crs][1]
            if self.degrees[crs]:  # 181 and -179 are one place
                _, (a, b, c, *_) = placed(layer)
                here = near(here[0], c + (a * layer.width + b * layer.height) / 2), here[1]
            if not _meets(layer, *here):
                continue
            places = Places(layer, *(v[wanted] for v in here))
            for index, found, factors in self._sample(places):
                if values is None:
                    values = np.full(
                        (missing.size, dims), NO_CODE if self.quantized else np.nan, found.dtype
                    )
                    scales = np.full(missing.size, np.nan, np.float32) if self.quantized else None
                values[wanted[index]] = found
                if scales is not None:
                    scales[wanted[index]] = factors
                missing[wanted[index]] = False
        if values is None:
            return None
        return values.reshape(*shape, dims), None if scales is None else scales.reshape(shape)

    def _sample(self, places: Places) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        if self.quantized:
            yield from nearest_codes(places)
        else:
            sample = bilinear_values if self.bilinear else nearest_values
            yield from ((index, values, None) for index, values in sample(places))


def _transformed(
    source: str, target: str, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Places in another CRS; infinite where they have none."""
    pyproj = require("pyproj", "a mosaic")
    if pyproj.CRS(source) == pyproj.CRS(target):
        return x, y
    moved: tuple[np.ndarray, np.ndarray] = pyproj.Transformer.from_crs(
        source, target, always_xy=True
    ).transform(x, y)
    return moved


def _meets(layer: Layer, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the box around the places meets the layer's."""
    corners = [placed(layer, r, c)[1] for r in (0, layer.height) for c in (0, layer.width)]
    for values, k in ((x, 2), (y, 5)):
        low, high = min(t[k] for t in corners), max(t[k] for t in corners)
        if values.max() < low or values.min() > high:
            return False
    return True
