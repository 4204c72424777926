"""The extension module built from csrc/bindings."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Stream = tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None
]

def pack(
    s2: tuple[np.ndarray, np.ndarray | None, np.ndarray],
    orbits: list[tuple[np.ndarray, np.ndarray, int]],
    sampling: str,
    want_steps: bool,
    binary_masks: bool,
    row0: int,
    seed: int,
    threads: int,
) -> tuple[Stream, Stream, np.ndarray]: ...
def quantize(
    embeddings: np.ndarray, absmax_floor: float, scale_floor: float, isa: str = ""
) -> tuple[np.ndarray, np.ndarray]: ...
def isas() -> list[tuple[str, bool, str, bool]]: ...
def select_isa(name: str) -> str: ...
def native_bf16(name: str) -> bool: ...
def load_encoder(
    config: dict[str, Any],
    positions: np.ndarray,
    tensors: Mapping[str, np.ndarray],
    isa: str,
    precision: str,
) -> Encoder: ...

class Encoder:  # made by load_encoder alone
    def encode(
        self,
        s2: Any,
        s1: Any,
        out: np.ndarray,
        threads: int,
        progress: Callable[[int], None] | None = None,
        profile: bool = False,
    ) -> Any: ...
    @property
    def isa(self) -> str: ...

class ops:
    @staticmethod
    def linear(
        isa: str,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        residual: np.ndarray | None,
        relu: bool,
        y: np.ndarray,
        element: str = "fp32",
        nonnegative: bool = False,
    ) -> None: ...
    @staticmethod
    def convert(
        isa: str, x: np.ndarray, element: str, nonnegative: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]: ...
    @staticmethod
    def int8_group(isa: str) -> int: ...
    @staticmethod
    def spin(isa: str, element: str, steps: int) -> int: ...
    @staticmethod
    def layer_norm(
        isa: str,
        x: np.ndarray,
        weight: np.ndarray | None,
        bias: np.ndarray | None,
        eps: float,
        relu: bool,
        y: np.ndarray,
    ) -> None: ...
    @staticmethod
    def rms_norm(isa: str, x: np.ndarray, heads: int, weight: np.ndarray, eps: float) -> None: ...
    @staticmethod
    def attention(
        isa: str,
        qkv: np.ndarray,
        heads: int,
        log_multiplicity: np.ndarray,
        y: np.ndarray,
        element: str = "fp32",
    ) -> None: ...
    @staticmethod
    def pool(
        isa: str,
        x: np.ndarray,
        query: np.ndarray,
        query_bias: float,
        extra: np.ndarray,
        y: np.ndarray,
    ) -> None: ...
    @staticmethod
    def gru_step(
        isa: str,
        stage: str,
        x: np.ndarray,
        recurrent: np.ndarray,
        h: np.ndarray,
        r_h: np.ndarray,
        z: np.ndarray,
    ) -> None: ...
