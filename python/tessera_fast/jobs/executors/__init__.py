"""Who runs the tiles of a job: this process, supervised workers on this machine, or Ray."""

from collections.abc import Mapping, Sequence

from ...errors import InputError
from ...untrusted.numbers import whole_number
from ...untrusted.readers import shown
from ...untrusted.suggest import one_of
from ..runner import Task
from .base import Job, Watch

MAX_WORKERS = 4096  # processes or actors of one job
MAX_RETRIES = 1_000_000
MAX_RESOURCE = 1_000_000_000_000  # a node has fewer bytes of memory
EXECUTORS = ("process", "local", "ray")


def check_executor(
    executor: str, workers: int | None, retries: int, resources: Mapping[str, float] | None
) -> None:
    """InputError for an executor, or numbers for it, that cannot be."""
    one_of("executor", executor, EXECUTORS)
    if workers is not None:
        whole_number("workers", workers, 1, MAX_WORKERS)
        if executor == "process" and workers > 1:
            raise InputError(f"workers: expected 1 of the executor 'process', got {workers}")
    whole_number("retries", retries, 0, MAX_RETRIES)
    if resources is None:
        return
    if executor != "ray":
        raise InputError(f"resources: the executor {executor!r} has none to ask for; Ray has")
    for name, amount in resources.items() if isinstance(resources, Mapping) else [("", None)]:
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not isinstance(name, str) or not number or not 0 <= amount <= MAX_RESOURCE:
            raise InputError(
                f"resources: expected names and numbers from 0 to {MAX_RESOURCE:,}, such as "
                f"{{'num_gpus': 0.5}}, got {shown(resources)}"
            )


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
    """Run ``tasks`` by the executor called so, see `check_executor`."""
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
