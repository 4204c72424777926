"""ONNX Runtime and files of models: the only place that knows either."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import env
from ..errors import BackendUnavailable

if TYPE_CHECKING:
    import onnx

_ERRORS_ONLY = 3  # ONNX Runtime's log severity


def require(*packages: str) -> None:
    """BackendUnavailable, with what to install, unless all can be imported."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise BackendUnavailable(
            f"{', '.join(missing)} is not installed: pip install 'tessera_fast[onnx]'"
        )


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
