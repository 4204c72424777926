"""`tf.stac_items`: a STAC collection of a store, with an item for each zone and year."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..packages import require
from ..store.reader import Embeddings, Layer, open_embeddings
from ..untrusted.readers import local_path, local_target
from ..untrusted.suggest import checks_keywords
from .files import whole
from .globe import bounds, cut, joined, unwrapped
from .parts import OutputPart, clusters, parts, placed

_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_XARRAY = "https://stac-extensions.github.io/xarray-assets/v1.0.0/schema.json"
_EDGE_POINTS = 8  # of a footprint's edge: straight in UTM, bent in degrees


@checks_keywords()
def stac_items(
    store: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Describe a store in the folder ``out``: collection.json and an item a zone and year.

    An item's geometry is around the finished tiles (around the stored pixels where the store's
    state is not beside it), in WGS 84; across the 180th meridian it is cut there, and the bbox has
    its west greater than its east, as RFC 7946 asks. Times are those of the year or of the recorded
    period.
    It has the store's geoemb: attributes, proj: and processing: fields, and the zone's Zarr group
    as its asset, by a path relative to the item.

    Returns the path of collection.json. The folder appears whole or not at all. Raises StoreError
    if ``store`` is no Zarr store, or ``out`` exists and ``overwrite`` is False.
    """
    pystac = require("pystac", "describing a store for STAC")
    output, folder = open_embeddings(store), local_target(out, "out").resolve()
    if not (output.path / "zarr.json").exists():
        raise StoreError(f"{output.path}: expected a Zarr store, got a folder of .npy files")
    if output.path in (folder, *folder.parents):
        raise StoreError(f"{folder}: is the store itself or lies in it; write beside it")
    held: dict[str, list[OutputPart]] = {}
    for part in parts(output):
        held.setdefault(part.layer.name, []).append(part)
    items = [_item(pystac, output, those[0].layer, those) for those in held.values()]
    collection = pystac.Collection(
        id=output.path.stem,
        title=_title(output),
        description=_description(output),
        extent=_extent(pystac, items),
        license="other",
        keywords=["embeddings", "TESSERA", "Sentinel-1", "Sentinel-2"],
    )
    collection.catalog_type = pystac.CatalogType.SELF_CONTAINED
    collection.add_items(items)
    for item in items:
        item.set_self_href(str(folder / f"{item.id}.json"))
        item.make_asset_hrefs_relative()
    collection.set_self_href(str(folder / "collection.json"))
    with whole(folder, overwrite) as partial:
        partial.mkdir()
        for described, name in [(collection, "collection")] + [(i, i.id) for i in items]:
            content = described.to_dict(include_self_link=False)
            (partial / f"{name}.json").write_text(json.dumps(content, indent=1, allow_nan=False))
    return local_path(out, "out") / "collection.json"


def _item(pystac: Any, output: Embeddings, layer: Layer, held: Sequence[OutputPart]) -> Any:
    windows = clusters([(p.rows, p.columns) for p in held])
    rings = [ring for window in windows for ring in cut(_ring(layer, window))]
    first, last = _times(layer, output.provenance.get("period"))
    crs, transform = placed(layer)
    a, _, x0, _, e, y0 = transform
    zone = layer.name.split("/")[0]
    group = pystac.Asset(
        str(output.path / zone),
        title=f"Embeddings of UTM zone {zone[3:]}",
        media_type=pystac.MediaType.ZARR,
        roles=["data"],
        description=f"Zarr v3 group of all years; this item is of time {layer.year}. Embedding = "
        "embeddings x scales; scale +inf or NaN: no data",
        extra_fields={"xarray:open_kwargs": {"engine": "zarr", "consolidated": False}},
    )
    item = pystac.Item(
        id=f"{output.path.stem}_{layer.name.replace('/', '_')}",
        geometry={"type": "MultiPolygon", "coordinates": [[ring.tolist()] for ring in rings]},
        bbox=bounds(rings),
        datetime=None,
        start_datetime=first,
        end_datetime=last,
        stac_extensions=[_PROJECTION, _PROCESSING, _XARRAY],
        properties={
            "title": f"{_title(output)}, {layer.name}",
            "gsd": a,
            **{k: v for k, v in output.attributes.items() if k.startswith("geoemb:")},
            "proj:code": crs,
            "proj:shape": [layer.height, layer.width],
            "proj:transform": [*transform, 0.0, 0.0, 1.0],
            "proj:bbox": [x0, y0 + e * layer.height, x0 + a * layer.width, y0],
            **_processing(output),
        },
    )
    item.add_asset("embeddings", group)
    return item


def _extent(pystac: Any, items: Sequence[Any]) -> Any:
    """Around all items. pystac's own takes west for the least number, also across 180 degrees."""
    first = min(item.common_metadata.start_datetime for item in items)
    last = max(item.common_metadata.end_datetime for item in items)
    return pystac.Extent(
        pystac.SpatialExtent([joined([item.bbox for item in items])]),
        pystac.TemporalExtent([[first, last]]),
    )


def _ring(layer: Layer, window: tuple[slice, slice]) -> np.ndarray:
    """The window's outline in longitude and latitude, closed, (n, 2).

    Longitudes have no step at the 180th meridian, so that they may go beyond it.
    """
    pyproj = require("pyproj", "describing a store for STAC")
    (top, bottom), (left, right) = ((s.start, s.stop) for s in window)
    corners = [(top, left), (bottom, left), (bottom, right), (top, right), (top, left)]
    pieces = [
        np.linspace(start, end, _EDGE_POINTS, endpoint=False) for start, end in pairwise(corners)
    ]
    row, column = np.concatenate([*pieces, np.array(corners[:1], np.float64)]).T
    crs, (a, b, c, d, e, f) = placed(layer)
    x, y = a * column + b * row + c, d * column + e * row + f
    to_wgs84 = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    longitude, latitude = to_wgs84.transform(x, y)
    longitude = unwrapped(longitude)
    if not (np.ptp(longitude) < 180 and np.isfinite(latitude).all()):  # NaN: not so
        raise StoreError(
            f"{layer.name}, rows {top}..{bottom}, columns {left}..{right}: reaches a pole or lies "
            "beyond it, where no outline in longitude and latitude can be drawn; UTM is for "
            "latitudes from 80 S to 84 N"
        )
    return np.stack([longitude, latitude], axis=-1)


def _times(layer: Layer, period: str | None) -> tuple[datetime, datetime]:
    """First and last second of the year, or of a ``period`` "07-01/06-30" that begins in it."""
    year = int(layer.year or 0)
    first, last = (period or "01-01/12-31").split("/")
    begin = datetime.fromisoformat(f"{year}-{first}").replace(tzinfo=timezone.utc)
    end = datetime.fromisoformat(f"{year + (last < first)}-{last}").replace(tzinfo=timezone.utc)
    return begin, end.replace(hour=23, minute=59, second=59)


def _processing(output: Embeddings) -> dict[str, Any]:
    p = output.provenance
    if not p:
        return {}
    return {
        "processing:level": "L4",
        "processing:lineage": f"TESSERA {p['model']} ({p['precision']}, back end {p['backend']}) "
        f"of a year of Sentinel-1 and Sentinel-2; weights sha256 {p['weights_sha256']}"
        + ("" if p["trained"] else ", UNTRAINED"),
        "processing:software": {"tessera_fast": p["package_version"]},
        "tessera_fast:untrained": not p["trained"],
    }


def _title(output: Embeddings) -> str:
    p = output.provenance
    untrained = "" if p.get("trained", True) else " (UNTRAINED weights)"
    return f"TESSERA embeddings, {p.get('model', 'unknown model')}{untrained}"


def _description(output: Embeddings) -> str:
    return (
        f"{_title(output)}: {output.layers[0].dims} numbers for every 10 m pixel and year, as int8 "
        "codes and one float32 scale a pixel, from Sentinel-1 and Sentinel-2."
    )
