"""Packages that some parts need: imported where they are used, and what to do if that fails.

A package that is not installed and one that is installed and cannot be imported are two things:
installing the latter again changes nothing if one of its own parts is missing.
"""

import errno
import importlib
import importlib.metadata
import importlib.util
import os
from typing import Any

from .errors import StoreError, TesseraError

# Module -> the extra of pyproject.toml that brings it; "" for what every installation has.
EXTRAS = {
    "fsspec": "remote",
    "huggingface_hub": "hub",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pyarrow": "plan",
    "pyproj": "",
    "pystac": "geo",
    "rasterio": "geo",
    "ray": "ray",
    "rioxarray": "geo",
    "scipy": "probe",
    "sklearn": "probe",
    "tensorrt_rtx": "tensorrt",
    "torch": "torch",
    "tqdm": "",
    "triton": "gpu",
    "xarray": "geo",
    "zarr": "",
}
# Names that differ between an import and an installation.
_INSTALLED_AS = {"sklearn": "scikit-learn", "tensorrt_rtx": "tensorrt-rtx"}
# What libraries say where there is no memory.
_OF_MEMORY = (os.strerror(errno.ENOMEM), "failed to map segment", "can't allocate memory")


def require(
    module: str,
    what: str,
    error: type[TesseraError] = StoreError,
    *,
    extra: str | None = None,
    instead: str = "",
) -> Any:
    """The module ``module``, imported; ``error`` says what it is needed for and what to do.

    ``what`` begins the message ("a plan's file"), ``instead`` ends it with another way; ``extra``
    is the one to install, by default that of ``EXTRAS``.
    """
    try:
        return importlib.import_module(module)
    except ImportError as failed:
        raise error(f"{what} needs {why_not(module, failed, extra)}{instead}") from failed


def why_not(module: str, failed: ImportError, extra: str | None = None) -> str:
    """Which package could not be imported because of ``failed``, and the mend."""
    package = module.partition(".")[0]
    if is_absent(package, failed):
        return f"{package}, which is not installed: {how_to_install(package, extra)}"
    if isinstance(failed, ModuleNotFoundError) and failed.name:
        missing = failed.name.partition(".")[0]
        if missing != package:
            return (
                f"{package}, which is installed, and {missing}, which {package} imports and which "
                f"is not: pip install {installed_as(missing)}"
            )
    reason = last_line(failed)
    mend = limit_mend(reason) or (
        f"mend that, or install it again: pip install --force-reinstall {installed_as(package)}"
    )
    return f"{package}, which is installed and cannot be imported ({reason}): {mend}"


def last_line(error: BaseException) -> str:
    """The last line of an error that may have many, or its type's name."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip()[:200] if lines else type(error).__name__


def limit_mend(reason: str) -> str:
    """What to do where ``reason``, an error's text, tells of a limit of the process; else ""."""
    if any(os.strerror(code) in reason for code in (errno.EMFILE, errno.ENFILE)):
        return "allow more open files (ulimit -n 1024)"
    if "new thread" in reason or os.strerror(errno.EAGAIN) in reason:
        return "allow more threads and memory (ulimit -u, ulimit -v), or use fewer --threads"
    if "no database context" in reason:
        return "pyproj cannot read its database: check where it is (PROJ_DATA), and the memory"
    if any(sign in reason for sign in _OF_MEMORY):
        return "give the process more memory (ulimit -v unlimited), or end other work"
    return ""


def problem(module: str, extra: str | None = None) -> str | None:
    """Why ``module`` cannot be imported, as a sentence without an end; None if it can, and is."""
    try:
        importlib.import_module(module)
    except ImportError as failed:
        return f"it needs {why_not(module, failed, extra)}"
    return None


def is_absent(package: str, failed: ImportError) -> bool:
    """Whether ``failed`` came because ``package`` itself is not installed."""
    return isinstance(failed, ModuleNotFoundError) and not has(package)


def how_to_install(package: str, extra: str | None = None) -> str:
    """``pip install ...`` of a package, by the extra that has it."""
    extra = EXTRAS.get(package, "") if extra is None else extra
    return f"pip install 'tessera_fast[{extra}]'" if extra else f"pip install {_asked(package)}"


def _asked(package: str) -> str:
    return "'zarr>=3'" if package == "zarr" else installed_as(package)


def installed_as(package: str) -> str:
    """What pip calls a package that is imported as ``package``."""
    return _INSTALLED_AS.get(package, package)


def has(package: str) -> bool:
    """True if a package is installed; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that a program made and has put in its place
        return True


def version(package: str) -> str | None:
    """The version of what was installed by this name; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
