"""TESSERA embeddings of Sentinel-1 and Sentinel-2 time series, fast.

import tessera_fast as tf
embeddings = tf.embed("path/to/tile", model="v2-medium")  # (H, W, 128) float32
"""

from .errors import BackendUnavailable, InputError, StoreError, TesseraError, WeightsError
from .model import Model, load_model
from .official import encode_pixels, encode_tile
from .pipeline import embed
from .quantize import QuantizedEmbeddings, dequantize, quantize
from .tile import Tile, open_tile
from .weights import convert

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "InputError",
    "Model",
    "QuantizedEmbeddings",
    "StoreError",
    "TesseraError",
    "Tile",
    "WeightsError",
    "convert",
    "dequantize",
    "embed",
    "encode_pixels",
    "encode_tile",
    "load_model",
    "open_tile",
    "quantize",
]
