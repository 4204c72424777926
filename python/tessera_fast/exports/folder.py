"""An exported model on disk: three graphs and a manifest, in a folder that appears whole."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from ..errors import InputError, StoreError
from ..spec import S1_BANDS, S2_BANDS, ModelSpec
from ..untrusted.readers import Unreadable, plain_name, read_json, shown, take, take_or_none
from ..version import __version__
from ..weights import Weights
from ..weights.checkpoint import digest
from . import network
from .calibrate import ActivationRanges
from .form import Form
from .graph import OPSET
from .runtime import save

PARTS = ("s2_encoder", "s1_encoder", "head")
MANIFEST = "manifest.json"
# Bytes of parameters: more go into a file beside the graph. Protobuf ends at 2 GiB.
_BESIDE = 1 << 30


def write_onnx(
    weights: Weights, form: Form, folder: Path, calibration: ActivationRanges | None = None
) -> dict[str, Any]:
    """Write the graphs and the manifest into an existing folder; returns the manifest.

    ``calibration``: which int8 and fp8 need.
    """
    spec = weights.spec
    ranges = calibration.ranges if calibration else None
    graphs = {}
    for part in PARTS:
        data = folder / f"{part}.onnx.data" if _bytes(spec) > _BESIDE else None
        if part == "head":
            model = network.head(spec, weights.tensors, form, data=data)
        else:
            model = network.encoder(spec, weights.tensors, part[:2], form, ranges=ranges, data=data)
        graphs[part] = describe_graph(save(model, folder / f"{part}.onnx"), model, data)
        del model
    manifest = {
        "tessera_fast": __version__,
        "model": spec.name,
        "trained": weights.trained,
        "weights": {"sha256": weights.sha256, "source": Path(weights.source).name},
        "form": asdict(form),
        "compute": form.compute,
        "opset": OPSET,
        "s2_bands": S2_BANDS,
        "s1_bands": S1_BANDS,
        "graphs": graphs,
        "calibration": calibration._asdict() if calibration else None,
        "spec": spec.to_json(),
    }
    write_manifest(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an exported folder: a version, a model, and the graphs with their files.

    InputError where it is damaged, or names anything but files beside it.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        graphs = take(manifest, "graphs", dict)
        if set(graphs) != set(PARTS):
            raise Unreadable(f"graphs: expected {', '.join(PARTS)}, got {shown(sorted(graphs))}")
        engines = take_or_none(manifest, "engines", dict)
        for part in PARTS:
            _check_graph(take(graphs, part, dict), engines is not None)
        if not plain_name(model := take(manifest, "model", str)) or not model.isprintable():
            raise Unreadable(f"model: expected the name of a model, got {shown(model)}")
        for table, name in (("weights", "sha256"), ("form", "precision")):
            if not (text := take(take(manifest, table, dict), name, str)).isalnum():
                raise Unreadable(f"{table}: expected letters and digits, got {shown(text)}")
        if engines is not None:
            take(take(engines, "identity", dict), "package", str)
            take(engines, "device", str)
            for target in take(engines, "targets", list):
                take({"targets": target}, "targets", str)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: expected a folder written by tessera-fast export, got no {MANIFEST} in it"
        ) from error
    except (OSError, Unreadable) as error:
        raise InputError(
            f"{path}: expected the manifest of an exported model, got {error}; export it again"
        ) from error
    return manifest


def _check_graph(graph: dict[str, Any], built: bool) -> None:
    for tensors in ("inputs", "outputs"):
        for tensor in take(graph, tensors, list):
            record = {"tensor": tensor}
            name, dtype = (take(take(record, "tensor", dict), n, str) for n in ("name", "dtype"))
            shape = take(tensor, "shape", list)
            axes = all(type(n) is int or (isinstance(n, str) and n.isidentifier()) for n in shape)
            if not name.isidentifier() or not dtype.isidentifier() or not axes:
                raise Unreadable(f"{tensors}: expected name, dtype and shape, got {shown(tensor)}")
    for name in ("file", "data", "engine"):
        if name not in graph and (name == "data" or (name == "engine" and not built)):
            continue
        if not plain_name(file := take(graph, name, str)):
            raise Unreadable(f"{name}: expected the name of a file beside it, got {shown(file)}")
        take(graph, {"file": "sha256"}.get(name, f"{name}_sha256"), str)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def describe_graph(path: Path, model: onnx.ModelProto, data: Path | None) -> dict[str, Any]:
    """File names, digests, inputs and outputs of a written graph."""
    graph = model.graph
    described = {
        "file": path.name,
        "sha256": digest(path),
        "inputs": [_tensor(v) for v in graph.input],
        "outputs": [_tensor(v) for v in graph.output],
    }
    if data is not None:
        described |= {"data": data.name, "data_sha256": digest(data)}
    return described


@contextmanager
def whole(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place when the block ends without an error.

    StoreError if ``folder`` exists and ``overwrite`` is False, or holds anything but an export.
    """
    if folder.exists():
        if not overwrite:
            raise StoreError(f"{folder}: exists; give another folder, or overwrite")
        if not (folder / MANIFEST).is_file():
            raise StoreError(f"{folder}: holds no {MANIFEST}, so it is not overwritten")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise StoreError(f"{folder}: cannot be made: {error}") from error
    try:
        yield made
        made.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            folder.rename(old / "old")
            made.rename(folder)
            shutil.rmtree(old)
        else:
            made.rename(folder)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def whole_file(path: Path, text: str) -> None:
    """Write a small file that is replaced whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tessera_fast.") as folder:
        yield Path(folder)


def _bytes(spec: ModelSpec) -> int:
    """Of the parameters of one encoder and the head together, in float32."""
    shapes = spec.parameter_shapes()
    return 4 * sum(prod(shape) for name, shape in shapes.items() if "s1_backbone" not in name)


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "dtype": helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        "shape": [d.dim_param or d.dim_value for d in tensor.shape.dim],
    }
