"""`tessera-fast doctor`: what is installed, what works, and whether it computes what it should.

A check yields findings: ok, absent (an optional part that is not here: what to install, or why it
cannot be had) or FAILED (what to do). The known answers are in selftest.py.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .. import backends, env
from ..backends.base import RunOptions as Running
from ..errors import StoreError, TesseraError, WeightsError
from ..machine.free_memory import available_bytes
from ..packages import how_to_install, installed_as, version
from ..sizes import size
from ..store.locks import Locks
from ..store.state import STATE
from ..untrusted.readers import local_path
from ..verification import check
from ..version import __version__
from ..weights import hub
from . import selftest
from .info import instruction_sets
from .selftest import Absent, WrongAnswer

OK, ABSENT, FAILED = "ok", "absent", "FAILED"

_LEAST_MEMORY = 512 << 20  # embed with a small model and one band of a few rows
_LEAST_DISK = 1 << 30
_OPTIONAL = (
    "torch",
    "triton",
    "huggingface_hub",
    "xarray",
    "rioxarray",
    "rasterio",
    "pystac",
    "fsspec",
    "pyarrow",
    "ray",
    "onnx",
    "onnxruntime",
    "tensorrt_rtx",
    "sklearn",
)
# What a package that is installed and broken raises where it is imported or used.
_BROKEN = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    TesseraError,
)


class Finding(NamedTuple):
    """One line of the report."""

    state: str  # OK, ABSENT or FAILED
    name: str
    detail: str


Findings = Iterator[Finding]


def groups(out: str | os.PathLike[str] | None = None) -> dict[str, Callable[[], Findings]]:
    """Heading -> checks, which take less than a minute in all and no network.

    ``out``: a folder (or what would be one) that outputs are to be written to, or an output, whose
    finished tiles are then checked by their digests.
    """
    folder = Path.cwd() if out is None else local_path(out, "out")
    checks: dict[str, Callable[[], Findings]] = {
        "packages": _packages,
        "this machine": partial(_machine, folder),
        "instruction sets of the cpu back end": _instruction_sets,
        "other back ends": _back_ends,
        "parts of the pipeline": _parts,
        "weights, without network": _weights,
    }
    return checks if out is None else {**checks, "output folder": partial(_folder, folder)}


def _guarded(name: str, check: Callable[[], str]) -> Finding:
    """What ``check`` says, or what it raises, as a finding."""
    try:
        return Finding(OK, name, check())
    except Absent as absent:
        return Finding(ABSENT, name, str(absent))
    except _BROKEN as error:
        kind = "" if isinstance(error, TesseraError) else f"{type(error).__name__}: "
        return Finding(FAILED, name, f"{kind}{error}")


# ---- packages and machine


def _packages() -> Findings:
    yield Finding(OK, "tessera_fast", f"{__version__}, Python {platform.python_version()}")
    for name in ("numpy", "pyproj", "tqdm", "zarr"):
        found = version(name)
        if found:
            yield Finding(OK, name, found)
        elif name == "zarr" and sys.version_info < (3, 11):
            yield Finding(ABSENT, name, "needs Python 3.11; .npy output works without it")
        else:
            yield Finding(FAILED, name, f"is required: {how_to_install(name)}")
    for module in _OPTIONAL:
        name = installed_as(module)
        found = version(name)
        advice = how_to_install(module)
        yield Finding(OK, name, found) if found else Finding(ABSENT, name, advice)


def _machine(folder: Path) -> Findings:
    yield Finding(OK, "platform", f"{sys.platform} {platform.machine()}")
    yield _guarded("threads", lambda: f"{env.threads()} of {os.cpu_count()} CPUs")
    yield _guarded("memory", _memory)
    yield _guarded("disk", lambda: _disk(folder))


def _memory() -> str:
    free = available_bytes()
    if free is None:
        raise Absent("how much is free cannot be told on this system; use --memory")
    if free < _LEAST_MEMORY:
        raise TesseraError(
            f"{size(free)} free, expected {size(_LEAST_MEMORY)} at least: end other work"
        )
    return f"{size(free)} free"


def _disk(folder: Path) -> str:
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    if free < _LEAST_DISK:
        raise TesseraError(f"{size(free)} free at {there}: make room, or write elsewhere")
    return f"{size(free)} free at {there}"


# ---- known answers


def _instruction_sets() -> Findings:
    try:
        sets = instruction_sets()
    except ImportError as error:
        advice = "pip install --force-reinstall tessera_fast"
        yield Finding(FAILED, "extension", f"cannot be loaded: {error}; {advice}")
        return
    yield _guarded("packing", _packing)
    for isa in sets:
        if isa.lacks:
            yield Finding(ABSENT, isa.name, f"this machine lacks {isa.lacks}")
        else:
            yield _guarded(isa.name, partial(_instruction_set, isa.name))
    if env.isa():
        reason = backends.get("cpu").why_not(selftest.MODELS["v2-nano"], Running())
        state = FAILED if reason else OK
        yield Finding(state, "forced", reason or f"TESSERA_FAST_ISA={env.isa()}")


def _packing() -> str:
    for name in selftest.MODELS:
        if selftest.digest(name) != selftest.answers()[name][0]:
            raise WrongAnswer(f"other dates than the known ones are read for {name}")
    return f"{len(selftest.MODELS)} kinds of model read the known dates"


def _instruction_set(isa: str) -> str:
    from ..backends.cpu import PRECISIONS, CpuEncoder

    for precision in PRECISIONS:
        for name, spec in selftest.MODELS.items():
            with closing(CpuEncoder(spec, selftest.weights(name), 2, isa, precision)) as encoder:
                selftest.judge(encoder, name)
    return f"{', '.join(PRECISIONS)} give the known answers"


def _back_ends() -> Findings:
    for name in backends.BEST_FIRST:
        if name != "cpu":
            yield _guarded(name, partial(_back_end, name))


def _back_end(name: str) -> str:
    # one narrow student: TensorRT takes its time to build an engine
    spec, running = selftest.MODELS["v2-nano"], Running(threads=1)
    reason = backends.get(name).why_not(spec, running)
    if reason is not None:
        raise Absent(reason)
    encoder = backends.get(name).load(spec, selftest.weights("v2-nano"), running)
    with closing(encoder):
        selftest.judge(encoder, "v2-nano")
        return f"{encoder.precision} on {encoder.place} gives the known answer"


# ---- parts of the pipeline


def _parts() -> Findings:
    yield _guarded("int8", selftest.check_int8)
    yield _guarded("any threads", selftest.check_threads)
    yield _guarded("xarray", selftest.check_xarray)
    yield _guarded("rasterio", selftest.check_rasterio)
    yield _guarded("Zarr store", selftest.check_store)


# ---- weights and the output's folder


def _weights() -> Findings:
    yield _guarded("folder", _weights_folder)
    for name, release in hub.RELEASES.items():
        yield _guarded(name, partial(_released, name, release))


def _weights_folder() -> str:
    folder = env.weights_dir()
    if folder is None:
        raise Absent("TESSERA_FAST_WEIGHTS is not set: v2 models come from the hub")
    if not folder.is_dir():
        raise WeightsError(f"TESSERA_FAST_WEIGHTS: {folder} is not a folder")
    return f"TESSERA_FAST_WEIGHTS={folder}"


def _released(name: str, release: hub.Release) -> str:
    """Where ``load_model`` finds a model; its bytes are checked when it is loaded."""
    folder = env.weights_dir()
    for file in (release.file, f"{name}.safetensors"):
        if folder is not None and (folder / file).is_file():
            return _sized(folder / file, release)
    if release.repo is None:
        raise Absent(f"from the authors' drive: {release.file}")
    if version("huggingface_hub") is None:
        raise Absent(f"{how_to_install('huggingface_hub')}, or put it into TESSERA_FAST_WEIGHTS")
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(release.repo, release.path_in_repo)
    if not isinstance(path, str):
        raise Absent(f"downloaded on first use, {size(release.size or 0)}")
    return _sized(Path(path), release)


def _sized(path: Path, release: hub.Release) -> str:
    bytes_ = path.stat().st_size
    if path.suffix != ".safetensors" and release.size not in (None, bytes_):
        raise WeightsError(
            f"{path}: expected {release.size:,} bytes, got {bytes_:,}; delete it and fetch it again"
        )
    return str(path)


def _folder(folder: Path) -> Findings:
    is_store = (folder / "zarr.json").exists()
    there = _existing(folder.parent if is_store else folder)
    if is_store or (folder / STATE).is_dir():
        yield _guarded("finished tiles", partial(_finished, folder))
    try:
        with tempfile.TemporaryDirectory(prefix=".tessera_fast_", dir=there) as name:
            place = Path(name)
            (place / "a").write_bytes(b"a")
            yield _guarded("write", lambda: f"files can be written in {there}")
            yield _guarded("rename", partial(_rename, place))
            yield _guarded("hard links", partial(_hard_link, place))
            yield _guarded("locks", partial(_locks, place))
    except OSError as error:
        yield Finding(FAILED, "write", f"{there} cannot be written to: {error}")


def _finished(output: Path) -> str:
    found = check(output)
    if not found.sound:
        first, more = found.problems[0], len(found.problems) - 1
        others = f" (and {more} more; tessera-fast verify {output} lists them)" if more else ""
        raise StoreError(f"{first.where}: {first.what}. {first.fix}{others}")
    tiles, digests = found.counts.get("markers", 0), found.counts.get("digests", 0)
    return f"{tiles:,} in {output}, {digests:,} digests as recorded"


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest above it that is there."""
    whole = folder.expanduser().resolve()
    return next(p for p in (whole, *whole.parents) if p.is_dir())


def _rename(place: Path) -> str:
    (place / "b").write_bytes(b"b")
    os.replace(place / "b", place / "a")
    if (place / "a").read_bytes() != b"b":
        raise WrongAnswer("a file that was renamed onto another one does not replace it")
    return "a file replaces another one at once"


def _hard_link(place: Path) -> str:
    try:
        os.link(place / "a", place / "link")
    except OSError as error:
        raise Absent(f"{error.strerror}: a store that grows copies its shards") from error
    return "a store grows without copying"


def _locks(place: Path) -> str:
    """What this process holds, another one must find held."""
    code = (
        "import sys; from pathlib import Path; from tessera_fast.store.locks import Locks\n"
        "sys.exit(10 + Locks(Path(sys.argv[1])).take('tile', wait=False))"
    )
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    with closing(Locks(place / "lock")) as locks:
        locks.take("tile")
        done = subprocess.run(
            [sys.executable, "-c", code, str(place / "lock")],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
    if done.returncode == 11:
        raise Absent("none on this file system: one process at a time may write an output")
    if done.returncode != 10:
        raise WrongAnswer(f"a second process failed: {done.stderr.strip()[-200:]}")
    return "several processes may write one output"
