"""The bands of one tile, as the pipeline gives them."""

from tessera_fast.pipeline.embed import Band, Settings, embed_bands
from tessera_fast.pipeline.stages import Clock


def embed_rows(tile, model, *, quantized=False, **settings) -> list[Band]:
    """All bands of ``tile``, top to bottom; the error if there is one."""
    found = []
    for _, band in embed_bands(
        iter([(tile, tile)]), model, Settings(**settings), Clock(), quantized=quantized
    ):
        if not isinstance(band, Band):
            raise band
        found.append(band)
    return found
