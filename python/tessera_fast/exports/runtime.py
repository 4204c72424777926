"""ONNX Runtime and files of models: the only place that knows either."""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import env, packages
from ..errors import BackendUnavailable

if TYPE_CHECKING:
    import onnx

_ERRORS_ONLY = 3  # ONNX Runtime's log severity


def require(*names: str) -> None:
    """BackendUnavailable, with what to install, unless all can be imported."""
    for name in names:
        packages.require(name, "an export", BackendUnavailable)


def version() -> str:
    """Of ONNX Runtime."""
    return importlib.metadata.version("onnxruntime")


def save(model: "onnx.ModelProto", path: Path) -> Path:
    """Write a model; its external data, if it has any, lies beside it already."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def session(path: Path, threads: int | None = None) -> Any:
    """An onnxruntime.InferenceSession on the CPU."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = env.threads(threads)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
