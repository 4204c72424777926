"""How many CPUs this process may use: the one place that all default numbers of threads come from.

A process may be kept to some CPUs (affinity: taskset, a batch system), and its control groups may
grant it a share of time only (a quota: `docker --cpus 2`, a pod's limit). More threads than that
only wait for each other.
"""

import os
from pathlib import Path

from .control_groups import ROOT, folders, text


def available_cpus(root: Path = ROOT) -> int:
    """CPUs of this process's affinity, or its quota rounded up where that is less; at least 1.

    ``root``: what /proc and /sys are below.
    """
    return min([_allowed(), *_quotas(root)])


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> list[int]:
    """CPUs, rounded up, of every group from the process's own to the root that has a quota."""
    quotas = []
    for version, folder in folders("cpu", root):
        if version == 2:
            quota, _, period = text(folder / "cpu.max").strip().partition(" ")
        else:
            quota = text(folder / "cpu.cfs_quota_us").strip()
            period = text(folder / "cpu.cfs_period_us").strip()
        # no quota is "max" in version 2 and -1 in version 1
        if all(_positive(n) for n in (quota, period)):
            quotas.append(-(-int(quota) // int(period)))
    return quotas


def _positive(number: str) -> bool:
    return number.isascii() and number.isdigit() and 0 < len(number) < 20 and int(number) > 0
