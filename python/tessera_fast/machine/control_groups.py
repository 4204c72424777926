"""Control groups of Linux, which bound a container or a batch job: the process's own and all above.

Version 2 has one tree; version 1 has a tree for every kind of limit. A limit may stand at any level
between the process's own group and the root, and a container often sees only its own group, mounted
as the root: levels that are not there are passed over.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def folders(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every group whose limits of ``controller`` hold for this process.

    ``controller``: "cpu" or "memory". ``root``: what /proc and /sys are below. A folder need not
    exist.
    """
    for line in text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and not controllers:
            yield from _upwards(2, root / "sys/fs/cgroup", path)
        elif controller in controllers.split(","):
            for name in {controller, controllers}:  # "cpu", or "cpu,cpuacct" without a link
                yield from _upwards(1, root / "sys/fs/cgroup" / name, path)


def _upwards(version: int, mount: Path, path: str) -> Iterator[tuple[int, Path]]:
    own = mount / path.lstrip("/")
    for folder in (own, *own.parents):
        yield version, folder
        if folder == mount:
            break


def text(path: Path) -> str:
    """What a file of /proc or /sys says; nothing where it is absent or not ours to read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
