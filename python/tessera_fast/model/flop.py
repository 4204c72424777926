"""How much arithmetic the ops of a model take: shares of a peak are of this number."""

import numpy as np

from ..packing import PackedTokens
from ..spec import ModelSpec


def work(spec: ModelSpec, s2: PackedTokens, s1: PackedTokens) -> dict[str, float]:
    """FLOP of every op of the cpu back end on packed tokens; no padding is counted."""
    D, F, L = spec.d_model, spec.ff_dim, spec.num_layers
    flop = dict.fromkeys(("embed", "qkv", "attention", "out", "ff1", "ff2", "gru", "pooling"), 0.0)
    for tokens, bands in ((s2, 10), (s1, 2)):
        lengths = np.diff(tokens.offsets).astype(float)
        n = lengths.sum()
        flop["embed"] += 2 * n * (bands * D + D * D)
        flop["qkv"] += L * 2 * n * 3 * D * D
        flop["attention"] += L * 4 * D * (lengths**2).sum()
        flop["out"] += L * 2 * n * D * D
        flop["ff1"] += L * 2 * n * D * F
        flop["ff2"] += L * 2 * n * D * F
        flop["pooling"] += 4 * n * D
        if spec.needs_steps and tokens.steps is not None:
            flop["gru"] += 2 * 3 * D * D * (n + len(tokens.steps))
    # two layers at most over the two tokens of a pixel, with a hidden layer of 2 D
    pixels = float(s2.pixels)
    reducer = (
        2 * D * 4 * D + 4 * D * spec.out_dim if spec.reducer == "mlp" else 2 * D * spec.out_dim
    )
    flop["reducer"] = 2 * pixels * reducer
    for op, width in (("qkv", 3 * D), ("out", D), ("ff1", 2 * D), ("ff2", 2 * D)):
        flop[op] += spec.fusion_layers * 2 * 2 * pixels * D * width
    flop["attention"] += spec.fusion_layers * 4 * D * 4 * pixels
    return flop
