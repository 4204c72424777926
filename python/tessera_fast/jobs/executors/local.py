"""Supervised worker processes on this machine: one that dies is replaced, its tile tried again.

The parent hands out tasks one by one as workers ask for them, and embeds nothing. A worker asks
while it still encodes the tile before, so it may hold a few. A place whose workers always die is
given up, and the others go on.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from ...errors import BackendUnavailable, TesseraError
from ...store import hold_output
from ..runner import Task, TileReport
from .attempts import Attempts, Held
from .base import Job, Watch
from .domains import Domain, domains

_POLL = 0.1  # seconds a worker waits for a task before it looks at its reports
_START_DEATHS = 3  # workers in a row that may die at a place before they ask for a task
_DEATHS = 10  # and that may die there without a finished tile, while other places have workers
_LEAVE = 60.0  # seconds that a worker which is done has to end


@dataclass(eq=False)
class _Place:
    """A share of the machine, for one worker at a time."""

    number: int
    domain: Domain
    starts: int = 0  # workers that died in a row before they asked for a task
    deaths: int = 0  # workers that died since the last finished tile

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.domain.device}" if self.domain.device else "")


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Connection
    place: _Place
    held: list[Held] = field(default_factory=list)
    ready: bool = False  # has asked for a task
    wants: bool = False  # and got none yet


class _Supervisor:
    def __init__(self, job: Job, tasks: Sequence[Task], retries: int, watch: Watch) -> None:
        self._job = job
        self._watch = watch
        self._queue = Attempts(tasks, retries)
        self._context = multiprocessing.get_context("spawn")
        self._started = False
        self._given_up: list[str] = []  # not told before a worker has started
        self._pixels = 0  # of tiles that are over
        self._workers: list[_Worker] = []

    def _start(self, place: _Place) -> None:
        try:
            with _signals_held():
                ours, theirs = self._context.Pipe()
                with theirs:
                    domain = place.domain
                    process = self._context.Process(
                        target=_work, args=(theirs, domain.apply(self._job), domain), daemon=True
                    )
                    process.start()
                self._workers.append(_Worker(process, ours, place))
        except OSError as error:  # no process, no memory or no open file is left
            self._give_up(place, f"its process cannot be started ({error})")

    def run(self, places: list[Domain]) -> None:
        for number, domain in enumerate(places):
            self._start(_Place(number, domain))
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
                self._hear(worker, message, content)

    def _hear(self, worker: _Worker, message: str, content: Any) -> None:
        if message == "ready":
            if not self._started:
                self._watch.started(content)
            self._started = True
            self._tell_given_up()
        elif message == "want":
            worker.ready = worker.wants = True
            worker.place.starts = 0
        elif message == "report":
            key = (content.name, content.year)
            worker.held = [h for h in worker.held if (h.task.key.name, h.task.key.year) != key]
            worker.place.deaths = 0
            self._report(content)
        elif message == "end":
            self._remove(worker)
            self._watch.add(content)
        elif isinstance(content, BackendUnavailable) and not worker.ready and self._others(worker):
            self._remove(worker)
            self._give_up(worker.place, str(content))
        else:
            raise content  # StoreError and the like: every tile would meet it

    def _hand_out(self) -> None:
        """Answer the workers that asked."""
        places = {w.place.number for w in self._workers if w.ready}
        for worker in self._workers:
            if not worker.wants:
                continue
            held = self._queue.next_for(worker.held, worker.place.number, places)
            if held is not None:
                worker.wants = False
                worker.held.append(held)
                _send(worker, held.task)
            elif not self._queue and not any(w.held for w in self._workers):
                worker.wants = False
                _send(worker, None)

    def _bury(self, worker: _Worker) -> None:
        """Replace a worker that died, and put what it held back."""
        self._remove(worker)
        place, cause = worker.place, _cause(worker.process.exitcode)
        failed = self._queue.died_with(worker.held, place.number)
        if failed is not None:
            error = TesseraError(
                f"tile {failed.task.key.name}: its worker ended with {cause}, {failed.deaths} "
                "times; give less --memory or fewer workers, or leave the tile out"
            )
            self._report(failed.task.report(error))
        place.deaths += 1
        place.starts += not worker.ready
        if not self._queue and not any(w.held for w in self._workers):
            return
        if place.starts >= _START_DEATHS:
            self._give_up(
                place,
                f"{place.starts} workers ended with {cause} before they had a tile; see what they "
                "printed. Give fewer workers or a smaller model; a script that has workers starts "
                "them below `if __name__ == '__main__':`",
            )
        elif place.deaths >= _DEATHS and self._others(worker):
            self._give_up(place, f"{place.deaths} workers in a row ended there, as with {cause}")
        else:
            self._start(place)

    def _others(self, worker: _Worker) -> bool:
        return any(other is not worker for other in self._workers)

    def _give_up(self, place: _Place, why: str) -> None:
        """Go on without a place; TesseraError where nobody is left."""
        if not self._workers:
            raise TesseraError(why)
        self._given_up.append(f"{place} is given up, the others go on: {why}")
        if self._started:
            self._tell_given_up()

    def _tell_given_up(self) -> None:
        while self._given_up:
            self._watch.warn(self._given_up.pop(0))

    def _remove(self, worker: _Worker) -> None:
        """Forget a worker that has ended, or is about to."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join(_LEAVE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()

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
