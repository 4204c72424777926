"""The report of a probe: its results, and the folder that they can be saved in."""

from __future__ import annotations

import os
from pathlib import Path

from ..untrusted.readers import local_target
from .output import save
from .results import ProbeResults


class ProbeReport(ProbeResults):
    """Scores of embeddings and of what stands beside them; `save` writes them into a folder.

    ``scores[name].values[n][metric]`` has a value for every seed; n = 0: all labels of the half.
    """

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write report.txt, report.json, pictures and maps into a folder, which appears whole.

        Raises StoreError if it exists and ``overwrite`` is False, or it is no report, or it cannot
        be written.
        """
        return save(self, local_target(folder, "out"), overwrite)
