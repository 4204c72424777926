"""Every environment variable that the package reads, in one place.

TESSERA_FAST_ENGINES  folder searched for TensorRT engines before the cache is
TESSERA_FAST_FUSED    1: the cuda back end runs a narrow model's whole network as one CUDA kernel
TESSERA_FAST_ISA      run the cpu back end on this instruction set, or raise if it cannot run
TESSERA_FAST_TENSORRT_GRAPHS  1: the tensorrt back end replays full batches as CUDA graphs
TESSERA_FAST_THREADS  default number of threads of the cpu back end; else the CPUs that affinity and
                      control groups leave to this process (cpus.py)
TESSERA_FAST_WEIGHTS  folder searched for checkpoints before the hub is asked; with it, a machine
                      without network works from files copied there
XDG_CACHE_HOME        where the cache of engines lies: tessera_fast/engines below it
The hub's own variables (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN) are honoured by
huggingface_hub.
"""

import os
from numbers import Integral
from pathlib import Path

from .cpus import available_cpus
from .errors import InputError
from .untrusted import shown

MAX_THREADS = 4096  # csrc/core/parallel.h: more than any machine has


def engine_cache() -> Path:
    """Folder that built TensorRT engines are kept in."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tessera_fast" / "engines"


def engines_dir() -> Path | None:
    """Folder of engines made elsewhere, or None."""
    text = os.environ.get("TESSERA_FAST_ENGINES")
    return Path(text) if text else None


def fused() -> bool:
    """Whether the cuda back end is to run the fused CUDA network."""
    return os.environ.get("TESSERA_FAST_FUSED") == "1"


def isa() -> str | None:
    """Name of the forced instruction set, or None."""
    return os.environ.get("TESSERA_FAST_ISA") or None


def tensorrt_graphs() -> bool:
    """Whether the tensorrt back end is to replay full batches as CUDA graphs."""
    return os.environ.get("TESSERA_FAST_TENSORRT_GRAPHS") == "1"


def threads(asked: int | None = None) -> int:
    """Threads to use: ``asked``, else TESSERA_FAST_THREADS, else the CPUs this process may use.

    Raises InputError unless it is a whole number from 1 to 4,096.
    """
    if asked is not None:
        return _count("threads", asked, asked)
    text = os.environ.get("TESSERA_FAST_THREADS")
    if text:
        plain = text.isascii() and text.isdigit() and len(text) < 10
        return _count("TESSERA_FAST_THREADS", int(text) if plain else None, text)
    return min(available_cpus(), MAX_THREADS)


def _count(what: str, number: object, got: object) -> int:
    whole = isinstance(number, Integral) and not isinstance(number, bool)
    if not whole or not 1 <= number <= MAX_THREADS:  # type: ignore[operator]
        raise InputError(
            f"{what}: expected a positive integer up to {MAX_THREADS:,}, got {shown(got)}"
        )
    return int(number)  # type: ignore[call-overload]


def weights_dir() -> Path | None:
    """Folder of local checkpoints, or None."""
    text = os.environ.get("TESSERA_FAST_WEIGHTS")
    return Path(text) if text else None
