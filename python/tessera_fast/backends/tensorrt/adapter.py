"""The one place that calls TensorRT: the packages tensorrt and tensorrt_rtx, which share an API.

TensorRT builds for the GPU that is there; TensorRT-RTX also without one, for a list of compute
capabilities, and finishes the compilation on the machine that runs the engine.
"""

import importlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import BackendUnavailable, InputError
from ...packages import has

PACKAGES = ("tensorrt", "tensorrt_rtx")  # the first that is installed is taken
# The first release with `device_memory_size_v2` and `set_device_memory`. TensorRT-RTX has them from
# its first release on.
_OLDEST = {"tensorrt": (10, 1)}
# What an operation may take beside the tensors between operations: products ask for tens of MiB.
# Without a limit TensorRT tries kernels that take all memory of the device.
SCRATCH_BYTES = 1 << 30
_log = logging.getLogger("tessera_fast")

Shape = tuple[int, ...]
# An optimisation profile: input -> its least, usual and largest shape.
Profile = dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Package:
    """An installed TensorRT."""

    name: str
    module: ModuleType

    @property
    def version(self) -> str:
        version: str = self.module.__version__
        return version

    @property
    def builds_without_gpu(self) -> bool:
        return self.name == "tensorrt_rtx"


def installed(name: str | None = None) -> Package | None:
    """The package ``name``, or the first of ``PACKAGES`` that can be imported; None if none can."""
    for candidate in PACKAGES if name is None else (name,):
        if not has(candidate):
            continue
        try:
            return Package(candidate, importlib.import_module(candidate))
        except ImportError as error:  # a stub without its libraries
            _log.info("%s is installed and cannot be imported: %s", candidate, error)
    return None


def too_old(package: Package) -> str | None:
    """A sentence if the package lacks what this module calls, else None."""
    oldest = _OLDEST.get(package.name, (0, 0))
    found = re.match(r"(\d+)\.(\d+)", package.version)
    if found is not None and (int(found[1]), int(found[2])) >= oldest:
        return None
    return (
        f"{package.name} {package.version} is too old: expected {oldest[0]}.{oldest[1]} or newer; "
        f"pip install -U {package.name}, or on Jetson install JetPack 6.1 or newer"
    )


def capabilities(package: Package) -> list[str]:
    """What an engine can be built for without that GPU: "8.6", "8.9", ...; nothing for TensorRT."""
    if not package.builds_without_gpu:
        return []
    names = [n for n in package.module.ComputeCapability.__members__ if n.startswith("SM")]
    return sorted(
        (f"{n[2:-1]}.{n[-1]}" for n in names), key=lambda c: tuple(map(int, c.split(".")))
    )


def build(
    package: Package,
    onnx: Path,
    profiles: list[Profile],
    *,
    targets: tuple[str, ...] = (),
    exact_fp32: bool = False,
    refittable: bool = False,
) -> bytes:
    """An engine of a strongly typed ONNX file: the types are the file's.

    ``targets``: compute capabilities, TensorRT-RTX alone; none: the GPU that is there.
    ``exact_fp32`` forbids tf32 in float32 products. ``refittable``: the parameters can be replaced.
    Raises BackendUnavailable with TensorRT's own messages where it refuses the file or the target.
    """
    trt = package.module
    messages = _Messages(trt)
    builder = trt.Builder(messages.logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BackendUnavailable(f"{package.name} {package.version} cannot read {onnx}: {errors}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, SCRATCH_BYTES)
    if exact_fp32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if targets:
        _set_targets(package, config, targets)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in shapes.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendUnavailable(
            f"{package.name} {package.version} cannot build {onnx.name}: {messages.text()}"
        )
    return bytes(plan)


class Engine:
    """A deserialised engine on the current GPU."""

    def __init__(self, package: Package, plan: bytes) -> None:
        self._trt = package.module
        self._messages = _Messages(package.module)
        self._runtime = self._trt.Runtime(self._messages.logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendUnavailable(
                f"{package.name} {package.version} cannot load an engine here: "
                f"{self._messages.text()}"
            )

    def refit(self, onnx: Path) -> None:
        """Take the parameters of another file of the same graph; BackendUnavailable if not all
        are replaced."""
        refitter = self._trt.Refitter(self._engine, self._messages.logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._messages.logger)
        if not (parser.refit_from_file(str(onnx)) and refitter.refit_cuda_engine()):
            raise BackendUnavailable(f"cannot refit an engine from {onnx}: {self._messages.text()}")

    def workspace_bytes(self) -> int:
        """Device memory that a context works in, whatever its profile."""
        size: int = self._engine.device_memory_size_v2
        return size

    def context(self, profile: int, stream: int, memory: tuple[int, int]) -> "Context":
        """A context that works in ``memory`` (address, bytes): several may share it in turn."""
        manual = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        made = self._engine.create_execution_context(manual)
        made.set_device_memory(*memory)
        if not made.set_optimization_profile_async(profile, stream):
            raise RuntimeError(f"TensorRT: {self._messages.text()}")
        return Context(made, self._messages)


class Context:
    """An execution context of one profile: shapes and addresses in, work on a stream."""

    def __init__(self, context: Any, messages: "_Messages") -> None:
        self._context, self._messages = context, messages

    def enqueue(
        self, inputs: dict[str, tuple[Shape, int]], outputs: dict[str, int], stream: int
    ) -> None:
        """Run on ``stream``: ``inputs`` name -> (shape, address), ``outputs`` name -> address."""
        for name, (shape, address) in inputs.items():
            self._context.set_input_shape(name, shape)
            self._context.set_tensor_address(name, address)
        for name, address in outputs.items():
            self._context.set_tensor_address(name, address)
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"TensorRT: {self._messages.text()}")


class _Messages:
    """TensorRT's log: errors are kept for exceptions, the rest goes to ours."""

    def __init__(self, trt: ModuleType) -> None:
        self._errors: list[str] = []
        severity = trt.ILogger.Severity
        levels = {
            severity.WARNING: logging.DEBUG,
            severity.ERROR: logging.DEBUG,
            severity.INTERNAL_ERROR: logging.DEBUG,
        }
        kept = (severity.ERROR, severity.INTERNAL_ERROR)
        errors = self._errors

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in kept:
                    errors.append(text)
                if severity in levels:
                    _log.log(levels[severity], "TensorRT: %s", text)

        self.logger = Logger()

    def text(self) -> str:
        """The errors since the last call."""
        text = "; ".join(self._errors) or "no reason given"
        self._errors.clear()
        return text


def _strongly_typed(trt: ModuleType) -> int:
    """Flags of a network whose types are the file's; a TensorRT that knows no other has no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _set_targets(package: Package, config: Any, targets: tuple[str, ...]) -> None:
    known = capabilities(package)
    unknown = [t for t in targets if t not in known]
    if unknown:
        raise InputError(
            f"targets: {package.name} {package.version} builds for "
            f"{', '.join(known) or 'the GPU that is there alone'}, got {', '.join(unknown)}"
        )
    config.num_compute_capabilities = len(targets)
    for i, target in enumerate(targets):
        capability = getattr(package.module.ComputeCapability, f"SM{target.replace('.', '')}")
        config.set_compute_capability(capability, i)
