"""A Zarr store by itself: its layout, its georeference, and every shard."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from ..errors import StoreError
from ..progress import Progress, progress_bar
from ..store.base import COUNT_NAMES
from ..store.metadata import PROVENANCE, check_metadata, import_zarr
from ..store.zone import PIXEL, Grid
from ..untrusted.damage import damaged
from ..untrusted.readers import Unreadable, read_json, shown, take, take_numbers, take_whole
from .findings import Check
from .places import marked_place, markers
from .shard_check import ShardArrays
from .state_check import check_markers

ANEW = "Write the tiles to another store"


def check_store(out: Check, progress: Progress) -> None:
    """Add what is wrong with the store at ``out.path``, its markers included."""
    zarr = import_zarr()
    try:
        check_metadata(out.path)
        root = zarr.open_group(str(out.path), mode="r", use_consolidated=False)
        names = sorted(root.group_keys())
    except damaged() as error:
        out.problem(
            out.path / "zarr.json",
            f"cannot be read ({_told(error)})",
            f"Restore it from a copy, or: {ANEW.lower()}",
        )
        return
    attributes = dict(root.attrs)
    provenance = attributes.get(PROVENANCE)
    if not isinstance(provenance, dict | None):
        out.problem(out.path / "zarr.json", f"its provenance is {shown(provenance)}", ANEW)
        provenance = None
    if provenance is None:
        out.notes.append("not written by tessera_fast: no markers, and what made it is not known")
    zones = {n: z for n in names if (z := _zone(out, root, n, attributes))}
    if not zones:
        out.problem(out.path, "no UTM zone in it can be read", ANEW)
        return
    years = {n: z["time"][:].tolist() for n, z in zones.items()}
    if len({tuple(y) for y in years.values()}) > 1 or any(
        y != sorted(set(y)) for y in years.values()
    ):
        out.problem(
            out.path,
            f"expected one ascending list of years in all zones, got {years}",
            f"Readers take the first zone's. {ANEW}",
        )
    _consolidated(out, zarr, zones)
    grids = {n: _grid(root[n], n, z) for n, z in zones.items()}
    tiles = None if provenance is None else _marked(out)
    shards = [ShardArrays(out, n, z, grids[n], tiles) for n, z in zones.items()]
    plan = [(s, window) for s in shards for window in s.windows()]
    with progress_bar(sum(w.pixels for _, w in plan), "check", progress) as tick:
        done = 0
        for one, window in plan:
            one.look(window)
            done += window.pixels
            tick(done)
    if provenance is not None:
        placed = {n: (g, zones[n]) for n, g in grids.items() if g is not None}
        check_markers(out, dict(provenance), placed)


def _marked(out: Check) -> list[tuple[str, Grid]]:
    """File names of the markers, with the tiles' places; what is wrong with one is said later."""
    found = []
    for file in markers(out.path):
        with suppress(OSError, Unreadable, StoreError):
            if (grid := marked_place(read_json(file))) is not None:
                found.append((file.name, grid))
    return found


def _grid(group: Any, name: str, arrays: dict[str, Any]) -> Grid | None:
    """None where the georeference is none, which has been named by then."""
    try:
        transform = take_numbers(dict(group.attrs), "spatial:transform", 6)
    except Unreadable:
        return None
    if not name[3:].isdigit():
        return None
    height, width = arrays["embeddings"].shape[2:]
    years = tuple(arrays["time"][:].tolist())
    return Grid(int(name[3:]), transform[2], transform[5], height, width, years)


def _depths(attributes: dict[str, Any]) -> dict[str, int]:
    """Widths of the arrays of embeddings, by name, as the root says; Unreadable if it cannot."""
    found = {}
    for depth in take({"geoemb:depths": [], **attributes}, "geoemb:depths", list):
        if not isinstance(depth, dict):
            raise Unreadable(f"geoemb:depths: expected objects, got {shown(depth)}")
        found[take(depth, "array", str)] = take_whole(depth, "dimensions", 1, 2**31)
    return found


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _zone(out: Check, root: Any, name: str, attributes: dict[str, Any]) -> dict[str, Any] | None:
    """The arrays of a zone; None where they cannot be read or do not fit each other."""
    where = out.path / name
    if not name.startswith("utm"):
        out.notes.append(f"also holds the group {name}, which is no UTM zone")
        return None
    try:
        group = root[name]
        arrays = {k: group[k] for k in group.array_keys()}
        lines = {k: arrays[k][:] for k in ("time", "x", "y") if k in arrays}
    except damaged() as error:
        out.problem(where, f"cannot be read ({_told(error)})", ANEW)
        return None
    try:
        depths = _depths(attributes)
    except Unreadable as error:
        out.problem(out.path / "zarr.json", f"its geoemb:depths cannot be read ({error})", ANEW)
        return None
    counts = COUNT_NAMES if PROVENANCE in attributes else ()
    if missing := {"embeddings", "scales", "time", "x", "y", *depths, *counts} - arrays.keys():
        out.problem(where, f"lacks the arrays {', '.join(sorted(missing))}", ANEW)
        return None
    t, e, h, w = arrays["embeddings"].shape
    if attributes.get("geoemb:dimensions", e) != e:
        out.problem(
            where,
            f"embeddings have {e} dimensions, the root says {attributes['geoemb:dimensions']}",
            ANEW,
        )
    shapes: dict[str, tuple[int, ...]] = {
        k: (t, h, w) for k in ("scales", *COUNT_NAMES) if k in arrays
    }
    shapes |= {k: (t, n, h, w) for k, n in depths.items()} | {"time": (t,)}
    wrong = [f"{k} {arrays[k].shape}" for k, shape in shapes.items() if arrays[k].shape != shape]
    if wrong:
        out.problem(
            where, f"embeddings are {(t, e, h, w)}, which {', '.join(wrong)} do not match", ANEW
        )
        return None
    out.count("zones")
    _georeference(out, name, dict(group.attrs), arrays, lines)
    return arrays


def _georeference(
    out: Check, name: str, geo: dict[str, Any], arrays: dict[str, Any], lines: dict[str, np.ndarray]
) -> None:
    where, (h, w) = out.path / name, arrays["embeddings"].shape[2:]
    codes = tuple(f"EPSG:{hemisphere}{name[3:]}" for hemisphere in (326, 327))
    if geo.get("proj:code") not in codes:
        out.problem(where, f"expected proj:code {codes[0]}, got {geo.get('proj:code')}", ANEW)
    given, shape = geo.get("spatial:transform"), geo.get("spatial:shape", [h, w])
    try:
        transform = list(take_numbers(geo, "spatial:transform", 6))
    except Unreadable:
        transform = []
    if not transform or shape != [h, w]:
        out.problem(
            where,
            f"spatial:transform {shown(given)} and spatial:shape {shown(shape)} do not describe "
            f"{h} x {w} pixels",
            ANEW,
        )
        return
    a, _, x0, _, d, y0 = transform
    for axis, expected in (
        ("x", x0 + (np.arange(w) + 0.5) * a),  # pixel centres
        ("y", y0 + (np.arange(h) + 0.5) * d),
    ):
        line = lines[axis]
        if line.shape == expected.shape and (line == expected).all():
            continue
        got = f"{line[0]} to {line[-1]}" if line.size else "nothing"
        half = line.size and abs(line[0] - expected[0]) == PIXEL / 2
        out.problem(
            where / axis,
            f"expected pixel centres {expected[0]} to {expected[-1]} by "
            f"spatial:transform, got {got}"
            f"{' (half a pixel apart: corners for centres?)' if half else ''}",
            ANEW,
        )
    for key in ("embeddings", "scales"):
        if arrays[key].attrs.get("spatial:transform", transform) != transform:
            out.problem(where / key, "its spatial:transform is not the zone's", ANEW)


def _consolidated(out: Check, zarr: Any, zones: dict[str, Any]) -> None:
    fix = f"Run: python -c \"import zarr; zarr.consolidate_metadata('{out.path}')\""
    try:
        consolidated = zarr.open_group(str(out.path), mode="r").metadata.consolidated_metadata
        known = None if consolidated is None else consolidated.flattened_metadata
    except damaged() as error:
        out.problem(out.path, f"its consolidated metadata cannot be read ({_told(error)})", fix)
        return
    if known is None:
        out.problem(out.path, "has no consolidated metadata, and geotessera needs it", fix)
        return
    for name, arrays in zones.items():
        seen = {k: getattr(known.get(f"{name}/{k}"), "shape", None) for k in arrays}
        if stale := [k for k, array in arrays.items() if seen[k] != array.shape]:
            out.problem(
                out.path / name,
                f"the consolidated metadata is out of date for {', '.join(stale)}",
                fix,
            )
