"""Rows of the GPU check: one JSON object a line, on disk before anything else happens.

A row is a single write at the end of the file, so several processes may add rows to it, and
`fsync` follows, so a process that is killed afterwards loses nothing.
"""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append(path: Path | None, row: Row) -> None:
    """Add a row; without a path do nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, f"{json.dumps(row)}\n".encode())
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> list[Row]:
    """The rows there are. The last line may be cut short, if a machine was lost while writing."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise
    return rows
