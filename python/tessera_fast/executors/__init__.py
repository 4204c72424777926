"""Who runs the tiles of a job: this process, supervised workers on this machine, or Ray."""

from collections.abc import Mapping, Sequence

from ..errors import InputError
from ..runner import Task
from ..suggest import one_of
from .base import Job, Watch

EXECUTORS = ("process", "local", "ray")


def run_tasks(
    executor: str,
    job: Job,
    tasks: Sequence[Task],
    watch: Watch,
    *,
    workers: int | None,
    retries: int,
    resources: Mapping[str, float] | None,
) -> None:
    """Run ``tasks`` by the executor called so; InputError where that cannot be."""
    one_of("executor", executor, EXECUTORS)
    if workers is not None and (workers < 1 or (executor == "process" and workers > 1)):
        expected = "1 of the executor 'process'" if executor == "process" else "a positive number"
        raise InputError(f"workers: expected {expected}, got {workers}")
    if resources is not None and executor != "ray":
        raise InputError(f"resources: the executor {executor!r} has none to ask for; Ray has")
    if executor == "process":
        _run_here(job, tasks, watch)
        return
    job.check_portable(tasks)
    if executor == "local":
        from .local import run_local

        run_local(job, tasks, watch, workers, retries)
    else:
        from .ray import run_ray

        run_ray(job, tasks, watch, workers, retries, resources)


def _run_here(job: Job, tasks: Sequence[Task], watch: Watch) -> None:
    with job.open([task.key for task in tasks]) as runner:
        watch.started(runner.provenance)
        runner.run(tasks, watch.report, watch.progress)
        watch.add(runner.clock.seconds)
