"""Free memory, from trees of files as /proc and /sys are."""

from pathlib import Path

import pytest

from tessera_fast.machine.free_memory import available_bytes

GIB = 1 << 30
NO_LIMIT = "9223372036854771712"  # how version 1 says so


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


MACHINE = {"proc/meminfo": f"MemTotal: {32 << 20} kB\nMemAvailable: {8 << 20} kB"}


def v2(group, limit, used, cached=0, high="max"):
    base = f"sys/fs/cgroup{group}/memory."
    stat = f"anon 1\nactive_file 0\ninactive_file {cached}"
    return {f"{base}max": limit, f"{base}high": high, f"{base}current": used, f"{base}stat": stat}


def v1(group, limit, used, cached=0):
    base = f"sys/fs/cgroup/memory{group}/memory."
    # the rows without total_ leave out the groups below
    stat = f"inactive_file 1\ntotal_active_file {cached}\ntotal_inactive_file 0"
    return {f"{base}limit_in_bytes": limit, f"{base}usage_in_bytes": used, f"{base}stat": stat}


OWN_V2 = {"proc/self/cgroup": "0::/jobs/mine"}
OWN_V1 = {"proc/self/cgroup": "4:cpu,cpuacct:/\n3:memory:/jobs/mine\n0::/"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8 * GIB, id="no group"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "max", GIB), 8 * GIB, id="v2 without a limit"),
        pytest.param(OWN_V2 | v2("/jobs/mine", 3 * GIB, GIB), 2 * GIB, id="v2"),
        pytest.param(OWN_V2 | v2("/jobs/mine", 3 * GIB, 3 * GIB, GIB), GIB, id="v2, cached files"),
        pytest.param(OWN_V2 | v2("/jobs/mine", "max", GIB, 0, 4 * GIB), 3 * GIB, id="v2, high"),
        pytest.param(
            OWN_V2 | v2("/jobs/mine", 9 * GIB, GIB) | v2("/jobs", 6 * GIB, 5 * GIB),
            GIB,
            id="v2, a limit above",
        ),
        pytest.param({"proc/self/cgroup": "0::/"} | v2("", 2 * GIB, GIB), GIB, id="v2, container"),
        pytest.param(OWN_V2 | v2("/jobs/mine", GIB, 2 * GIB), 0, id="v2, over its limit"),
        pytest.param(OWN_V2 | v2("/jobs/other", GIB, GIB), 8 * GIB, id="v2, another's group"),
        pytest.param(OWN_V1 | v1("/jobs/mine", NO_LIMIT, GIB), 8 * GIB, id="v1 without a limit"),
        pytest.param(OWN_V1 | v1("/jobs/mine", 3 * GIB, 2 * GIB, GIB), 2 * GIB, id="v1"),
        pytest.param(OWN_V1 | v1("", 3 * GIB, 2 * GIB), GIB, id="v1, seen from a container"),
    ],
)
def test_the_least_of_machine_and_groups(files, expected, tmp_path):
    assert available_bytes(tree(tmp_path, MACHINE | files)) == expected


def test_a_group_counts_where_the_machine_says_nothing(tmp_path):
    assert available_bytes(tree(tmp_path, OWN_V2 | v2("/jobs/mine", 3 * GIB, GIB))) == 2 * GIB


def test_nothing_known(tmp_path):
    assert available_bytes(tmp_path) is None


def test_this_machine():
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc/meminfo")
    total = int(Path("/proc/meminfo").read_text().split()[1]) << 10
    assert 0 < available_bytes() <= total
