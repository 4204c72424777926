"""The grid that a mosaic is made on: that of a template, or the window around a polygon."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..packages import require
from ..store.reader import Layer
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import Unreadable, local_path, read_json, shown
from .globe import HALF, near, unwrapped
from .parts import placed

_LARGEST = 1 << 28  # bytes of a polygon's file: ten million corners
WGS84 = "EPSG:4326"
_STEPS = {True: 0.01, False: 1000.0}  # degrees or metres: longer edges bend in another projection
_RINGS = dict[str, Any]  # a GeoJSON MultiPolygon
_MOST_GEOJSON = 64 << 20  # bytes of a file
_MOST_LEVELS = 8  # of collections and features around a polygon
_MOST_POINTS = 1_000_000  # of a ring, once its edges are divided
_FARTHEST = 1e9  # of a coordinate from 0, in any CRS


@dataclass(frozen=True)
class Target:
    """North is not needed to be up; ``polygon``: GeoJSON in ``crs``, outside of it is no data."""

    crs: str
    transform: tuple[float, ...]  # (a, b, c, d, e, f)
    height: int
    width: int
    polygon: _RINGS | None = None

    def centres(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """x and y of the pixels' centres in ``crs``, (h, w) float64 each."""
        a, b, c, d, e, f = self.transform
        row = np.arange(rows.start, rows.stop)[:, None] + 0.5
        column = np.arange(columns.start, columns.stop)[None] + 0.5
        return a * column + b * row + c, d * column + e * row + f

    def inside(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) bool: the pixel's centre lies in the polygon; all without one."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if self.polygon is None:
            return np.ones(shape, bool)
        a, b, c, d, e, f = self.transform
        x, y = columns.start, rows.start
        corner = (a, b, c + a * x + b * y, d, e, f + d * x + e * y)
        return _mask(self.polygon, shape, corner)


def of_template(path: str | os.PathLike[str]) -> Target:
    """The grid of a raster that rasterio opens; InputError if it has no CRS."""
    rasterio = require("rasterio", "reading a template")
    try:
        with rasterio.open(local_path(path, "template")) as raster:
            crs, transform, (height, width) = raster.crs, raster.transform, raster.shape
            code = crs.to_epsg() if crs else None
            name = f"EPSG:{code}" if code else crs.to_wkt() if crs else None
    except damaged() as error:
        raise InputError(f"template {path}: expected a raster, got {first_line(error)}") from error
    if name is None or transform.is_identity:
        raise InputError(f"template {path}: expected a raster with a CRS and a transform, got none")
    return Target(name, tuple(transform)[:6], height, width)


def of_polygon(
    polygon: str | os.PathLike[str] | Mapping[str, Any],
    layers: Sequence[Layer],
    crs: str | None,
    resolution: float | None,
) -> Target:
    """The window around ``polygon``, on the lattice of the zone with most of its pixels.

    ``crs``, ``resolution`` (units of the CRS): another grid, whose lines are multiples of the
    resolution. InputError if the polygon is none or ``layers`` have no data in it.
    """
    pyproj = require("pyproj", "a polygon")
    content = _read(polygon)
    source, rings = _crs_of(content, pyproj), list(_polygons(content))
    if not rings:
        raise InputError("polygon: expected a Polygon or MultiPolygon, got none")
    wanted = None if crs is None else _checked_crs(crs, pyproj)
    best = _fullest(layers, rings, source)
    lattice_crs, lattice = placed(best)
    if resolution is not None and not 0 < resolution < math.inf:
        raise InputError(f"resolution: expected a number above 0, got {resolution}")
    if wanted is None or pyproj.CRS(wanted) == pyproj.CRS(lattice_crs):
        wanted = lattice_crs
        x0, y0, step = lattice[2], lattice[5], resolution or lattice[0]
    else:
        x0 = y0 = 0.0
        if resolution is None and pyproj.CRS(wanted).is_geographic:
            raise InputError(f"resolution: give it in degrees, because {crs} is geographic")
        step = resolution or lattice[0]
    moved = _moved(rings, source, wanted)
    if moved is None:
        raise InputError(f"polygon: parts of it have no place in {wanted}; choose another crs")
    _check_cut(rings, source, wanted)
    points = np.concatenate([np.asarray(r) for p in moved["coordinates"] for r in p])
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    column, row = math.floor((left - x0) / step), math.floor((y0 - top) / step)
    width, height = math.ceil((right - x0) / step) - column, math.ceil((y0 - bottom) / step) - row
    transform = (step, 0.0, x0 + column * step, 0.0, -step, y0 - row * step)
    return Target(wanted, transform, max(height, 1), max(width, 1), moved)


def _checked_crs(crs: str, pyproj: Any) -> str:
    try:
        pyproj.CRS.from_user_input(crs)
    except damaged() as error:
        raise InputError(
            f"crs: expected one that pyproj reads, got {shown(crs)} ({first_line(error)})"
        ) from error
    return crs


def _read(polygon: str | os.PathLike[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(polygon, Mapping):
        return polygon
    try:
        return read_json(local_path(polygon, "polygon"), _MOST_GEOJSON, constants=True)
    except (OSError, Unreadable) as error:
        raise InputError(f"polygon {polygon}: expected a GeoJSON file, got {error}") from error


def _crs_of(content: Mapping[str, Any], pyproj: Any) -> str:
    """Of the member "crs" that GeoJSON had before RFC 7946, else WGS 84."""
    try:
        name = content["crs"]["properties"]["name"] if content.get("crs") else WGS84
    except (LookupError, TypeError) as error:
        raise InputError(f"polygon: expected a named crs, got {shown(content['crs'])}") from error
    return _checked_crs(name, pyproj)


def _polygons(content: Any, level: int = 0) -> Iterator[list[np.ndarray]]:
    """Rings (n, 2) of every polygon, the outer one first; InputError for another geometry."""
    kind = content.get("type") if isinstance(content, Mapping) and level < _MOST_LEVELS else None
    if kind == "FeatureCollection":
        for feature in _listed(content, "features"):
            yield from _polygons(feature, level + 1)
    elif kind == "Feature" and content.get("geometry"):
        yield from _polygons(content["geometry"], level + 1)
    elif kind in ("Polygon", "MultiPolygon"):
        rings = _listed(content, "coordinates")
        for polygon in rings if kind == "MultiPolygon" else [rings]:
            yield _rings(polygon)
    else:
        raise InputError(
            f"polygon: expected Polygon, MultiPolygon or Features of them, got {shown(kind)}"
        )


def _listed(content: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = content.get(name)
    if not isinstance(found, list | tuple):
        raise InputError(f"polygon: expected a list of {name}, got {shown(found)}")
    return found


def _rings(polygon: Any) -> list[np.ndarray]:
    try:
        arrays = [np.array([p[:2] for p in ring], np.float64) for ring in polygon]
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise InputError(f"polygon: expected rings of numbers ({first_line(error)})") from error
    if not arrays or any(
        len(r) < 4 or r.ndim != 2 or r.shape[1] != 2 or not (np.abs(r) <= _FARTHEST).all()
        for r in arrays
    ):
        raise InputError(
            f"polygon: expected rings of at least four (x, y), finite and within {_FARTHEST:g}"
        )
    return arrays


def _moved(rings: list[list[np.ndarray]], source: str, target: str) -> _RINGS | None:
    """The polygons in ``target``, with points added on long edges; None if a point has no place.

    Across the 180th meridian a ring may jump from 179 to -179, or go on to 181, or be cut into two
    polygons as RFC 7946 asks: it is one place, and in degrees it gets one line of longitudes.
    """
    pyproj = require("pyproj", "a polygon")
    degrees = pyproj.CRS(source).is_geographic, pyproj.CRS(target).is_geographic
    step = _STEPS[degrees[0]]
    middle = None  # of the first ring in degrees
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    out = []
    for polygon in rings:
        moved = []
        for ring in polygon:
            if degrees[0]:
                ring = np.stack([unwrapped(ring[:, 0]), ring[:, 1]], axis=-1)
            x, y = transformer.transform(*_dense(ring, step).T)
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                return None
            if degrees[1]:
                x = unwrapped(x)
                middle = float(near(np.mean(x), 0.0)) if middle is None else middle
                x = x + (near(np.mean(x), middle) - np.mean(x))
            moved.append(np.stack([x, y], axis=-1).tolist())
        out.append(moved)
    return {"type": "MultiPolygon", "coordinates": out}


def _check_cut(rings: list[list[np.ndarray]], source: str, target: str) -> None:
    """InputError for polygons over the 180th meridian where ``target`` ends there on both sides."""
    pyproj = require("pyproj", "a polygon")
    place = _moved(rings, source, WGS84)
    if place is None or pyproj.CRS(target).is_geographic:
        return
    points = np.concatenate([np.asarray(r) for p in place["coordinates"] for r in p])
    if np.abs(points[:, 0]).max() <= HALF:
        return
    latitude = np.linspace(points[:, 1].min(), points[:, 1].max(), 9)
    to = pyproj.Transformer.from_crs(WGS84, target, always_xy=True)
    west, east = (to.transform(np.full(9, s * (HALF - 1e-6)), latitude) for s in (1, -1))
    if not (np.hypot(*np.subtract(west, east)) < 1000).all():  # 0.2 m apart, or an ocean
        raise InputError(
            f"polygon: lies across the 180th meridian, where {target} is cut; choose another crs, "
            "such as that of a UTM zone, or make a mosaic of each side"
        )


def _dense(ring: np.ndarray, step: float) -> np.ndarray:
    pieces, total = [], 0
    for start, end in itertools.pairwise(ring):
        count = max(1, math.ceil(float(np.hypot(*(end - start))) / step))
        if (total := total + count) > _MOST_POINTS:
            raise InputError(
                f"polygon: expected a ring of at most {_MOST_POINTS * step:g} units around, got a "
                "longer one; check its coordinates and their crs"
            )
        pieces.append(start + (end - start) * (np.arange(count) / count)[:, None])
    return np.concatenate([*pieces, ring[-1:]])


def _mask(polygon: _RINGS, shape: tuple[int, int], transform: tuple[float, ...]) -> np.ndarray:
    features = require("rasterio.features", "a polygon")
    affine = require("rasterio", "a polygon").Affine(*transform)
    mask: np.ndarray = features.geometry_mask([polygon], shape, affine, invert=True)
    return mask


def _fullest(layers: Sequence[Layer], rings: list[list[np.ndarray]], source: str) -> Layer:
    """The layer with most pixels with data in the polygon, of the CRS with most of them."""
    moved: dict[str, _RINGS | None] = {}
    counts: Counter[int] = Counter()
    for number, layer in enumerate(layers):
        crs, _ = placed(layer)
        if crs not in moved:
            moved[crs] = _moved(rings, source, crs)
        polygon = moved[crs]
        if polygon is not None:
            counts[number] = _pixels_in(layer, polygon)
    by_crs: Counter[str | None] = Counter()
    for number, count in counts.items():
        by_crs[layers[number].crs] += count
    if not by_crs.total():
        raise InputError(
            "polygon: no pixel with data lies in it; expected one that meets the store's layers "
            f"({', '.join(v.name for v in layers[:10])}), in {source} with x (longitude) first"
        )
    best = by_crs.most_common(1)[0][0]
    return layers[max((n for n in counts if layers[n].crs == best), key=lambda n: counts[n])]


def _pixels_in(layer: Layer, polygon: _RINGS) -> int:
    points = np.concatenate([np.asarray(r) for p in polygon["coordinates"] for r in p])
    found = 0
    for rows, columns in layer.stored():
        _, corner = placed(layer, rows.start, columns.start)
        _, (_, _, right, _, _, bottom) = placed(layer, rows.stop, columns.stop)
        x, y = sorted((corner[2], right)), sorted((corner[5], bottom))
        if (points.max(axis=0) < (x[0], y[0])).any() or (points.min(axis=0) > (x[1], y[1])).any():
            continue
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        inside = _mask(polygon, shape, corner)
        if inside.any():
            found += int((inside & layer.valid(rows, columns)).sum())
    return found
