"""Triton kernels compiled for GPUs that are not here, exactly as a launch would compile them.

A stand-in for Triton's driver names a target; launchers then run as they are, on tensors of the
"meta" device: shapes, types and addresses, no data. Triton binds and specialises the arguments, a
hook takes what it would have compiled, and nothing is launched (`recording`). What was recorded is
compiled to machine code by Triton and its ptxas in worker processes (`compiled`).
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

# Kernels are decorated when they are imported, for the interpreter or for the compiler.
if knobs.runtime.interpret:
    raise SystemExit("TRITON_INTERPRET is set, so Triton interprets and compiles nothing: unset it")

_PTXAS = {
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spilled": r"(\d+) bytes spill stores",
}  # in what ptxas -v says of every function of a binary
# What multiplies matrices, by its name in PTX, the widest first; "" is scalar arithmetic.
_PRODUCTS = ("tcgen05.mma", "wgmma", "mma.sync", "")


class AbsentGpu(DriverBase):
    """What Triton asks of a driver up to the launch. A device's index is its capability, so that
    the caches of a kernel, which go by device, never mix targets."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("nothing is launched here")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is launched here")


@dataclass(frozen=True)
class Launch:
    """What Triton compiles for a call of a kernel on a target."""

    kernel: JITFunction
    arch: int
    data: str  # Triton's own description, which JITFunction.preload reads

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        return json.loads(self.data)

    @property
    def options(self) -> dict[str, Any]:
        return self._parsed["options"]

    def constants(self) -> str:
        """The kernel's compile-time parameters, and arguments that Triton took for constants."""
        data, names = self._parsed, self.kernel.arg_names
        pairs = zip(data["constant_keys"], data["constant_vals"], strict=True)
        return " ".join(f"{'.'.join([names[k[0]], *map(str, k[1:])])}={v}" for k, v in pairs)

    def arguments(self) -> str:
        """Types of the other arguments; ``/16`` where Triton counts on a multiple of 16."""
        data, names = self._parsed, self.kernel.arg_names
        even = {
            key[0]
            for key, value in zip(data["attrs_keys"], data["attrs_vals"], strict=True)
            if value
        }
        return " ".join(
            f"{name}:{kind}{'/16' if names.index(name) in even else ''}"
            for name, kind in data["signature"].items()
            if kind != "constexpr"
        )

    @cached_property
    def identity(self) -> str:
        """Digest of all that distinguishes it from other launches of the same sources."""
        options = {k: v for k, v in self.options.items() if k != "extern_libs"}  # a path
        text = [self.kernel.module, self.name, self.arch, self.constants(), self.arguments()]
        return hashlib.sha256(json.dumps([text, options]).encode()).hexdigest()[:12]


@contextlib.contextmanager
def recording(arch: int) -> Iterator[list[Launch]]:
    """The distinct launches of the block, when it ends, as a GPU of capability ``arch`` would
    compile them."""
    taken: dict[Launch, None] = {}

    def take(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        taken[Launch(fn.jit_function, arch, compile["specialization_data"])] = None
        return True  # which is to say: compile nothing, launch nothing

    launches: list[Launch] = []
    triton.runtime.driver.set_active(AbsentGpu(arch))
    knobs.runtime.jit_cache_hook = take
    try:
        yield launches
    finally:
        knobs.runtime.jit_cache_hook = None
    launches += taken


def compiled(
    launches: Sequence[Launch], workers: int, inspect: Callable[[bytes], Any] | None = None
) -> Iterator[dict[str, Any] | BaseException]:
    """The resources of every launch, or what its compilation raised, in order. ``inspect``: gets
    the machine code; what it returns is ``inspected`` of the resources."""
    _launches[:] = launches
    cache = tempfile.mkdtemp(prefix="triton-aot-")
    try:
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("fork"),  # a kernel cannot be pickled
            initializer=_start_worker,
            initargs=(cache,),
        ) as pool:
            for future in [pool.submit(_resources, i, inspect) for i in range(len(launches))]:
                yield future.exception() or future.result()
    finally:
        shutil.rmtree(cache)


_launches: list[Launch] = []  # what forked workers find by its index


def _start_worker(cache: str) -> None:
    torch.set_num_threads(1)
    knobs.cache.dir = cache
    knobs.compilation.always_compile = True
    knobs.compilation.disable_line_info = True
    knobs.nvidia.dump_ptxas_log = True


def _resources(index: int, inspect: Callable[[bytes], Any] | None) -> dict[str, Any]:
    launch = _launches[index]
    triton.runtime.driver.set_active(AbsentGpu(launch.arch))
    started = time.perf_counter()
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        kernel = launch.kernel.preload(launch.data)
    found = {key: re.findall(pattern, log.getvalue()) for key, pattern in _PTXAS.items()}
    missing = [key for key, matches in found.items() if not matches]
    if missing:
        raise RuntimeError(f"ptxas -v does not tell {', '.join(missing)}:\n{log.getvalue()}")
    metadata = kernel.metadata
    inspected = {} if inspect is None else {"inspected": inspect(kernel.asm["cubin"])}
    return {
        **inspected,
        "warps": metadata.num_warps,
        "stages": metadata.num_stages,
        **{key: max(map(int, matches)) for key, matches in found.items()},
        "shared": metadata.shared,
        "tensor_memory": getattr(metadata, "tmem_size", None) or 0,
        "scratch": metadata.global_scratch_size,
        "product": next(p for p in _PRODUCTS if p in kernel.asm["ptx"]),
        "seconds": time.perf_counter() - started,
    }
