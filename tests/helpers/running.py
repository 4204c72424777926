"""Jobs of the command line as processes that a test starts, kills and waits for."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import PACKAGE


def command(tiles, out, model, *options):
    return [
        sys.executable,
        "-m",
        "tessera_fast",
        "embed",
        str(tiles),
        "-o",
        str(out),
        "--model",
        str(model),
        *options,
    ]


def start(arguments):
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def finish(arguments):
    """Output of a run that has to succeed."""
    process = start(arguments)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def workers(pid):
    """Process ids of the workers that ``pid`` supervises."""
    found = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        pass
    return found
