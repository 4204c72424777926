"""Ray: actors that hold the model. Ray places them, restarts them and tries their tiles again."""

import contextlib
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import BackendUnavailable, TesseraError
from ..packages import require
from ..runner import Task, TileReport, TileRunner
from ..store import Provenance, hold_output
from .base import Job, Watch

_IN_FLIGHT = 2  # tasks an actor has been given, so that it never waits for the next


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
            ray.init(log_to_driver=False, include_dashboard=False)
        actors: list[Any] = []
        try:
            actors += _actors(ray, job, len(tasks), workers, retries, resources)
            watch.started(_get(ray, actors[0].provenance.remote()))
            _run(ray, actors, tasks, watch, retries)
            for actor in actors:
                watch.add(_get(ray, actor.close.remote()))
        finally:
            for actor in actors:
                ray.kill(actor)
            if started:
                ray.shutdown()


def _actors(
    ray: Any,
    job: Job,
    tasks: int,
    workers: int | None,
    retries: int,
    resources: Mapping[str, float] | None,
) -> list[Any]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    on_cpu = job.device == "cpu" or job.backend in ("cpu", "reference")
    gpus = 0 if on_cpu else sum(int(node.get("GPU", 0)) for node in nodes)
    count = min(workers or gpus or len(nodes), tasks)
    share = -(-count // len(nodes))  # actors of a node
    cpus = max(1, int(min(node.get("CPU", 1) for node in nodes)) // share)
    wanted = {"num_cpus": cpus, "num_gpus": 1 if gpus else 0, **(resources or {})}
    job = replace(
        job,
        threads=job.threads or max(1, int(wanted["num_cpus"])),
        settings=replace(job.settings, processes=share),
    )
    actor_class = ray.remote(max_restarts=-1, max_task_retries=retries, **wanted)(_Actor)
    return [actor_class.remote(job) for _ in range(count)]


def _run(ray: Any, actors: list[Any], tasks: Sequence[Task], watch: Watch, retries: int) -> None:
    queue, pixels = deque(tasks), 0
    running: dict[Any, tuple[Any, Task]] = {}
    idle = deque(actor for _ in range(_IN_FLIGHT) for actor in actors)
    while queue or running:
        while queue and idle:
            actor, task = idle.popleft(), queue.popleft()
            running[actor.run_tile.remote(task)] = actor, task
        (reference,), _ = ray.wait(list(running))
        actor, task = running.pop(reference)
        idle.append(actor)
        try:
            report = _get(ray, reference)
        except ray.exceptions.RayActorError as error:
            report = task.report(
                TesseraError(
                    f"tile {task.key.name}: its worker died, and again in {retries} more tries "
                    f"({error}); give less memory, or leave the tile out"
                )
            )
        pixels += report.pixels
        watch.progress(pixels)
        watch.report(report)


def _get(ray: Any, reference: Any) -> Any:
    """What a call gave, or its TesseraError as it was raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TesseraError):
            raise error.cause from error
        raise


def _import_ray() -> Any:
    what = "the executor 'ray'"
    require("ray.exceptions", what, BackendUnavailable, instead=", or take 'local'")
    return require("ray", what, BackendUnavailable)
