"""Ray: actors that hold the model. Ray places them; the driver replaces them and their tiles."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import BackendUnavailable, TesseraError
from ...packages import require
from ...store import Provenance, hold_output
from ..runner import Task, TileReport, TileRunner
from .attempts import Attempts, Held
from .base import Job, Watch

_IN_FLIGHT = 2  # tasks an actor has been given, so that it never waits for the next
_POLL = 1.0  # seconds
_START_WAIT = 1800.0  # seconds without any actor: a cluster may have to bring up nodes first
_TELL = 60.0  # seconds between two warnings that actors are waited for
_START_DEATHS = 3  # actors in a row that may die at a place before they answer
_DEATHS = 10  # and that may die there without a finished tile, while there are others
_LEAVE = 60.0  # seconds that actors which are done have to end
_log = logging.getLogger(__name__)


class _Actor:
    """One worker: a loaded model and an open output, from its first task on.

    Not from its start: what an actor raises there is told to nobody as it was raised.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stack = contextlib.ExitStack()

    @functools.cached_property
    def _runner(self) -> TileRunner:
        return self._stack.enter_context(self._job.open())

    def provenance(self) -> Provenance:
        return self._runner.provenance

    def run_tile(self, task: Task) -> TileReport:
        return self._runner.run_tile(task)

    def close(self) -> dict[str, float]:
        """Let go of the output; the seconds of every stage."""
        self._stack.close()
        return self._runner.clock.seconds if "_runner" in vars(self) else {}


@dataclass(eq=False)
class _Place:
    """A share of the cluster, for one actor at a time."""

    number: int
    actor: Any
    start: Any  # reference to the actor's provenance, its first call
    ready: bool = False  # it has answered
    held: list[Held] = field(default_factory=list)
    starts: int = 0  # actors that died in a row before they answered
    deaths: int = 0  # actors that died since the last finished tile


class _Driver:
    """Gives tiles to actors, and replaces those that die, as a supervisor does its workers."""

    def __init__(self, ray: Any, new_actor: Any, queue: Attempts, watch: Watch) -> None:
        self._ray, self._new_actor, self._queue, self._watch = ray, new_actor, queue, watch
        self._places: list[_Place] = []
        self._running: dict[Any, tuple[_Place, Held]] = {}
        self._pixels = 0
        self._started = False
        self._given_up: list[str] = []  # not told before an actor has started
        self._alive = time.monotonic()  # when an actor was last known to be ready

    def run(self, count: int) -> None:
        for number in range(count):
            actor = self._new_actor()
            self._places.append(_Place(number, actor, actor.provenance.remote()))
        told = self._alive
        while self._queue or self._running:
            self._hand_out()
            starting = {p.start: p for p in self._places if not p.ready}
            done, _ = self._ray.wait([*self._running, *starting], timeout=_POLL)
            for reference in done:
                if reference in starting:
                    self._has_started(starting[reference])
                elif reference in self._running:  # not of an actor that was buried meanwhile
                    self._has_run(reference)
            now = time.monotonic()
            if any(p.ready for p in self._places):
                self._alive = told = now
            elif now - self._alive > _START_WAIT:
                raise TesseraError(
                    f"ray: no actor has started for {_START_WAIT:.0f} s; see whether the cluster "
                    "has the nodes and resources, or ask for less (--ray-resources)"
                )
            elif now - told > _TELL:
                told = now
                _log.warning("ray: waiting for %d actors to start", len(self._places))

    def _hand_out(self) -> None:
        places = {p.number for p in self._places if p.ready}
        for place in [p for p in self._places if p.ready]:
            while len(place.held) < _IN_FLIGHT:
                held = self._queue.next_for(place.held, place.number, places)
                if held is None:
                    break
                place.held.append(held)
                self._running[place.actor.run_tile.remote(held.task)] = place, held

    def _has_started(self, place: _Place) -> None:
        try:
            provenance = _get(self._ray, place.start)
        except _Died as error:
            self._bury(place, str(error))
            return
        except BackendUnavailable as error:
            self._give_up(place, str(error), error)
            return
        place.ready, place.starts = True, 0
        if not self._started:
            self._watch.started(provenance)
        self._started = True
        self._tell()

    def _has_run(self, reference: Any) -> None:
        place = self._running[reference][0]
        try:
            report = _get(self._ray, reference)
        except _Died as error:
            del self._running[reference]
            self._bury(place, str(error))
            return
        self._is_over(reference, report)

    def _is_over(self, reference: Any, report: TileReport) -> None:
        place, held = self._running.pop(reference)
        place.held.remove(held)
        place.deaths = 0
        self._report(report)

    def _bury(self, place: _Place, cause: str) -> None:
        """Replace an actor that died, and put back what it had not finished."""
        for reference in [r for r, of in self._running.items() if of[0] is place]:
            with contextlib.suppress(_Died):
                self._is_over(reference, _get(self._ray, reference, 0.0))
            self._running.pop(reference, None)
        failed = self._queue.died_with(place.held, place.number)
        if failed is not None:
            reason = TesseraError(
                f"tile {failed.task.key.name}: its actor died {failed.deaths} times "
                f"({cause}); give less --memory, or leave the tile out"
            )
            self._report(failed.task.report(reason))
        place.deaths += 1
        place.starts += not place.ready
        place.held, place.ready = [], False
        self._ray.kill(place.actor)
        if not (self._queue or self._running):
            return
        if place.starts >= _START_DEATHS:
            self._give_up(place, f"{place.starts} actors in a row died at their start ({cause})")
        elif place.deaths >= _DEATHS and len(self._places) > 1:
            self._give_up(place, f"{place.deaths} actors in a row died there ({cause})")
        else:
            place.actor = self._new_actor()
            place.start = place.actor.provenance.remote()

    def _give_up(self, place: _Place, why: str, error: TesseraError | None = None) -> None:
        """Go on without a place; ``error`` or one that says why where nobody is left."""
        self._places.remove(place)
        self._ray.kill(place.actor)
        if not self._places:
            raise error or TesseraError(f"ray: no actor is left: {why}; see Ray's logs")
        self._given_up.append(f"actor {place.number} is given up, the others go on: {why}")
        self._tell()

    def _tell(self) -> None:
        while self._started and self._given_up:
            self._watch.warn(self._given_up.pop(0))

    def _report(self, report: TileReport) -> None:
        self._pixels += report.pixels
        self._watch.progress(self._pixels)
        self._watch.report(report)

    def end(self) -> None:
        """Let actors close their outputs; one that does not answer is not waited for."""
        closing = [place.actor.close.remote() for place in self._places if place.ready]
        deadline = time.monotonic() + _LEAVE
        for reference in closing:
            try:
                left = max(0.0, deadline - time.monotonic())
                self._watch.add(_get(self._ray, reference, left))
            except _Died as error:
                _log.warning("ray: what an actor spent is not counted (%s)", error)

    def kill(self) -> None:
        for place in self._places:
            self._ray.kill(place.actor)


def run_ray(
    job: Job,
    tasks: Sequence[Task],
    watch: Watch,
    workers: int | None,
    retries: int,
    resources: Mapping[str, float] | None,
) -> None:
    """See `run_tasks`. Joins the cluster that RAY_ADDRESS names, or starts Ray on this machine.

    Inputs and output have to be where every node finds them. ``workers`` None: one per GPU, or per
    node without GPUs. ``resources`` are those of an actor, by default a GPU or a node's processors.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    with hold_output(job.out):
        if started:
            _join_or_start(ray)
        try:
            count, new_actor = _actors(ray, job, len(tasks), workers, resources)
            driver = _Driver(ray, new_actor, Attempts(tasks, retries), watch)
            try:
                driver.run(count)
                driver.end()
            finally:
                driver.kill()
        finally:
            if started:
                ray.shutdown()


def _join_or_start(ray: Any) -> None:
    try:
        ray.init(log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ray.exceptions.RaySystemError) as error:
        raise BackendUnavailable(
            f"ray: the cluster that RAY_ADDRESS names cannot be joined ({_first_line(error)})"
        ) from error


def _actors(
    ray: Any,
    job: Job,
    tasks: int,
    workers: int | None,
    resources: Mapping[str, float] | None,
) -> tuple[int, Callable[[], Any]]:
    """How many actors, and what makes one."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not nodes:
        raise BackendUnavailable("ray: no node of the cluster is alive; start one, or take 'local'")
    on_cpu = job.model.device == "cpu" or job.model.backend in ("cpu", "reference")
    gpus = 0 if on_cpu else sum(int(node.get("GPU", 0)) for node in nodes)
    count = min(workers or gpus or len(nodes), tasks)
    share = -(-count // len(nodes))  # actors of a node
    cpus = max(1, int(min(node.get("CPU", 1) for node in nodes)) // share)
    wanted = {"num_cpus": cpus, "num_gpus": 1 if gpus else 0, **(resources or {})}
    threads = job.model.threads or max(1, int(wanted["num_cpus"]))
    job = replace(
        job,
        model=replace(job.model, threads=threads),
        settings=replace(job.settings, processes=share),
    )
    # restarts and retries are the driver's: Ray would count a death against all calls of an actor
    actor_class = ray.remote(max_restarts=0, max_task_retries=0, **wanted)(_Actor)
    return count, lambda: actor_class.remote(job)


class _Died(Exception):
    """An actor is gone, or does not answer in time; or it raised what no tile should."""


def _get(ray: Any, reference: Any, timeout: float | None = None) -> Any:
    """What a call gave, or its TesseraError as it was raised; _Died for anything else."""
    gone = ray.exceptions
    try:
        return ray.get(reference, timeout=timeout)
    except gone.RayTaskError as error:
        if isinstance(error.cause, TesseraError):
            raise error.cause from error
        _log.warning("%s", error)
        raise _Died(f"{type(error.cause).__name__}: {_first_line(error.cause)}") from error
    except (
        gone.RayActorError,
        gone.WorkerCrashedError,
        gone.OutOfMemoryError,
        gone.ObjectLostError,
        gone.GetTimeoutError,
    ) as error:
        raise _Died(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _import_ray() -> Any:
    what = "the executor 'ray'"
    require("ray.exceptions", what, BackendUnavailable, instead=", or take 'local'")
    return require("ray", what, BackendUnavailable)
