"""Stages of work side by side: one that runs ahead of its consumer, one that runs behind.

Each is one thread and holds a bounded number of items. A `Clock` says how long every stage worked
and how long the middle one waited for the others.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S", bound="_Stage")


class Clock:
    """Seconds by name, summed over threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._guard = threading.Lock()

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the time that is spent within to ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - started)

    def add(self, name: str, seconds: float) -> None:
        with self._guard:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class _Stage:
    """A thread that is over when the block that uses it is left."""

    def __init__(self, clock: Clock, wait: str) -> None:
        self._clock, self._wait = clock, wait
        self._error: BaseException | None = None  # of the thread
        self._closed = self._over = False  # asked to end; has ended
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _work(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._work()
        except BaseException as caught:
            error = caught
        with self._changed:
            self._error, self._over = error, True
            self._changed.notify_all()

    def __enter__(self: S) -> S:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        interrupt: BaseException | None = None
        # Whoever leaves takes away what the thread works on, so it waits, also through signals. Not
        # in Thread.join, which before Python 3.13 takes an interrupt for the end of the thread.
        while not self._over:
            try:
                with self._changed:
                    self._closed = True
                    self._changed.notify_all()
                    while not self._over:
                        self._changed.wait()
            except BaseException as another:
                interrupt = another
        self._thread.join()
        if interrupt is not None:
            raise interrupt

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


class Ahead(_Stage, Generic[T]):
    """An iterator that works in a thread of its own, one item ahead of whoever takes them.

    While item k is in use, k + 1 is made or waits; k is done with when k + 1 is asked for. An
    exception of the iterator is raised where its item would have been. ``wait`` names the time that
    the consumer waits.
    """

    def __init__(self, items: Iterator[T], clock: Clock, wait: str) -> None:
        super().__init__(clock, wait)
        self._items = items
        self._ready: deque[T] = deque()
        self._room = 1  # items that may still be made

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._clock.lap(self._wait), self._changed:
            while not (self._ready or self._over):
                self._changed.wait()
            if self._ready:
                self._room += 1
                self._changed.notify_all()
                return self._ready.popleft()
        self._raise()
        raise StopIteration

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._room == 0 and not self._closed:
                    self._changed.wait()
                if self._closed:
                    break
                self._room -= 1
            try:
                item = next(self._items)
            except StopIteration:
                return
            with self._changed:
                self._ready.append(item)
                self._changed.notify_all()
            del item
        closing = getattr(self._items, "close", None)
        if closing is not None:
            closing()


class Behind(_Stage):
    """A thread that calls functions one after the other; one is given and not finished at most.

    The first exception is raised by the next ``give`` or ``finish``, and nothing is called after
    it. ``wait`` names the time that the giver waits.
    """

    def __init__(self, clock: Clock, wait: str) -> None:
        super().__init__(clock, wait)
        self._function: Callable[[], Any] | None = None  # until it is finished

    def give(self, function: Callable[[], Any]) -> None:
        """Have ``function`` called; waits for the one before."""
        with self._clock.lap(self._wait), self._changed:
            self._finished()
            self._function = function
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until everything that was given has been done."""
        with self._clock.lap(self._wait), self._changed:
            self._finished()

    def _finished(self) -> None:
        while self._function is not None and not self._over:
            self._changed.wait()
        self._raise()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._function is None and not self._closed:
                    self._changed.wait()
                if self._closed or self._function is None:
                    return
                function = self._function
            function()
            del function  # and what it holds
            with self._changed:
                self._function = None
                self._changed.notify_all()
