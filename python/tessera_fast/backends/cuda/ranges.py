"""Names on the timeline: NVTX ranges for Nsight, and the seconds of every op for `bench`."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ... import env

_NOTHING = nullcontext()


class Ranges:
    """Called with an op's name; the context it returns surrounds the op's launches.

    Off, it costs a function call. ``TESSERA_FAST_NVTX=1`` turns NVTX ranges and the records of
    torch.profiler on. ``timed`` measures ops with CUDA events (wall clock on a CPU).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marked = env.nvtx()
        self._laps: list[tuple[str, Any, Any]] | None = None

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        if self._laps is not None:
            return self._lap(name)
        return self._mark(name) if self._marked else _NOTHING

    @contextmanager
    def _mark(self, name: str) -> Iterator[None]:
        with torch.profiler.record_function(name):
            if self._device.type != "cuda":
                yield
                return
            torch.cuda.nvtx.range_push(name)
            try:
                yield
            finally:
                torch.cuda.nvtx.range_pop()

    @contextmanager
    def _lap(self, name: str) -> Iterator[None]:
        assert self._laps is not None
        start = self._now()
        with self._mark(name):
            yield
        self._laps.append((name, start, self._now()))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def synchronised(self, name: str) -> Iterator[None]:
        """For work on another stream than the caller's. Timed, it waits for the device before and
        after: what it measures does not overlap, which it otherwise would."""
        if self._laps is None:
            with self(name):
                yield
            return
        self._wait()
        start = time.perf_counter()
        with self._mark(name):
            yield
        self._wait()
        self._laps.append((name, start, time.perf_counter()))

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @property
    def timing(self) -> bool:
        return self._laps is not None

    @contextmanager
    def marked(self) -> Iterator[None]:
        """NVTX ranges and profiler records in this context, whatever the environment says."""
        before, self._marked = self._marked, True
        try:
            yield
        finally:
            self._marked = before

    @contextmanager
    def timed(self) -> Iterator[dict[str, float]]:
        """Seconds by op, filled in when the context ends; waits for the device."""
        seconds: dict[str, float] = defaultdict(float)
        self._laps = []
        try:
            yield seconds
            self._wait()
            for name, start, stop in self._laps:
                is_event = isinstance(start, torch.cuda.Event)
                seconds[name] += start.elapsed_time(stop) / 1e3 if is_event else stop - start
        finally:
            self._laps = None
