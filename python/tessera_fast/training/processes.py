"""One process, or several that torchrun started: who this one is, and gradients in common."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import env
from ..errors import BackendUnavailable, InputError


@dataclass(frozen=True)
class Place:
    """This process among all, and its device."""

    rank: int
    count: int
    device: torch.device

    def share(self, module: nn.Module) -> Any:
        """``module`` with gradients averaged over the processes."""
        if self.count == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # gradients lie in the buffers that are sent: no second copy of them
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()


@contextmanager
def joined(device: str, threads: int) -> Iterator[Place]:
    """Join the processes that torchrun started, if it did; BackendUnavailable for no such device.

    ``device``: auto, cpu, cuda or cuda:N; under torchrun, cuda is the GPU of the local rank.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if count > 1 and device.startswith("cuda:"):
        raise InputError(
            f"[run] device: expected cuda under torchrun, a GPU for each process, got {device!r}"
        )
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        place = Place(rank, count, torch.device(device))
        torch.empty(1, device=place.device)
        if place.device.type == "cuda":
            torch.cuda.set_device(place.device)
    except (RuntimeError, AssertionError) as error:
        raise BackendUnavailable(f"[run] device: {device!r} cannot be used: {error}") from error
    before = torch.get_num_threads()
    torch.set_num_threads(threads or min(before, env.threads()))  # torch knows no quotas
    if count > 1:
        torch.distributed.init_process_group("nccl" if place.device.type == "cuda" else "gloo")
    try:
        yield place
    finally:
        torch.set_num_threads(before)
        if count > 1:
            torch.distributed.destroy_process_group()
