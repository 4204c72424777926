"""The command line where the machine refuses: files, memory, disk, packages. One sentence, no
traceback."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PACKAGE, needs_zarr
from places import REPOSITORY
from tessera_fast import packages
from tessera_fast.errors import BackendUnavailable, StoreError
from tessera_fast.untrusted.damage import damaged

MIB = 1 << 20
PRELUDE = "import argparse, ctypes, json, logging, numpy, numpy.random, tempfile, threading"


def limited(limits, *arguments, code=None, stdout=subprocess.PIPE, env=None):
    """Run the command line, or ``code``, under limits {resource: soft and hard}."""

    def limit():
        for kind, value in limits.items():
            resource.setrlimit(kind, (value, value))

    command = ["-c", code] if code else ["-m", "tessera_fast", *map(str, arguments)]
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        timeout=120,
    )


def assert_done_or_said(done):
    """Exit code 0, or 1 with one sentence as the last line."""
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        assert done.returncode == 1, (done.returncode, done.stderr)
        assert done.stderr.splitlines()[-1].startswith("tessera-fast: "), done.stderr


@needs_zarr
@pytest.mark.parametrize("files", [5, 6, 7, 8, 9, 10, 12, 14, 16, 24])
def test_few_open_files(files, farm, mini, tmp_path):
    limits = {resource.RLIMIT_NOFILE: files}
    if limited(limits, code=PRELUDE).returncode:
        pytest.skip("Python itself does not start")
    for out in ("x.zarr", "x"):
        done = limited(limits, "embed", farm, "-o", tmp_path / out, "--model", mini)
        assert_done_or_said(done)
        assert "pip install" not in done.stderr  # all that is needed is there
    assert_done_or_said(limited(limits, "plan", farm, "--model", mini, "--no-calibrate"))


@needs_zarr
@pytest.mark.parametrize("files", [5, 6, 7, 8])
def test_a_sound_store_is_not_called_damaged(files, farm, mini, tmp_path, run):
    """What cannot be opened for want of open files is no damage."""
    limits = {resource.RLIMIT_NOFILE: files}
    if limited(limits, code=PRELUDE).returncode:
        pytest.skip("Python itself does not start")
    out = tmp_path / "x.zarr"
    assert run("embed", farm, "-o", out, "--model", mini).code == 0
    done = limited(limits, "verify", out)
    assert_done_or_said(done)
    assert "problem" not in done.stdout and "damaged" not in done.stderr
    assert (": sound" in done.stdout) == (done.returncode == 0)


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (OSError(errno.EMFILE, "too many"), False),
        (RuntimeError("can't start new thread"), False),
        (OSError(errno.EIO, "of the disk"), True),
        (MemoryError(), True),  # a header may ask for any amount
        (RuntimeError("a codec failed"), True),
    ],
)
def test_limits_are_no_damage(error, damage):
    def parse():
        try:
            raise error
        except Exception as cause:
            raise ValueError("a library wraps what it meets") from cause

    with pytest.raises(KeyError if damage else ValueError):
        try:
            parse()
        except damaged():
            raise KeyError from None


@needs_zarr
@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the address space")
@pytest.mark.parametrize("mebibytes", [200, 300, 500, 1000])
def test_little_memory(mebibytes, farm, mini, tmp_path):
    limits = {resource.RLIMIT_AS: mebibytes * MIB}
    if limited(limits, code=PRELUDE).returncode:
        pytest.skip("numpy itself cannot be imported")
    for out in ("x.zarr", "x"):
        done = limited(limits, "embed", farm, "-o", tmp_path / out, "--model", mini)
        assert_done_or_said(done)
        assert "pip install pyproj" not in done.stderr


def test_an_import_that_fails_is_said(tmp_path):
    """Of what every command needs, before there is a parser."""
    (tmp_path / "numpy.py").write_text("raise ImportError('libquad.so: cannot be found')")
    done = limited({}, "info", env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE)])})
    assert_done_or_said(done)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "libquad.so" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk here")
def test_stdout_on_a_full_disk():
    with open("/dev/full", "w") as full:
        done = limited({}, "info", stdout=full)
    assert_done_or_said(done)
    assert done.returncode == 1 and os.strerror(errno.ENOSPC) in done.stderr


def test_a_closed_stdout():
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m tessera_fast info >&-"],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_are_not_text_are_printed(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    done = limited({}, "embed", name, "-o", tmp_path / "x", "--model", "demo-nano")
    assert_done_or_said(done)
    assert done.returncode == 1 and "caf" in done.stderr


# ---- packages


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Put a package of the given source in the way of imports."""

    def make(name, source):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)

    return make


def said(module, error=StoreError):
    with pytest.raises(error) as caught:
        packages.require(module, "this", error)
    return str(caught.value)


def test_a_package_that_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)  # another test's import
    expected = "this needs pyarrow, which is not installed: pip install 'tessera_fast[plan]'"
    assert said("pyarrow") == said("pyarrow.parquet") == expected
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert said("zarr", BackendUnavailable).endswith("not installed: pip install 'zarr>=3'")


def test_a_package_that_lacks_another_one(broken):
    broken("pyarrow", "import no_such_package")
    text = said("pyarrow")
    assert "pyarrow, which is installed" in text and "tessera_fast[plan]" not in text
    assert text.endswith("pip install no_such_package")


def test_a_package_that_cannot_be_loaded(broken):
    broken("pyarrow", "raise ImportError('libarrow.so.1: cannot open shared object file')")
    text = said("pyarrow")
    assert "which is installed and cannot be imported (libarrow.so.1" in text
    assert "--force-reinstall pyarrow" in text
    # a part of it is missing: not the package
    broken("pystac", "from . import no_such_part")
    assert "installed and cannot be imported" in said("pystac")


def test_a_package_that_meets_a_limit(broken):
    text = os.strerror(errno.EMFILE)
    broken("pyarrow", f"raise ImportError('libarrow.so.1: {text}')")
    assert "ulimit -n" in said("pyarrow") and "pip" not in said("pyarrow")


def test_extras_are_those_of_the_project():
    """Every package that is asked for is in the extra that is named."""
    text = (REPOSITORY / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("[project.scripts]")[0]
    lines = dict(line.split(" = ", 1) for line in section.splitlines() if " = [" in line)
    for package, extra in packages.EXTRAS.items():
        name = {"sklearn": "scikit-learn", "scipy": "scikit-learn"}.get(package, package)
        if extra:
            assert name.replace("_", "-") in lines[extra].replace("_", "-"), (package, extra)
        else:
            assert f'"{name}>=' in text.partition("[project.optional-dependencies]")[0], package


def test_no_other_reader_of_packages():
    """An ImportError is judged by packages.py; what else catches one knows why."""
    known = {
        "packages.py",
        "__main__.py",
        "backends/cpu.py",
        "untrusted/damage.py",
        "diagnostics/doctor.py",
        "diagnostics/info.py",
        "backends/cuda/__init__.py",
        "backends/tensorrt/adapter.py",
        "store/locks.py",
        "synthetic/tile.py",
        "tile/cube.py",
        "tile/georeference.py",
        "tile/remote.py",
        "verification/comparison.py",
        "weights/hub.py",
    }
    package = Path(packages.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "ImportError" in path.read_text()
    }
    assert found <= known
