"""Supervised worker processes on this machine: one that dies is replaced, its tile tried again.

The parent hands out tasks one by one as workers ask for them, and embeds nothing. A worker asks
while it still encodes the tile before, so it may hold a few. When it dies, what it held is tried
again alone in a worker, so that a tile which ends its worker is told from one beside it.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import TesseraError
from ..runner import Task, TileReport
from ..store import hold_output
from .base import Job, Watch
from .domains import Domain, domains

_POLL = 0.1  # seconds a worker waits for a task before it looks at its reports
_START_FAILURES = 3  # workers that may die in a row before they ask for a task


@dataclass
class _Held:
    """A task and how many workers have died with it."""

    task: Task
    deaths: int = 0


@dataclass
class _Worker:
    process: Any
    connection: Connection
    domain: Domain
    held: list[_Held] = field(default_factory=list)
    ready: bool = False  # has asked for a task
    wants: bool = False  # and got none yet


class _Supervisor:
    def __init__(self, job: Job, tasks: Sequence[Task], retries: int, watch: Watch) -> None:
        self._job = job
        self._watch = watch
        self._retries = retries
        self._queue = deque(_Held(task) for task in tasks)
        self._context = multiprocessing.get_context("spawn")
        self._failed_starts = 0
        self._started = False
        self._pixels = 0  # of tiles that are over
        self._workers: list[_Worker] = []

    def _start(self, domain: Domain) -> None:
        with _signals_held():
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_work, args=(theirs, domain.apply(self._job), domain), daemon=True
            )
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, domain))

    def run(self, places: list[Domain]) -> None:
        for place in places:
            self._start(place)
        while self._workers:
            self._hand_out()
            pipes: dict[Any, _Worker] = {w.connection: w for w in self._workers}
            for pipe in wait(list(pipes)):
                worker = pipes[pipe]
                try:
                    message, content = worker.connection.recv()
                except (EOFError, OSError):  # it died, maybe within a message
                    self._bury(worker)
                    continue
                if message == "ready":
                    if not self._started:
                        self._watch.started(content)
                    self._started = True
                elif message == "want":
                    worker.ready = worker.wants = True
                    self._failed_starts = 0
                elif message == "report":
                    key = (content.name, content.year)
                    worker.held = [
                        h for h in worker.held if (h.task.key.name, h.task.key.year) != key
                    ]
                    self._report(content)
                elif message == "end":
                    self._workers.remove(worker)
                    worker.connection.close()
                    worker.process.join()
                    self._watch.add(content)
                else:
                    raise content  # StoreError and the like: every tile would meet it

    def _hand_out(self) -> None:
        """Answer the workers that asked."""
        for worker in self._workers:
            if not worker.wants or any(h.deaths for h in worker.held):
                continue
            if self._queue and (not worker.held or not self._queue[0].deaths):
                worker.wants = False
                worker.held.append(self._queue.popleft())
                _send(worker, worker.held[-1].task)
            elif not self._queue and not any(w.held for w in self._workers):
                worker.wants = False
                _send(worker, None)

    def _bury(self, worker: _Worker) -> None:
        """Replace a worker that died, and put what it held back."""
        worker.connection.close()
        worker.process.join()
        self._workers.remove(worker)
        code = worker.process.exitcode
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _START_FAILURES:
                raise TesseraError(
                    f"{_START_FAILURES} workers ended with {_cause(code)} before they had a tile; "
                    "see what they printed. Give fewer workers or a smaller model; a script that "
                    "has workers starts them below `if __name__ == '__main__':`"
                )
        for held in reversed(worker.held):
            held.deaths += 1
            if held.deaths <= self._retries or len(worker.held) > 1:
                self._queue.appendleft(held)
                continue
            error = TesseraError(
                f"tile {held.task.key.name}: its worker ended with {_cause(code)}, "
                f"{held.deaths} times; give less --memory or fewer workers, or leave the tile out"
            )
            self._report(held.task.report(error))
        if self._queue or any(w.held for w in self._workers):
            self._start(worker.domain)

    def _report(self, tile: TileReport) -> None:
        self._pixels += tile.pixels
        self._watch.progress(self._pixels)
        self._watch.report(tile)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()


def run_local(
    job: Job, tasks: Sequence[Task], watch: Watch, workers: int | None, retries: int
) -> None:
    """See `run_tasks`; ``workers`` None: one per GPU or NUMA node."""
    places = domains(job, workers)[: len(tasks)]
    with hold_output(job.out):
        supervisor = _Supervisor(job, tasks, retries, watch)
        try:
            supervisor.run(places)
        finally:
            supervisor.close()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Have signals wait until a process that is started is known to whoever ends it.

    Ctrl-C reaches all processes of a terminal: it is kept from the new one for good.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in numbers}
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # starts with the first process, and lifts the mask
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for n, handler in before.items():
            signal.signal(n, handler)
    for number in came:
        signal.raise_signal(number)


def _send(worker: _Worker, task: Task | None) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it died: the next wait tells
        worker.connection.send(task)


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    if code == -signal.SIGKILL:
        return "SIGKILL (out of memory?)"
    return next((s.name for s in signal.Signals if s == -code), f"signal {-code}")


def _work(connection: Connection, job: Job, domain: Domain) -> None:
    """A worker: runs until it is told that there is nothing more, or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    domain.enter()
    turn = threading.Lock()

    def send(message: str, content: Any = None) -> None:
        with turn:
            connection.send((message, content))

    def tasks() -> Iterator[Task | None]:
        while True:
            send("want")
            while not connection.poll(_POLL):
                yield None
            task = connection.recv()
            if task is None:
                return
            yield task

    try:
        with job.open() as runner:
            send("ready", runner.provenance)
            runner.run(tasks(), lambda report: send("report", report))
            send("end", runner.clock.seconds)
    except TesseraError as error:
        send("error", error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
