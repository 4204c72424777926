"""TESSERA embeddings of Sentinel-1 and Sentinel-2 time series, fast.

    import tessera_fast as tf
    embeddings = tf.embed("path/to/tile", model="v2-medium")  # (H, W, 128) float32

The names below are imported on first use: `import tessera_fast` itself takes milliseconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import BackendUnavailable, InputError, StoreError, TesseraError, WeightsError
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .jobs.embed_tiles import embed_tiles
    from .model.export import export
    from .model.model import Model, load_model
    from .model.official import encode_pixels, encode_tile
    from .pipeline.embed import embed
    from .planning.plan import plan
    from .planning.table import Plan
    from .probing import ProbeReport, probe, rankme
    from .products import export_store, mosaic, picture, stac_items
    from .quantization import QuantizedEmbeddings, dequantize, quantize
    from .tile import Tile, open_tile, open_windows
    from .verification import verify
    from .weights import convert

__all__ = [
    "BackendUnavailable",
    "InputError",
    "Model",
    "Plan",
    "ProbeReport",
    "QuantizedEmbeddings",
    "StoreError",
    "TesseraError",
    "Tile",
    "WeightsError",
    "convert",
    "dequantize",
    "embed",
    "embed_tiles",
    "encode_pixels",
    "encode_tile",
    "export",
    "export_store",
    "load_model",
    "mosaic",
    "open_tile",
    "open_windows",
    "picture",
    "plan",
    "probe",
    "quantize",
    "rankme",
    "stac_items",
    "verify",
]

_HOMES = {
    "Model": "model.model",
    "Plan": "planning.table",
    "ProbeReport": "probing",
    "QuantizedEmbeddings": "quantization",
    "Tile": "tile",
    "convert": "weights",
    "dequantize": "quantization",
    "embed": "pipeline.embed",
    "embed_tiles": "jobs.embed_tiles",
    "encode_pixels": "model.official",
    "encode_tile": "model.official",
    "export": "model.export",
    "export_store": "products",
    "load_model": "model.model",
    "mosaic": "products",
    "open_tile": "tile",
    "open_windows": "tile",
    "picture": "products",
    "plan": "planning.plan",
    "probe": "probing",
    "quantize": "quantization",
    "rankme": "probing",
    "stac_items": "products",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from .untrusted.suggest import closest

        near = closest(name, __all__)
        # without ``obj``: the interpreter would add a guess of its own
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(f"{message}.{near}" if near else message, name=name)
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
