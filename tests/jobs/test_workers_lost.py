"""Workers and actors that die: which tile is to blame, and which place is given up."""

import json
import logging
import os
import subprocess
import time
import types

import pytest

import tessera_fast as tf
from conftest import PACKAGE
from region import write_region
from running import command
from tessera_fast.errors import BackendUnavailable, TesseraError
from tessera_fast.jobs.executors import local
from tessera_fast.jobs.executors import ray as ray_executor
from tessera_fast.jobs.executors.attempts import Attempts
from tessera_fast.jobs.executors.base import Watch
from tessera_fast.jobs.executors.domains import Domain
from tessera_fast.jobs.runner import Task
from tessera_fast.store import TileKey

pytest.importorskip("fcntl", reason="this system has no locks between processes")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    pytest.importorskip("rasterio", reason="tiles are written with a roi.tiff")
    folder = tmp_path_factory.mktemp("region") / "tiles"
    write_region(folder, side=8, count=3)
    return folder


def tasks(count):
    return [Task(f"/t{i}", TileKey(f"t{i}", 1, 1, "")) for i in range(count)]


# ---- which tile is tried where


def test_what_was_beside_a_tile_that_kills_loses_no_attempt():
    queue = Attempts(tasks(3), retries=0)
    held = [queue.next_for([], 0, {0}) for _ in range(3)]
    assert queue.died_with(held, 0) is None  # it cannot be said which it was
    for _ in range(3):
        one = queue.next_for([], 0, {0})
        assert queue.next_for([one], 0, {0}) is None  # a suspect is alone
        if one.task.key.name == "t1":
            assert queue.died_with([one], 0) is one
    assert not queue


def test_a_tile_is_tried_at_another_place_first():
    queue = Attempts(tasks(2), retries=1)
    first = queue.next_for([], 0, {0, 1})
    assert queue.died_with([first], 0) is None
    assert queue.next_for([], 0, {0, 1}).task.key.name == "t1"  # not the one that died here
    assert queue.next_for([], 0, {0, 1}) is None
    assert queue.next_for([], 1, {0, 1}) is first
    assert queue.died_with([first], 1) is first


def test_where_a_tile_died_everywhere_it_is_tried_anywhere():
    queue = Attempts(tasks(1), retries=5)
    held = queue.next_for([], 0, {0, 1})
    queue.died_with([held], 0)
    assert queue.next_for([], 0, {0}) is held  # the other place has no worker now


# ---- a place of this machine whose workers die


def with_a_dead_place(monkeypatch, domain):
    monkeypatch.setattr(local, "domains", lambda job, workers: [Domain(2), domain])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are not chosen here")
def test_a_dead_place_is_given_up_and_the_others_go_on(monkeypatch, tiles, mini, tmp_path):
    with_a_dead_place(monkeypatch, Domain(2, cpus=(99_999,)))
    started = []
    real = local._Supervisor._start
    monkeypatch.setattr(
        local._Supervisor, "_start", lambda self, place: (started.append(place), real(self, place))
    )
    report = tmp_path / "report.json"
    result = tf.embed_tiles(
        tiles, tmp_path / "out", mini, executor="local", workers=2, report_file=report
    )
    assert result.count("done") == 9
    assert len([place for place in started if place.number == 1]) <= 3
    told = json.loads(report.read_text())
    if told["warnings"]:  # the other may have done everything first
        assert "worker 1 is given up, the others go on: 3 workers ended" in told["warnings"][0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are not chosen here")
def test_a_job_ends_when_no_place_is_left(monkeypatch, tiles, mini, tmp_path):
    dead = Domain(2, cpus=(99_999,))
    monkeypatch.setattr(local, "domains", lambda job, workers: [dead, dead])
    with pytest.raises(TesseraError, match="3 workers ended with exit code 1 before they had"):
        tf.embed_tiles(tiles, tmp_path / "out", mini, executor="local", workers=2)


def supervisor(monkeypatch, count, retries=2):
    """A supervisor whose processes are made of air."""
    watch = Watch(lambda report: reports.append(report), lambda p: None, lambda n: None, {}, [])
    reports = []
    made = local._Supervisor(None, tasks(count), retries, watch)

    def start(place):
        process = types.SimpleNamespace(
            exitcode=1, join=lambda *_: None, is_alive=lambda: False, kill=lambda: None
        )
        connection = types.SimpleNamespace(close=lambda: None, send=lambda task: None)
        made._workers.append(local._Worker(process, connection, place))

    monkeypatch.setattr(made, "_start", start)
    return made, reports


def test_a_place_that_dies_at_every_tile_is_given_up(monkeypatch):
    made, reports = supervisor(monkeypatch, 40, retries=3)
    good, bad = local._Place(0, Domain(2)), local._Place(1, Domain(2))
    made._start(good), made._start(bad)
    made._started = True
    for _ in range(100):
        for worker in list(made._workers):
            made._hear(worker, "want", None)
        made._hand_out()
        for worker in list(made._workers):
            if worker.place is bad and worker.held:
                made._bury(worker)
            elif worker.held:
                made._hear(worker, "report", worker.held[0].task.report())
    assert [r.state for r in reports] == ["done"] * 40  # no tile has paid for the place
    assert [w.place for w in made._workers] == [good]
    assert made._watch.warnings and "worker 1 is given up" in made._watch.warnings[0]


def test_one_place_without_its_device(monkeypatch):
    made, _ = supervisor(monkeypatch, 4)
    places = [local._Place(i, Domain(2, f"cuda:{i}")) for i in range(2)]
    for place in places:
        made._start(place)
    made._hear(made._workers[1], "error", BackendUnavailable("no device cuda:1"))
    assert not made._watch.warnings  # perhaps no place has what is needed
    made._hear(made._workers[0], "ready", None)
    assert made._watch.warnings == [
        "worker 1 on cuda:1 is given up, the others go on: no device cuda:1"
    ]
    with pytest.raises(BackendUnavailable):
        made._hear(made._workers[0], "error", BackendUnavailable("no device cuda:0"))


def test_a_process_that_cannot_be_started(monkeypatch, tiles, mini, tmp_path):
    """No more processes are allowed: an error of the package."""
    from multiprocessing import context

    def refuse(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(context.SpawnProcess, "start", refuse)
    with pytest.raises(TesseraError, match="cannot be started"):
        tf.embed_tiles(tiles, tmp_path / "out", mini, executor="local", workers=2)


# ---- Ray, made of air: actors that die, are lost, or never start


class RayActorError(Exception):
    pass


class GetTimeoutError(Exception):
    pass


class _Other(Exception):
    pass


class _Call:
    def __init__(self, actor, task):
        self.actor, self.task = actor, task


class FakeRay:
    """Calls are answered in order by a function of (actor's number, task)."""

    exceptions = types.SimpleNamespace(
        RayActorError=RayActorError,
        GetTimeoutError=GetTimeoutError,
        RayTaskError=_Other,
        WorkerCrashedError=_Other,
        OutOfMemoryError=_Other,
        ObjectLostError=_Other,
    )

    def __init__(self, answer, starts=lambda number: True):
        self.answer, self.starts = answer, starts
        self.made = 0

    def new_actor(self):
        number, self.made = self.made, self.made + 1
        actor = types.SimpleNamespace(number=number, dead=False)
        actor.provenance = types.SimpleNamespace(remote=lambda: _Call(actor, "start"))
        actor.run_tile = types.SimpleNamespace(remote=lambda task: _Call(actor, task))
        return actor

    def wait(self, references, timeout):
        for call in references:
            if call.task != "start" or self.starts(call.actor.number) is not None:
                return [call], references
        time.sleep(0.02)
        return [], references

    def get(self, reference, timeout=None):
        actor, task = reference.actor, reference.task
        if task == "start":
            if not self.starts(actor.number):
                actor.dead = True
        elif not actor.dead:
            actor.dead = not self.answer(actor.number, task)
        if actor.dead:
            raise RayActorError("The actor died unexpectedly before finishing this task.\n\tmore")
        return None if task == "start" else task.report()

    def kill(self, actor):
        actor.dead = True


def drive(ray, count, actors, retries):
    reports = []
    watch = Watch(reports.append, lambda p: None, lambda n: None, {}, [])
    driver = ray_executor._Driver(ray, ray.new_actor, Attempts(tasks(count), retries), watch)
    driver.run(actors)
    return reports, watch


def test_an_actor_that_dies_costs_the_tile_beside_it_nothing():
    ray = FakeRay(lambda actor, task: task.key.name != "t0")
    reports, _ = drive(ray, 6, 2, retries=0)
    states = {r.name: r.state for r in reports}
    assert len(reports) == 6
    assert [name for name, state in states.items() if state != "done"] == ["t0"]
    (error,) = [str(r.error) for r in reports if r.error]
    assert "tile t0: its actor died 1 times (The actor died unexpectedly" in error
    assert "\n" not in error


def test_actors_that_die_at_their_start(monkeypatch):
    ray = FakeRay(lambda actor, task: True, starts=lambda number: number == 0)
    reports, _ = drive(ray, 30, 2, retries=0)
    assert len(reports) == 30 and {r.state for r in reports} == {"done"}
    assert ray.made <= 1 + 3
    ray = FakeRay(lambda actor, task: True, starts=lambda number: False)
    with pytest.raises(TesseraError, match="no actor is left"):
        drive(ray, 3, 2, retries=0)
    assert ray.made == 2 * 3


def test_actors_that_never_start_are_not_waited_for_without_end(monkeypatch, caplog):
    monkeypatch.setattr(ray_executor, "_START_WAIT", 0.3)
    monkeypatch.setattr(ray_executor, "_TELL", 0.1)
    ray = FakeRay(lambda actor, task: True, starts=lambda number: None)
    with caplog.at_level(logging.WARNING), pytest.raises(TesseraError, match="no actor has star"):
        drive(ray, 3, 2, retries=0)
    assert "waiting for 2 actors to start" in caplog.text
    ray = FakeRay(lambda actor, task: True, starts=lambda number: True if number else None)
    reports, _ = drive(ray, 5, 2, retries=0)  # one is enough
    assert len(reports) == 5


def test_a_lost_node_that_takes_an_actor_for_good():
    """Its tiles go to the actor that is left; no new actor finds a place."""
    ray = FakeRay(
        lambda actor, task: actor == 0, starts=lambda number: True if number < 2 else None
    )
    reports, _ = drive(ray, 9, 2, retries=0)
    assert len(reports) == 9 and {r.state for r in reports} == {"done"}


def test_ray_with_a_tile_that_kills(tiles, mini, tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'tessera_fast[ray]'")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('t11_2024/sar_descending.npy'):\n"
        "        if any('default_worker' in a for a in sys.orig_argv):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(watch)\n"
    )
    path = os.pathsep.join([str(site), str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    report = tmp_path / "report.json"
    arguments = command(
        tiles,
        tmp_path / "out",
        mini,
        "--ray",
        "1",
        "--ray-resources",
        '{"num_cpus": 0.5}',
        "--retries",
        "0",
        "--on-error",
        "skip",
        "--report",
        report,
    )
    done = subprocess.run(
        [str(a) for a in arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 3, done.stderr
    states = {t["name"]: t["state"] for t in json.loads(report.read_text())["tiles"]}
    assert [name for name, state in states.items() if state == "failed"] == ["t11_2024"]
    assert len(states) == 9 and len(list((tmp_path / "out").glob("*.npy"))) == 8
    assert "Traceback" not in done.stderr
