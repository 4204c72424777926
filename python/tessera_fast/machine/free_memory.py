"""How much memory this process may still take: of the machine, and of its control groups.

A container or a batch job is ended at its control group's limit, whatever the machine has free.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from .control_groups import ROOT, folders, text

# limits, usage and the prefix of memory.stat's rows that count a group's whole subtree
_Files = tuple[tuple[str, ...], str, str]
_V2: _Files = (("memory.max", "memory.high"), "memory.current", "")
_V1: _Files = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")


def available_bytes(root: Path = ROOT) -> int | None:
    """Bytes that this process may still take without swapping or being ended; None if unknown.

    The least of what the machine has available and what every control group above the process
    leaves, where cached file pages count as free. ``root``: what /proc and /sys are below.
    """
    found = [n for n in (_machine(root), *_groups(root)) if n is not None]
    return min(found) if found else None


def _machine(root: Path) -> int | None:
    kilobytes = _table(root / "proc/meminfo").get("MemAvailable:")
    if kilobytes is not None:
        return kilobytes << 10
    if root == ROOT and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _groups(root: Path) -> Iterator[int | None]:
    """What is left in every group from the process's own to the root."""
    for version, folder in folders("memory", root):
        yield _left(folder, *(_V2 if version == 2 else _V1))


def _left(folder: Path, limits: tuple[str, ...], usage: str, prefix: str) -> int | None:
    found = [int(t) for name in limits if (t := text(folder / name).strip()).isdigit()]
    used = text(folder / usage).strip()
    if not found or not used.isdigit():
        return None  # "max", or no such group here
    stat = _table(folder / "memory.stat")
    cached = sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    return max(min(found) - max(int(used) - cached, 0), 0)


def _table(path: Path) -> dict[str, int]:
    """First word -> number of every row "word number ..."."""
    rows = (line.split() for line in text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
