"""`tessera-fast info`: what is installed, what runs here, and why the rest does not."""

import platform
import sys
from typing import NamedTuple

from .. import backends, env
from ..backends.base import RunOptions
from ..packages import version
from ..spec import NAMED, RELEASED
from ..version import __version__

_PACKAGES = (
    "numpy",
    "zarr",
    "pyproj",
    "tqdm",
    "torch",
    "huggingface_hub",
    "xarray",
    "rioxarray",
    "rasterio",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
)


def describe() -> str:
    """The report, as text."""
    lines = [
        f"tessera_fast {__version__}, Python {platform.python_version()}, {sys.platform} "
        f"{platform.machine()}, {env.threads()} threads"
    ]
    lines += ["", "packages", *(f"  {n:16} {version(n) or 'not installed'}" for n in _PACKAGES)]
    lines += ["", "instruction sets of the cpu back end", *_isas()]
    spec = RELEASED["v2-nano"]
    lines += ["", "back ends"]
    for name in backends.BEST_FIRST:
        reason = backends.get(name).why_not(spec, RunOptions())
        lines.append(f"  {name:16} {'available' if reason is None else reason}")
    lines += ["", "models", *(_model(name) for name in NAMED)]
    folder = env.weights_dir()
    lines += ["", f"TESSERA_FAST_WEIGHTS  {folder or 'not set: v2 models come from the hub'}"]
    return "\n".join(lines)


class InstructionSet(NamedTuple):
    """One of those that the cpu back end is built for, best first."""

    name: str
    lacks: str  # what this machine lacks to run it; empty if it runs
    automatic: bool  # taken without being asked for


def instruction_sets() -> list[InstructionSet]:
    """All that are built; ImportError if the extension module cannot be loaded."""
    from .. import _cpu

    return [InstructionSet(n, "" if runs else lacks, auto) for n, runs, lacks, auto in _cpu.isas()]


def _isas() -> list[str]:
    try:
        sets = instruction_sets()
        from ..backends.cpu import automatic_precision
    except ImportError as error:
        return [f"  the extension module cannot be loaded: {error}"]
    forced = env.isa()
    chosen = forced or next(s.name for s in sets if s.automatic and not s.lacks)
    lines = []
    for name, lacks, _ in sets:
        state = f"this machine lacks {lacks}"
        if not lacks:
            state = f"runs; precision auto is {automatic_precision(name)}"
        lines.append(f"  {name:16} {state}{', chosen' if name == chosen else ''}")
    return lines + ([f"  forced by TESSERA_FAST_ISA={forced}"] if forced else [])


def _model(name: str) -> str:
    s = NAMED[name]
    return f"  {name:16} width {s.d_model:4}, {s.num_layers} layers, embedding {s.saved_dim}"
