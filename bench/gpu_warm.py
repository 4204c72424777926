"""Compile the Triton kernels of models ahead of time, in parallel, into the cache that runs read.

    TRITON_CACHE_DIR=build/gpu/triton python bench/gpu_warm.py --arch 90 v2-nano:bf16 v2-small:fp8

Triton looks a binary up by the kernel's source, the types, constants and alignments of its
arguments, its options, the target and some of Triton's settings in the environment, not by the
file's place or the device's number. Here a launch is recorded (triton_aot.py) with all of these as
they will be on the device; `python bench/gpu_warm.py` has to run with the environment of the runs.
Beside each binary Triton keeps a small launcher in C; where there is a driver library to link it
with, these are compiled too.
"""

import argparse
import importlib
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from typing import NamedTuple

import torch
import triton
from triton.backends.nvidia import driver as nvidia

from triton_aot import AbsentGpu, Launch

PROCESSES = 12


class Order(NamedTuple):
    """A binary to compile: what a worker process finds the kernel by."""

    module: str
    name: str
    arch: int
    data: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="+", help="model:element, the most wanted first")
    parser.add_argument("--arch", type=int, required=True, help="compute capability, 90 for 9.0")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    args = parser.parse_args()
    started, failed = time.monotonic(), 0
    with pool(args.processes) as workers:
        orders: dict[Order, None] = {}
        for traced in workers.map(trace, args.networks, [args.arch] * len(args.networks)):
            orders |= dict.fromkeys(traced)
        print(f"{len(orders)} binaries, listed in {time.monotonic() - started:.1f} s", flush=True)
        futures = {workers.submit(compile_one, order): order for order in orders}
        if links():
            nvidia.CudaUtils()  # what loads binaries is a C module too
        for future in as_completed(futures):
            error = future.exception()
            if error is not None:
                failed += 1
                print(f"{futures[future].name}: {type(error).__name__}: {error}", flush=True)
    seconds = time.monotonic() - started
    print(f"{len(orders) - failed} of {len(orders)} compiled in {seconds:.1f} s", flush=True)
    raise SystemExit(1 if failed else 0)


def pool(processes: int) -> ProcessPoolExecutor:
    """Workers that need not import torch again; none of them opens a device."""
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start)


def _start() -> None:
    torch.set_num_threads(1)


def trace(network: str, arch: int) -> list[Order]:
    """What a model launches with an element; models by the names of gpu_plan.py."""
    from gpu_plan import spec_of
    from triton_network import NetworkLaunches

    model, _, element = network.partition(":")
    return [order_of(launch) for launch in NetworkLaunches(spec_of(model), element).of(arch)]


def order_of(launch: Launch) -> Order:
    return Order(launch.kernel.module, launch.name, launch.arch, launch.data)


def compile_one(order: Order) -> float:
    """CPU seconds that a binary and its launcher take, those of ptxas and the C compiler too."""
    before = os.times()
    kernel = getattr(importlib.import_module(order.module), order.name)
    triton.runtime.driver.set_active(AbsentGpu(order.arch))
    compiled = kernel.preload(order.data)
    if links():
        nvidia.CudaLauncher(compiled.src, compiled.metadata)
    after = os.times()
    return float(sum(after[:4]) - sum(before[:4]))


@cache
def links() -> bool:
    """Whether the driver's library is here; a launcher cannot be built without it."""
    try:
        nvidia.library_dirs()
    except AssertionError as error:  # which is how Triton says so
        print(f"no launchers: {str(error).splitlines()[0]}", flush=True)
        return False
    return True


if __name__ == "__main__":
    main()
