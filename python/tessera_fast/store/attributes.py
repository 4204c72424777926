"""What the root of a store says of its embeddings, for programs that read it."""

from __future__ import annotations

from typing import Any

from . import zone
from .base import Provenance
from .metadata import PROVENANCE


def root_attributes(p: Provenance) -> dict[str, Any]:
    """The attributes of a new store, by the convention for geospatial embeddings."""
    depths = [{"dimensions": k, "array": f"embeddings_d{k}"} for k in p.prefixes]
    state = "" if p.trained else "untrained:"
    geoemb = "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md"
    schema = "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention"
    missions = "https://sentinel.esa.int/web/sentinel/missions"
    return {
        "zarr_conventions": [
            {
                "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
                "name": "geoemb:",
                "description": "Arrays of geospatial embeddings and what made them",
                "spec_url": geoemb,
                "schema_url": f"{schema}/refs/tags/v1/schema.json",
            }
        ],
        "geoemb:type": "pixel",
        "geoemb:dimensions": p.dims,
        # A name of our own, by the weights that ran: not the name of a published data set.
        "geoemb:model": f"urn:tessera-fast:{state}{p.model}:sha256:{p.weights_sha256}",
        "geoemb:source_data": [f"{missions}/sentinel-1", f"{missions}/sentinel-2"],
        "geoemb:data_type": "int8",
        "geoemb:gsd": zone.PIXEL,
        "geoemb:spatial_layout": "utm_zones",
        "geoemb:build_version": f"tessera_fast {p.package_version}",
        "geoemb:landmask": False,
        "geoemb:quantization": {
            "method": "per_pixel_scale",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": {"type": "array", "array_name": "scales", "nodata": "+inf"},
        },
        **(
            {"geoemb:depths": [*depths, {"dimensions": p.dims, "array": "embeddings"}]}
            if depths
            else {}
        ),
        PROVENANCE: p.to_json(),
        "tessera_fast:untrained": not p.trained,
    }
