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
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import TesseraError
from ..runner import Task, TileReport
from ..store import open_output
from .base import Job, Watch
from .domains import Domain, domains

_POLL = 0.1  # seconds a worker waits for a task before it looks at its reports
_START_FAILURES = 3  # workers that may die in a row before they are ready


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
    ready: bool = False
    wants: bool = False  # has asked for a task and got none yet


class _Supervisor:
    def __init__(
        self,
        job: Job,
        tasks: Sequence[Task],
        places: list[Domain],
        retries: int,
        watch: Watch,
    ) -> None:
        self._job = job
        self._watch = watch
        self._retries = retries
        self._queue = deque(_Held(task) for task in tasks)
        self._context = multiprocessing.get_context("spawn")
        self._failed_starts = 0
        self._pixels = 0  # of tiles that are over
        self.output: Any = None
        self.workers = [self._start(place) for place in places]

    def _start(self, domain: Domain) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, domain.apply(self._job), domain), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, domain)

    def run(self) -> None:
        while self.workers:
            self._hand_out()
            pipes: dict[Any, _Worker] = {w.connection: w for w in self.workers}
            for pipe in wait(list(pipes)):
                worker = pipes[pipe]
                try:
                    message, content = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    self._bury(worker)
                    continue
                if message == "ready":
                    worker.ready, self._failed_starts = True, 0
                    if self.output is None:  # held open, so that the last one out tidies up
                        self.output = open_output(
                            self._job.out, (), content, extent=self._job.extent
                        )
                        self._watch.started(content)
                elif message == "want":
                    worker.wants = True
                elif message == "report":
                    key = (content.name, content.year)
                    worker.held = [
                        h for h in worker.held if (h.task.key.name, h.task.key.year) != key
                    ]
                    self._report(content)
                elif message == "end":
                    self.workers.remove(worker)
                    worker.process.join()
                    self._watch.add(content)
                else:
                    raise content  # StoreError and the like: every tile would meet it

    def _hand_out(self) -> None:
        """Answer the workers that asked."""
        for worker in self.workers:
            if not worker.wants or any(h.deaths for h in worker.held):
                continue
            if self._queue and (not worker.held or not self._queue[0].deaths):
                worker.wants = False
                worker.held.append(self._queue.popleft())
                _send(worker, worker.held[-1].task)
            elif not self._queue and not any(w.held for w in self.workers):
                worker.wants = False
                _send(worker, None)

    def _bury(self, worker: _Worker) -> None:
        """Replace a worker that died, and put what it held back."""
        worker.connection.close()
        worker.process.join()
        self.workers.remove(worker)
        code = worker.process.exitcode
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _START_FAILURES:
                raise TesseraError(
                    f"{_START_FAILURES} workers ended with {_cause(code)} before they could work; "
                    "see what they printed, and give fewer workers or a smaller model"
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
        if self._queue or any(w.held for w in self.workers):
            self.workers.append(self._start(worker.domain))

    def _report(self, tile: TileReport) -> None:
        self._pixels += tile.pixels
        self._watch.progress(self._pixels)
        self._watch.report(tile)

    def close(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()
        if self.output is not None:
            self.output.close()


def run_local(
    job: Job, tasks: Sequence[Task], watch: Watch, workers: int | None, retries: int
) -> None:
    """See `run_tasks`; ``workers`` None: one per GPU or NUMA node."""
    places = domains(job, workers)[: max(1, len(tasks))]
    supervisor = _Supervisor(job, tasks, places, retries, watch)
    try:
        supervisor.run()
    finally:
        supervisor.close()


def _send(worker: _Worker, task: Task | None) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it died: the next wait tells
        worker.connection.send(task)


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


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
