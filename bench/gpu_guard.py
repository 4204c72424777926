"""Run a command that ends at its limit, or with the process that asked for it.

    python bench/gpu_guard.py SECONDS COMMAND...

It has to be started as the leader of a new session, with a pipe as its standard input. When the
limit passes, or when the other end of the pipe is closed because its owner died, the whole process
group is killed, this process included. Otherwise it exits as the command did, with 128 + N for
signal N.
"""

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_wait_for_the_caller, daemon=True).start()
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end()
    os._exit(128 - code if code < 0 else code)


def _wait_for_the_caller() -> None:
    while os.read(0, 1):
        pass
    _end()


def _end() -> None:
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
