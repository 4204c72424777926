"""`tessera-fast info`: what is installed, what runs here, and why the rest does not."""

import importlib.metadata
import platform
import sys

from . import __version__, backends, env
from .backends.base import Plan
from .spec import RELEASED

_PACKAGES = ("numpy", "zarr", "pyproj", "tqdm", "torch", "huggingface_hub", "xarray",
             "rioxarray", "rasterio", "onnx", "onnxruntime", "tensorrt",
             "tensorrt_rtx")  # fmt: skip


def describe() -> str:
    """The report, as text."""
    lines = [f"tessera_fast {__version__}, Python {platform.python_version()}, {sys.platform} "
             f"{platform.machine()}, {env.threads()} threads"]  # fmt: skip
    lines += ["", "packages", *(f"  {name:16} {_version(name)}" for name in _PACKAGES)]
    lines += ["", "instruction sets of the cpu back end", *_isas()]
    spec = RELEASED["v2-nano"]
    lines += ["", "back ends"]
    for name in backends.BEST_FIRST:
        reason = backends.get(name).why_not(spec, Plan())
        lines.append(f"  {name:16} {'available' if reason is None else reason}")
    lines += ["", "models", *(_model(name) for name in RELEASED)]
    folder = env.weights_dir()
    lines += ["", f"TESSERA_FAST_WEIGHTS  {folder or 'not set: v2 models come from the hub'}"]
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _isas() -> list[str]:
    try:
        from . import _cpu
    except ImportError as error:
        return [f"  the extension module cannot be loaded: {error}"]
    forced = env.isa()
    automatic = [name for name, runs, _, automatic in _cpu.isas() if runs and automatic]
    lines = []
    for name, runs, needs, _ in _cpu.isas():
        precision = "bf16" if runs and _cpu.native_bf16(name) else "fp32"
        state = f"runs; precision auto is {precision}" if runs else f"this machine lacks {needs}"
        chosen = name == (forced or automatic[0])
        lines.append(f"  {name:16} {state}{', chosen' if chosen else ''}")
    return lines + ([f"  forced by TESSERA_FAST_ISA={forced}"] if forced else [])


def _model(name: str) -> str:
    s = RELEASED[name]
    return f"  {name:16} width {s.d_model:4}, {s.num_layers} layers, embedding {s.saved_dim}"
