"""What users make from an output of embeddings: files of other formats, mosaics, pictures, STAC.

Every product is read from the output by windows, and appears whole or not at all.
"""

from .export import export_store
from .mosaics import mosaic
from .pictures import picture
from .stac import stac_items

__all__ = ["export_store", "mosaic", "picture", "stac_items"]
