"""Values in messages: short and quick to write, whatever they are."""

import os
import reprlib
from typing import Any

import numpy as np


class _Shown(reprlib.Repr):
    """repr() in bounded time and space, whatever the value: its size may be exponential."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 4
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= 40 else f"{len(x)} bytes"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0 or len(x) > self.maxdict:  # reprlib sorts all keys before it leaves some out
            return f"a dict of {len(x)}"
        pairs = (f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in x.items())
        return "{" + ", ".join(pairs) + "}"

    def repr_instance(self, x: Any, level: int) -> str:
        plain = x is None or isinstance(x, bool | float | np.generic | os.PathLike)
        return super().repr_instance(x, level) if plain else f"a {type(x).__name__}"

    repr_set = repr_frozenset = repr_instance


_SHOWN = _Shown()


def shown(value: object) -> str:
    """``value`` for a message: like repr(), but short and quick for every value."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def printable(text: str) -> str:
    """``text`` with escapes for what is no UTF-8, as names of files may be."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def named(name: str) -> str:
    """``name`` as it is where it is plain and short, else like `shown`."""
    return name if len(name) <= 100 and name.isprintable() else shown(name)
