"""A program that disturbs a writer of an output at its steps, one after the other, and sees what
comes of it: ``killed_steps.py FOLDER OUTPUT CASE HOW PROCESSES FIRST LAST STRIDE``.

A step is whatever changes a file system: a rename, a removal, a folder or link made, a file opened
to be written. Before its k-th one, for k = FIRST, FIRST + STRIDE, ... LAST or until it ends by
itself, the writer is killed (HOW is "kill"), or the disk is full from there on ("full"). The
processes that were beside it, and the run after it, have to end with the same files as if nothing
had happened, and with nothing else.
"""

import errno
import os
import shutil
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import fake_tiles as t
from tessera_fast.errors import StoreError
from tessera_fast.store.output import open_output

MAKING = ("os.mkdir", "os.link", "open")  # what a full disk refuses
STEPS = (*MAKING, "os.rename", "os.remove", "os.rmdir")
REFUSED = 3  # exit code where a StoreError was raised
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
FIRST = [t.tile("first"), t.tile("beside", x0=t.X0 + 300)]
CASES = {
    "new": ([], FIRST),
    "overlap": (FIRST[:1], FIRST[1:]),
    # the origin moves north and west, and a year comes before the one that is there
    "growth": (FIRST, [t.tile("corner", x0=t.X0 - 700, y0=t.Y0 + 700), t.tile("old", year=2019)]),
    "zone": (FIRST, [t.tile("east", zone=32632)]),
    "again": (FIRST, [t.tile("first", fingerprint="other inputs")]),
}


def data_of(key):
    return t.fake(key, seed=len(key.name) + len(key.fingerprint))


def fill(path, data):
    """What a runner does: each tile is made by whoever claims it first."""
    with closing(open_output(path, data, t.PROVENANCE)) as out:
        for key, values in data.items():
            while not out.is_done(key):
                writer = out.begin(key)
                if writer is None:
                    time.sleep(0.002)
                elif out.is_done(key):
                    writer.abort()
                else:
                    t.spool(writer, values)
                    writer.commit()


def disturb(how, step):
    """Before this process changes the file system for the ``step``-th time."""
    left = step

    def watch(event, arguments):
        nonlocal left
        if event not in STEPS or (event == "open" and not (arguments[2] or 0) & WRITING):
            return
        left -= 1
        if how == "kill" and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and left <= 0 and event in MAKING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(watch)


def start(function):
    """``function`` in a process of its own, which takes a minute at most."""
    child = os.fork()
    if child:
        return child
    signal.alarm(60)
    code = 0
    try:
        function()
    except StoreError:
        code = REFUSED
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    os._exit(code)


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder, output, case, how, processes, first, last, stride):
    before, after = CASES[case]
    data = {key: data_of(key) for key in (*before, *after)}
    old, new = ({k: data[k] for k in keys} for keys in (before, after))
    base, whole, job = folder / "base", folder / "whole", folder / "job"
    base.mkdir(parents=True)
    if old:
        assert end(start(lambda: fill(base / output, old))) == 0
    shutil.copytree(base, whole)
    assert end(start(lambda: fill(whole / output, new))) == 0
    expected, folders = t.listing(whole), folders_in(whole)
    killed = 0
    for step in range(first, last + 1, stride):
        shutil.rmtree(job, ignore_errors=True)
        shutil.copytree(base, job)

        def doomed(step=step):
            disturb(how, step)
            fill(job / output, new)

        victim = start(doomed)
        beside = [start(lambda: fill(job / output, new)) for _ in range(processes - 1)]
        died = end(victim)
        codes = [end(child) for child in beside]
        left = [*job.rglob("spool"), *job.rglob("staging")]
        assert how == "kill" or not left, f"step {step}: {left}"
        codes.append(end(start(lambda: fill(job / output, new))))
        assert not any(codes), f"step {step}: exit codes {codes}"
        found = t.listing(job)
        wrong = {p for p in found.keys() | expected.keys() if found.get(p) != expected.get(p)}
        wrong |= folders ^ folders_in(job)
        assert not wrong, f"step {step}: {sorted(map(str, wrong))}"
        expected_code = -signal.SIGKILL if how == "kill" else REFUSED
        assert died in (0, expected_code), f"step {step}: exit code {died}"
        killed += died != 0
        if died == 0 and processes == 1:
            break
    print(f"disturbed {killed} times, at steps up to {step}")


def folders_in(folder):
    return {p.relative_to(folder) for p in folder.rglob("*") if p.is_dir()}


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main(Path(sys.argv[1]), *sys.argv[2:5], *map(int, sys.argv[5:]))
