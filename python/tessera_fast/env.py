"""Every environment variable that the package reads, in one place.

TESSERA_FAST_ENGINES  folder searched for TensorRT engines before the cache is
TESSERA_FAST_FUSED    1: the cuda back end runs a narrow model's whole network as one CUDA kernel
TESSERA_FAST_ISA      run the cpu back end on this instruction set, or raise if it cannot run
TESSERA_FAST_NVTX     1: NVTX ranges around the ops of the cuda back end
TESSERA_FAST_TENSORRT_GRAPHS  1: the tensorrt back end replays full batches as CUDA graphs
TESSERA_FAST_THREADS  default number of threads of the cpu back end; else the CPUs that affinity and
                      control groups leave to this process (cpus.py)
TESSERA_FAST_WEIGHTS  folder searched for checkpoints before the hub is asked; with it, a machine
                      without network works from files copied there
XDG_CACHE_HOME        where the cache of engines lies: tessera_fast/engines below it
The hub's own variables (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN) are honoured by
huggingface_hub.
"""

import functools
import logging
import os
from pathlib import Path

from .errors import InputError
from .machine.cpus import available_cpus
from .untrusted.numbers import whole_number
from .untrusted.readers import local_path
from .untrusted.suggest import closest

_PREFIX = "TESSERA_FAST_"
KNOWN = tuple(
    f"{_PREFIX}{name}"
    for name in ("ENGINES", "FUSED", "ISA", "NVTX", "TENSORRT_GRAPHS", "THREADS", "WEIGHTS")
)
_OF_TESTS = (f"{_PREFIX}TEST_",)
_log = logging.getLogger("tessera_fast")


@functools.cache
def warn_of_unknown() -> None:
    """Log a warning, once, for every variable with the package's prefix that it does not read."""
    import multiprocessing  # here, as it changes sys.modules

    if multiprocessing.parent_process() is not None:  # a worker's parent has said it
        return
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in KNOWN and not name.startswith(_OF_TESTS):
            # what all names begin with makes none of them near
            near = closest(name.removeprefix(_PREFIX), (k.removeprefix(_PREFIX) for k in KNOWN))
            near = near.replace(" '", f" '{_PREFIX}") or f" There are {', '.join(KNOWN)}."
            _log.warning("the environment variable %s has no effect.%s", name[:100], near)


MAX_THREADS = 4096  # csrc/core/parallel.h: more than any machine has


def engine_cache() -> Path:
    """Folder that built TensorRT engines are kept in."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tessera_fast" / "engines"


def engines_dir() -> Path | None:
    """Folder of engines made elsewhere, or None."""
    text = os.environ.get("TESSERA_FAST_ENGINES")
    return local_path(text, "TESSERA_FAST_ENGINES") if text else None


def fused() -> bool:
    """Whether the cuda back end is to run the fused CUDA network."""
    return _switch("FUSED")


def isa() -> str | None:
    """Name of the forced instruction set, or None."""
    return os.environ.get("TESSERA_FAST_ISA") or None


def nvtx() -> bool:
    """Whether the cuda back end is to mark its ops on timelines."""
    return _switch("NVTX")


def tensorrt_graphs() -> bool:
    """Whether the tensorrt back end is to replay full batches as CUDA graphs."""
    return _switch("TENSORRT_GRAPHS")


def _switch(name: str) -> bool:
    """1 or 0; InputError for anything else."""
    text = os.environ.get(f"{_PREFIX}{name}", "")
    if text not in ("", "0", "1"):
        raise InputError(f"{_PREFIX}{name}: expected 1 or 0, got {text[:100]!r}")
    return text == "1"


def threads(asked: int | None = None) -> int:
    """Threads to use: ``asked``, else TESSERA_FAST_THREADS, else the CPUs this process may use.

    Raises InputError unless it is a whole number from 1 to 4,096.
    """
    if asked is not None:
        return whole_number("threads", asked, 1, MAX_THREADS)
    text = os.environ.get("TESSERA_FAST_THREADS")
    if text:
        plain = text.isascii() and text.isdigit() and len(text) < 10
        return whole_number("TESSERA_FAST_THREADS", int(text) if plain else text, 1, MAX_THREADS)
    return min(available_cpus(), MAX_THREADS)


def weights_dir() -> Path | None:
    """Folder of local checkpoints, or None."""
    text = os.environ.get("TESSERA_FAST_WEIGHTS")
    return Path(text) if text else None
