"""Seeded parameters for a model whose trained weights are not at hand: demo, tests, benchmarks.

Every tensor is drawn from numpy's frozen ``RandomState`` under a key made of the seed and the
parameter's name, so the same arrays appear on every machine and in any order of access. The
scales make attention and pooling peaked, so that different pixels get clearly different
embeddings; nothing about them is learned, and the embeddings mean nothing.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from ..spec import ModelSpec

_BLOCK = 1 << 20  # values drawn at once: bounds the float64 temporaries to 8 MiB
_SEED_SPREAD = 2654435761  # 2^32 / golden ratio (Knuth): neighbouring seeds get far-apart keys


class Untrained(Mapping[str, np.ndarray]):
    """Parameters by official name, drawn on every access and not kept.

    The 2-billion-parameter teacher would fill 8 GB at once; one tensor at a time it does not.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
        self._shapes = dict(shapes)
        self.seed = seed

    def __getitem__(self, name: str) -> np.ndarray:
        return _draw(name, self._shapes[name], self.seed)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def sha256(self) -> str:
        """Digest of what determines the arrays: recipe, seed, names and shapes."""
        recipe = {"recipe": "tessera_fast untrained", "seed": self.seed, "shapes": self._shapes}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def untrained(spec: ModelSpec, seed: int = 1) -> Untrained:
    """The parameters of ``spec.parameter_shapes()`` for a seed >= 0, float32, C-contiguous."""
    return Untrained(spec.parameter_shapes(), seed)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    key = (zlib.crc32(name.encode()) ^ (seed * _SEED_SPREAD)) & 0xFFFFFFFF
    rng = np.random.RandomState(key)
    flat = np.empty(math.prod(shape), np.float32)
    for start in range(0, flat.size, _BLOCK):  # the stream does not depend on the block size
        block = flat[start : start + _BLOCK]
        block[:] = rng.standard_normal(block.size)
    flat *= _scale(name, shape)
    if _is_gain(name, shape):
        flat += np.float32(1)
    return flat.reshape(shape)


def _is_gain(name: str, shape: tuple[int, ...]) -> bool:
    """A vector called weight is the gain of a LayerNorm or RMSNorm."""
    return len(shape) == 1 and name.endswith(".weight")


def _scale(name: str, shape: tuple[int, ...]) -> np.float32:
    if len(shape) == 1:
        return np.float32(0.1)
    if name == "fusion_modality_embed":
        return np.float32(0.5)
    if name.endswith(("in_proj_weight", "q_proj.weight", "k_proj.weight")):
        gain = 1.5
    elif name.endswith("attn_pool.query.weight"):
        gain = 3.0
    else:
        gain = 1.0
    return np.float32(gain / math.sqrt(shape[-1]))
