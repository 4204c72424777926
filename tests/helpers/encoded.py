"""What the cpu back end makes of packed tokens."""

import numpy as np

from tessera_fast.backends.base import Encoder
from tessera_fast.packing import PackedTokens
from tessera_fast.spec import ModelSpec


def encode(encoder: Encoder, spec: ModelSpec, tokens: tuple[PackedTokens, ...]) -> np.ndarray:
    out = np.full((tokens[0].pixels, spec.saved_dim), 7, np.float32)
    encoder.encode(tokens[0], tokens[1], out)
    return out
