"""What a worker of this machine has for itself: a GPU, or some processors and their threads."""

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ... import backends, env
from ...backends.base import RunOptions
from ...spec import RELEASED
from .base import Job

_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Domain:
    """The share of one worker among ``workers``."""

    workers: int
    device: str | None = None  # "cuda:1"; None: as the job says
    cpus: tuple[int, ...] = ()  # to run on; () as the parent does

    def apply(self, job: Job) -> Job:
        """The job as this worker is to run it."""
        threads = job.model.threads or max(1, env.threads() // self.workers)
        settings = replace(job.settings, processes=self.workers)
        device = self.device or job.model.device
        model = replace(job.model, threads=threads, device=device)
        return replace(job, model=model, settings=settings)

    def enter(self) -> None:
        """Keep this process to its processors."""
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)


def domains(job: Job, workers: int | None) -> list[Domain]:
    """One domain a worker: GPUs in turn where the job runs on them, else processors.

    ``workers`` None: as many as there are GPUs, or NUMA nodes.
    """
    gpus = _gpus(job)
    if gpus:
        count = workers or gpus
        return [Domain(count, f"cuda:{i % gpus}") for i in range(count)]
    nodes = _nodes()
    count = workers or len(nodes)
    if not hasattr(os, "sched_setaffinity"):
        return [Domain(count)] * count
    if count == len(nodes):
        return [Domain(count, cpus=node) for node in nodes]
    cpus = sorted(cpu for node in nodes for cpu in node)
    if count > len(cpus):
        return [Domain(count)] * count
    cuts = [i * len(cpus) // count for i in range(count + 1)]
    return [Domain(count, cpus=tuple(cpus[a:b])) for a, b in pairwise(cuts)]


def _gpus(job: Job) -> int:
    """How many GPUs the job may run on; 0 where it runs on the processors or on one of them."""
    if job.model.backend not in ("auto", "cuda") or job.model.device not in (None, "auto", "cuda"):
        return 0
    if backends.get("cuda").why_not(RELEASED["v2-nano"], RunOptions()) is not None:
        return 0
    import torch

    return int(torch.cuda.device_count())


def _nodes() -> list[tuple[int, ...]]:
    """The processors that this process may use, by NUMA node."""
    if not hasattr(os, "sched_getaffinity"):
        return [()]
    mine = os.sched_getaffinity(0)
    nodes = []
    for path in sorted(_NODES.glob("node[0-9]*/cpulist")):
        cpus = tuple(sorted(_cpus(path.read_text()) & mine))
        if cpus:
            nodes.append(cpus)
    return nodes or [tuple(sorted(mine))]


def _cpus(text: str) -> set[int]:
    """The numbers of "0-3,8"."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return found
