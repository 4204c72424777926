"""CPUs that this process may use, from trees of files as /proc and /sys are; numbers of threads."""

import os
from pathlib import Path

import numpy as np
import pytest

import tessera_fast as tf
from tessera_fast import env
from tessera_fast.machine.cpus import available_cpus

MACHINE = 64  # CPUs of the affinity


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def v2(group: str, limit: str) -> dict[str, str]:
    return {f"sys/fs/cgroup{group}/cpu.max": limit}


def v1(group: str, quota: int, period: int = 100_000, mount: str = "cpu") -> dict[str, str]:
    base = f"sys/fs/cgroup/{mount}{group}/cpu.cfs"
    return {f"{base}_quota_us": str(quota), f"{base}_period_us": str(period)}


OWN_V2 = {"proc/self/cgroup": "0::/jobs/mine"}
OWN_V1 = {"proc/self/cgroup": "5:memory:/other\n4:cpu,cpuacct:/jobs/mine\n0::/"}


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.delenv("TESSERA_FAST_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MACHINE)), raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, MACHINE, id="no group"),
        pytest.param(OWN_V2, MACHINE, id="v2, no such folder"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "max 100000"), MACHINE, id="v2 without a quota"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "200000 100000"), 2, id="v2"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "150000 100000"), 2, id="v2, rounded up"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "1000 100000"), 1, id="v2, a hundredth"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "25000 10000"), 3, id="v2, another period"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "9900000 100000"), MACHINE, id="v2, affinity"),
        pytest.param(
            OWN_V2 | v2("/jobs/mine", "800000 100000") | v2("/jobs", "400000 100000"),
            4,
            id="v2, a quota above",
        ),
        pytest.param(OWN_V2 | v2("/jobs/other", "100000 100000"), MACHINE, id="v2, another's"),
        pytest.param({"proc/self/cgroup": "0::/"} | v2("", "200000 100000"), 2, id="container"),
        pytest.param(OWN_V2 | v2("", "200000 100000"), 2, id="container, path of the host"),
        pytest.param(OWN_V1 | v1("/jobs/mine", -1), MACHINE, id="v1 without a quota"),
        pytest.param(OWN_V1 | v1("/jobs/mine", 250_000), 3, id="v1"),
        pytest.param(OWN_V1 | v1("/jobs", 500_000) | v1("/jobs/mine", -1), 5, id="v1, above"),
        pytest.param(OWN_V1 | v1("", 200_000), 2, id="v1, seen from a container"),
        pytest.param(OWN_V1 | v1("", 200_000, mount="cpu,cpuacct"), 2, id="v1 without links"),
        pytest.param(OWN_V1 | v1("/jobs/mine", 200_000, 0), MACHINE, id="v1, no period"),
        pytest.param(
            {"proc/self/cgroup": "x\n0:\n4:cpu\n0::/../.."} | v2("", "1 " + "9" * 5000),
            MACHINE,
            id="damaged",
        ),
    ],
)
def test_quotas_of_every_kind(files, expected, machine, tmp_path):
    assert available_cpus(tree(tmp_path, files)) == expected


def test_affinity_bounds_the_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    files = OWN_V2 | v2("/jobs/mine", "800000 100000")
    assert available_cpus(tree(tmp_path, files)) == 3
    assert available_cpus(tree(tmp_path, v2("/jobs/mine", "150000 100000"))) == 2


def test_threads_come_from_the_cpus(machine, monkeypatch):
    monkeypatch.setattr(env, "available_cpus", lambda: 3)
    assert env.threads() == 3
    assert env.threads(5) == env.threads(np.int64(5)) == 5
    monkeypatch.setenv("TESSERA_FAST_THREADS", "7")
    assert env.threads() == 7


ABSURD = (0, -1, 10**30, 5000, 2.0, "2", True)


@pytest.mark.parametrize("threads", ABSURD)
def test_absurd_numbers_of_threads(threads, mini, tmp_path):
    message = "threads: expected a whole number from 1 to 4,096, got"
    with pytest.raises(tf.InputError, match=message):
        tf.load_model(mini, threads=threads)
    with pytest.raises(tf.InputError, match=message):
        tf.embed_tiles([], tmp_path / "out", model=mini, threads=threads)
    with pytest.raises(tf.InputError, match=message):
        tf.plan([], model=mini, threads=threads)


@pytest.mark.parametrize("text", ["9" * 5000, "5000"])
def test_absurd_default(text, mini, monkeypatch):
    monkeypatch.setenv("TESSERA_FAST_THREADS", text)
    with pytest.raises(tf.InputError, match="TESSERA_FAST_THREADS: expected a whole number"):
        tf.load_model(mini)
