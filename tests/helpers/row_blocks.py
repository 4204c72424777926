"""The row blocks of one tile, as the pipeline gives them."""

from tessera_fast.pipeline.embed import RowBlock, Settings, embed_row_blocks
from tessera_fast.pipeline.stages import Clock


def embed_rows(tile, model, *, quantized=False, **settings) -> list[RowBlock]:
    """All row blocks of ``tile``, top to bottom; the error if there is one."""
    found = []
    for _, block in embed_row_blocks(
        iter([(tile, tile)]), model, Settings(**settings), Clock(), quantized=quantized
    ):
        if not isinstance(block, RowBlock):
            raise block
        found.append(block)
    return found
