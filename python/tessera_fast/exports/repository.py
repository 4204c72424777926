"""An export as models of NVIDIA's Triton Inference Server: encoders, head and their ensemble.

    <repository>/<name>_s2/config.pbtxt, <version>/model.onnx   (or model.plan)
    <repository>/<name>_s1/, <name>_head/                       likewise
    <repository>/<name>/config.pbtxt, <version>/                the three behind one name

The server joins requests of equal shapes into batches: with the packed layout a client pads to a
multiple of 32 slots, so that there are few shapes.
"""

import shutil
from pathlib import Path
from typing import Any

from ..errors import InputError, StoreError
from ..untrusted.readers import plain_name, shown
from .folder import PARTS, read_manifest, whole_file

MAX_BATCH = 256  # pixels of a batch that the server makes
QUEUE_MICROSECONDS = 2000  # that a request may wait for others
_KINDS = {"float32": "FP32"}  # where the server's name is not numpy's in capitals
_SUFFIX = {"s2_encoder": "s2", "s1_encoder": "s1", "head": "head"}


def write_repository(
    export: Path,
    repository: Path,
    *,
    name: str | None = None,
    version: int = 1,
    max_batch: int = MAX_BATCH,
    cpu: bool = False,
) -> Path:
    """Add an export to a model repository, new or not, as version ``version``; the repository.

    ``name`` of the ensemble: default tessera-<model>. Graphs and configurations appear before the
    ensemble's version does, which is what a client asks for. Raises StoreError if that version is
    there, InputError for a folder that holds no export or engines of TensorRT-RTX.
    """
    manifest = read_manifest(export)
    engines = manifest.get("engines")
    if engines and engines["identity"]["package"] != "tensorrt":
        raise InputError(
            f"{export}: Triton Inference Server runs engines of tensorrt, not of "
            f"{engines['identity']['package']}; export ONNX, or build with tensorrt"
        )
    if version < 1 or max_batch < 1:
        raise InputError(f"version, max_batch: expected at least 1, got {version}, {max_batch}")
    name = name or f"tessera-{manifest['model']}"
    if not plain_name(name):
        raise InputError(f"name: expected the name of a model, got {shown(name)}")
    names = {part: f"{name}_{_SUFFIX[part]}" for part in PARTS}
    for model in (*names.values(), name):
        if (repository / model / str(version)).exists():
            raise StoreError(f"{repository / model / str(version)}: exists; give another version")
    files = "engine" if engines else "file"
    needed = [g[n] for g in manifest["graphs"].values() for n in (files, "data") if n in g]
    gone = [file for file in needed if not (export / file).is_file()]
    if gone:
        raise InputError(f"{export}: expected {gone[0]} in it, as its manifest says; export again")
    try:
        for part, model in names.items():
            graph = manifest["graphs"][part]
            place = repository / model / str(version)
            place.mkdir(parents=True)
            shutil.copyfile(export / graph[files], place / f"model.{'plan' if engines else 'onnx'}")
            if "data" in graph and not engines:
                shutil.copyfile(export / graph["data"], place / graph["data"])
            backend = 'platform: "tensorrt_plan"' if engines else 'backend: "onnxruntime"'
            _write(repository / model, _model(model, graph, backend, max_batch, cpu, manifest))
        _write(repository / name, _ensemble(name, names, version, manifest, max_batch))
        (repository / name / str(version)).mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"{repository}: the models cannot be written ({error})") from error
    return repository


def _write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole_file(folder / "config.pbtxt", text)


def _model(
    name: str,
    graph: dict[str, Any],
    backend: str,
    max_batch: int,
    cpu: bool,
    manifest: dict[str, Any],
) -> str:
    lines = [f'name: "{name}"', backend, f"max_batch_size: {max_batch}"]
    lines += [_tensor("input", t) for t in graph["inputs"]]
    lines += [_tensor("output", t, extra=_no_axis(t)) for t in graph["outputs"]]
    lines += [
        f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}",
        f"instance_group {{ count: 1 kind: {'KIND_CPU' if cpu else 'KIND_GPU'} }}",
        _parameters(manifest),
    ]
    return "\n".join(lines) + "\n"


def _ensemble(
    name: str, names: dict[str, str], version: int, manifest: dict[str, Any], max_batch: int
) -> str:
    """Inputs of both encoders under their names with s2_ or s1_ before them; the head's outputs."""
    lines = [f'name: "{name}"', 'platform: "ensemble"', f"max_batch_size: {max_batch}"]
    steps = []
    for part in ("s2_encoder", "s1_encoder"):
        short = _SUFFIX[part]
        inputs = manifest["graphs"][part]["inputs"]
        lines += [_tensor("input", t, f"{short}_") for t in inputs]
        maps = [_map("input", t["name"], f"{short}_{t['name']}") for t in inputs]
        maps.append(_map("output", "pooled", f"{short}_pooled"))
        steps.append(_step(names[part], version, maps))
    outputs = manifest["graphs"]["head"]["outputs"]
    lines += [_tensor("output", t) for t in outputs]
    maps = [_map("input", short, f"{short}_pooled") for short in ("s2", "s1")]
    maps += [_map("output", t["name"], t["name"]) for t in outputs]
    steps.append(_step(names["head"], version, maps))
    lines += ["ensemble_scheduling {", *steps, "}", _parameters(manifest)]
    return "\n".join(lines) + "\n"


def _tensor(direction: str, tensor: dict[str, Any], prefix: str = "", extra: str = "") -> str:
    """One input or output, without the batch's axis; -1 for one that varies."""
    dims = [-1 if isinstance(d, str) else d for d in tensor["shape"][1:]] or [1]
    kind = _KINDS.get(tensor["dtype"], tensor["dtype"].upper())
    name = prefix + tensor["name"]
    return f'{direction} {{ name: "{name}" data_type: TYPE_{kind} dims: {dims}{extra} }}'


def _no_axis(tensor: dict[str, Any]) -> str:
    """A scale a pixel has no axis but the batch's: the server wants one, and takes it away."""
    return "" if tensor["shape"][1:] else " reshape: { shape: [] }"


def _step(model: str, version: int, maps: list[str]) -> str:
    return "\n".join([f'  step {{ model_name: "{model}" model_version: {version}', *maps, "  }"])


def _map(direction: str, key: str, value: str) -> str:
    return f'    {direction}_map {{ key: "{key}" value: "{value}" }}'


def _parameters(manifest: dict[str, Any]) -> str:
    facts = {
        "tessera_model": manifest["model"],
        "tessera_precision": manifest["form"]["precision"],
        "tessera_weights_sha256": manifest["weights"]["sha256"],
    }
    return "\n".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
        for key, value in facts.items()
    )
