"""CUDA devices for tests of host code: streams, events, graphs and memory that keep a record.

Within `FakeCuda`, tensors on "cuda:N" are tensors of the CPU, computed at once. What torch enqueues
is written down: on which stream, what it reads and writes, and what it comes after (a vector clock
for each stream, and one of what the host has waited for). `hazards` are accesses that no wait
orders, and memory that its allocator may give away while another stream uses it; `pageable` are
copies for which the host waits.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Clock = dict[int, int]  # stream -> its operations that have come before
_DOWNLOADS = ("cpu", "tolist", "item", "numpy")
_UNINITIALISED = ("empty", "empty_like", "new_empty")  # which enqueue nothing
_ADDRESS = "data_ptr"  # taken for a kernel that writes there


def _merge(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(clock.get(stream, 0), tick)


class _Memory:
    """A storage: where it lies, and who has used it."""

    def __init__(self, device: torch.device | None, home: "Stream | None") -> None:
        self.device, self.home = device, home  # None: pinned memory of the host
        self.uses: list[tuple[int, int, bool]] = []  # stream, its operation, did it write
        self.recorded: set[int] = set()

    def unordered(self, clock: Clock, write: bool) -> list[int]:
        """Streams whose uses ``clock`` does not come after."""
        return [s for s, t, wrote in self.uses if (wrote or write) and clock.get(s, 0) < t]


class Stream:
    def __init__(self, machine: "FakeCuda", device: Any, priority: int = 0) -> None:
        self._machine, self.priority = machine, priority
        self.device = machine.device_of(device)
        self.cuda_stream = len(machine.streams)
        machine.streams.append(self)
        self.clock: Clock = {}

    def tick(self) -> Clock:
        _merge(self.clock, self._machine.host)
        self.clock[self.cuda_stream] = self.clock.get(self.cuda_stream, 0) + 1
        return self.clock

    def wait_stream(self, other: "Stream") -> None:
        _merge(self.clock, other.clock)

    def wait_event(self, event: "Event") -> None:
        _merge(self.clock, event.clock)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event(self._machine)
        event.record(self)
        return event

    def synchronize(self) -> None:
        _merge(self._machine.host, self.clock)


class Event:
    def __init__(self, machine: "FakeCuda", enable_timing: bool = False) -> None:
        self._machine = machine
        self.clock: Clock = {}
        self.stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or self._machine.current_stream()
        self.clock = dict(self.stream.clock)

    def synchronize(self) -> None:
        _merge(self._machine.host, self.clock)

    def elapsed_time(self, end: "Event") -> float:
        """A millisecond for every operation between two events of a stream."""
        assert self.stream is not None and end.stream is self.stream
        stream = self.stream.cuda_stream
        return float(end.clock.get(stream, 0) - self.clock.get(stream, 0))


class Graph:
    def __init__(self, machine: "FakeCuda") -> None:
        self._machine = machine
        self.calls: list[tuple[Callable[..., Any], Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs in self.calls:
            self._machine.enqueue(func, args, kwargs)


class FakeCuda(TorchFunctionMode):
    """``count`` devices; `torch.cuda` is this one while ``monkeypatch`` lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> None:
        super().__init__()
        self.streams: list[Stream] = []
        self.hazards: list[str] = []
        self.pageable: list[str] = []
        self.captures: list[SimpleNamespace] = []  # stream, mode, device
        self.host: Clock = {}
        self.free = 1 << 30  # bytes of a device
        self._memory: dict[int, _Memory] = {}
        self._index = 0
        self._graph: Graph | None = None
        self._capture_stream: Stream | None = None
        self._current = {i: Stream(self, i) for i in range(count)}
        replaced = {
            "Stream": lambda device=None, priority=0: Stream(self, device, priority),
            "Event": self._event_class(),
            "CUDAGraph": lambda: Graph(self),
            "graph": self._capture,
            "stream": self._on_stream,
            "device": self._on_device,
            "current_stream": self.current_stream,
            "current_device": lambda: self._index,
            "device_count": lambda: count,
            "is_available": lambda: True,
            "synchronize": self._synchronize,
            "empty_cache": lambda: None,
            "mem_get_info": lambda device=None: (self.free, self.free),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "get_device_name": lambda device=None: "A fake card",
            "get_device_capability": lambda device=None: (9, 0),
        }
        for name, value in replaced.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(Tensor, "record_stream", self._record_stream())

    def _event_class(self) -> type[Event]:
        machine = self

        class MachineEvent(Event):
            def __init__(self, enable_timing: bool = False) -> None:
                super().__init__(machine, enable_timing)

        return MachineEvent

    # ---- devices and streams

    def device_of(self, device: Any) -> torch.device:
        if device is None or isinstance(device, int):
            return torch.device("cuda", self._index if device is None else device)
        device = torch.device(device)
        return torch.device("cuda", self._index if device.index is None else device.index)

    def current_stream(self, device: Any = None) -> Stream:
        return self._current[self.device_of(device).index]

    @contextmanager
    def _on_device(self, device: Any) -> Iterator[None]:
        before, self._index = self._index, self.device_of(device).index
        try:
            yield
        finally:
            self._index = before

    @contextmanager
    def _on_stream(self, stream: Stream) -> Iterator[None]:
        with self._on_device(stream.device):
            before, self._current[self._index] = self._current[self._index], stream
            try:
                yield
            finally:
                self._current[stream.device.index] = before

    def _synchronize(self, device: Any = None) -> None:
        for stream in self.streams:
            if stream.device == self.device_of(device):
                stream.synchronize()

    @contextmanager
    def _capture(
        self, graph: Graph, *, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        if stream is None:  # one of the process, on the device that was first
            self._capture_stream = self._capture_stream or Stream(self, None)
            stream = self._capture_stream
        assert self._graph is None, "torch captures one graph at a time"
        self.captures.append(
            SimpleNamespace(stream=stream, mode=capture_error_mode, device=stream.device)
        )
        self._synchronize()
        with self._on_stream(stream):
            self._graph = graph
            try:
                yield
            finally:
                self._graph = None

    # ---- tensors

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._graph is None:
            return self.enqueue(func, args, kwargs)
        self._graph.calls.append((func, args, kwargs))
        return self._run(func, args, kwargs)[0]  # its tensors; it will happen at each replay

    def enqueue(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a call of torch, and a record of what it does on the current stream."""
        result, reads, writes, device = self._run(func, args, kwargs)
        if not reads and not writes:
            return result
        name = func.__name__
        for memory in reads + writes:
            if memory.device is not None and device is not None and memory.device != device:
                assert name in ("copy_", "to"), f"{name} of tensors on {memory.device}, {device}"
        if device is None:  # of pinned memory by the host
            for memory in reads + writes:
                for other in memory.unordered(self.host, True):
                    self.hazards.append(f"{name} on the host while stream {other} copies")
            return result
        stream = self.current_stream(device)
        clock = stream.tick()
        for memories, write in ((reads, False), (writes, True)):
            for memory in memories:
                for other in memory.unordered(clock, write):
                    self.hazards.append(
                        f"{name} on stream {stream.cuda_stream} is not after stream {other}"
                    )
        for memories, write in ((reads, False), (writes, True)):
            for memory in memories:
                memory.uses.append((stream.cuda_stream, clock[stream.cuda_stream], write))
        blocks = any(isinstance(t, Tensor) and self._of(t) is None for t in tree_leaves(args))
        if name in _DOWNLOADS or (name in ("copy_", "to") and blocks):
            if name in ("copy_", "to"):
                self.pageable.append(name)
            stream.synchronize()
        return result

    def _run(
        self, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> tuple[Any, list[_Memory], list[_Memory], torch.device | None]:
        """(result, memory that is read, that is written, device)."""
        name, given = func.__name__, [t for t in tree_leaves((args, kwargs))]
        tensors = [t for t in given if isinstance(t, Tensor)]
        known = [m for t in tensors if (m := self._of(t)) is not None]
        there = next((m.device for m in known if m.device is not None), None)
        if func is torch.device:
            return func(*args, **kwargs), [], [], None
        if name == "__get__":
            if func == torch.Tensor.device.__get__ and known and known[0].device is not None:
                return known[0].device, [], [], None
            return func(*args, **kwargs), [], [], None
        if name == "pin_memory" or kwargs.get("pin_memory"):
            made = (
                func(*args, **{**kwargs, "pin_memory": False})
                if not tensors
                else (tensors[0].clone())
            )
            self._know(made, _Memory(None, None))
            return made, [], [], None
        targets = [d for d in given if isinstance(d, torch.device) and d.type == "cuda"]
        device = targets[0] if targets else there

        def on_cpu(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) else value

        if name == "to" and targets and there == device:
            args = args[:1] + tuple(a for a in args[1:] if not isinstance(a, torch.device))
            if len(args) == 1:
                return args[0], [], [], None
        elif name == "to" and targets:
            result = args[0].clone()
        if name != "to" or not targets or there == device:
            result = func(*map(on_cpu, args), **{k: on_cpu(v) for k, v in kwargs.items()})
        if name == _ADDRESS:
            return result, [], [m for m in known if m.device is not None], device
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if name in _DOWNLOADS:
            return result, known, [], device
        in_place = (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
        if in_place or "out" in kwargs:
            target = self._of(kwargs["out"] if "out" in kwargs else tensors[0])
            changed = [] if target is None else [target]
            return result, [m for m in known if m not in changed], changed, device
        if device is None or not outputs or any(self._of(t) is not None for t in outputs):
            return result, [], [], device  # of the host, no tensors, or views
        home = self.current_stream(device)
        made_there = [self._know(t, _Memory(device, home)) for t in outputs]
        return result, known, [] if name in _UNINITIALISED else made_there, device

    def _record_stream(self) -> Callable[[Tensor, Stream], None]:
        def record_stream(tensor: Tensor, stream: Stream) -> None:
            memory = self._of(tensor)
            assert memory is not None and memory.device is not None
            memory.recorded.add(stream.cuda_stream)

        return record_stream

    def _of(self, tensor: Tensor) -> _Memory | None:
        with torch._C.DisableTorchFunction():
            return self._memory.get(tensor.untyped_storage()._cdata)

    def _know(self, tensor: Tensor, memory: _Memory) -> _Memory:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
        self._memory[storage._cdata] = memory
        weakref.finalize(storage, self._freed, storage._cdata).atexit = False
        return memory

    def _freed(self, key: int) -> None:
        """The allocator gives memory away on its own stream at once, and after recorded ones."""
        memory = self._memory.pop(key)
        if memory.home is None:  # pinned: torch keeps it until the copies have run
            return
        clock = {**memory.home.clock}
        _merge(clock, self.host)
        for other in memory.unordered(clock, True):
            if other not in memory.recorded:
                self.hazards.append(
                    f"memory of stream {memory.home.cuda_stream} is freed while stream {other} "
                    "uses it"
                )


@contextmanager
def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """torch.cuda.graph alone, for many threads: what they do, and it fails if two capture."""
    done: list[str] = []
    inside = threading.Lock()

    @contextmanager
    def graph(graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert inside.acquire(blocking=False), "two threads capture"
        done.append(f"{stream} {capture_error_mode}")
        try:
            yield
        finally:
            inside.release()

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    yield done
