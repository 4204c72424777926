"""The smallest memory settings that give blocks of some rows."""

from pathlib import Path

import tessera_fast as tf
from tessera_fast.pipeline.embed import block_rows


def memory_for(folder: Path, model: Path, rows: int) -> int:
    """The smallest memory setting, in bytes, that gives blocks of ``rows`` rows."""
    tile, low, high = tf.open_tile(folder), 0, 1 << 30
    with tf.load_model(model, threads=1) as loaded:
        while high - low > 1:
            middle = (low + high) // 2
            try:
                enough = block_rows(tile, loaded, middle) >= rows
            except tf.InputError:
                enough = False
            low, high = (low, middle) if enough else (middle, high)
        assert block_rows(tile, loaded, high) == rows
    return high
