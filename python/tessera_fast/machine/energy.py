"""Energy that the processors of this machine take, where the system counts it and lets us read it.

Linux counts microjoules per package under /sys/class/powercap (RAPL); most systems let only root
read them, and virtual machines rarely have them. GPUs are not counted.
"""

import re
from pathlib import Path

_ZONES = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts from its creation on, everything that runs on the machine included."""

    def __init__(self, zones: Path = _ZONES) -> None:
        self._zones = [p for p in _listed(zones) if re.fullmatch(r"intel-rapl:\d+", p.name)]
        self._start = [_number(p / "energy_uj") for p in self._zones]

    def joules(self) -> float | None:
        """Since the creation; None where it cannot be read. Right for at most one wrap-around."""
        total = 0
        for zone, start in zip(self._zones, self._start, strict=True):
            now = _number(zone / "energy_uj")
            if now is None or start is None:
                return None
            wrapped = 0
            if now < start:
                wrapped = _number(zone / "max_energy_range_uj") or 0
            total += now - start + wrapped
        return total / 1e6 if self._zones else None


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # another system, or none is counted
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not for us to read, or no number
        return None
