"""From a model's name or a file to checked parameters, and from those to safetensors."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import env
from ..errors import InputError, WeightsError
from ..spec import DEMO, NAMED, ModelSpec
from ..untrusted.readers import local_path, shown
from ..untrusted.suggest import checks_keywords, closest
from . import checkpoint, hub
from .checkpoint import StoredTensor
from .recognise import SPEC_KEY, match
from .untrained import untrained

_BLOCK = 1 << 22  # values tested for finiteness at once
_SOURCE_KEY = "tessera_fast.source"
_UNTRAINED = re.compile(r"untrained:([0-9]{1,18})")


@dataclass(frozen=True)
class Weights:
    """A model's parameters, checked against its spec."""

    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]  # exactly spec.parameter_shapes(): float32, C-contiguous,
    # aligned, finite, perhaps read-only views of a mapped file, or drawn anew on every access
    sha256: str  # of the checkpoint file; of the recipe for untrained weights
    # path, "hub:<repo>/<file>@<revision>", "package:<file>" or "untrained:<seed>", perhaps
    # "in <path>"
    source: str

    @property
    def trained(self) -> bool:
        return not self.source.startswith("untrained:")


def load_weights(
    model: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None
) -> Weights:
    """Parameters of a released model, or of a checkpoint file.

    ``model``: a name in ``spec.NAMED``, or a path to a .pt, .pth or .safetensors file, whose
    family and sizes are recognised. ``weights``, with a name only: a path that must match that
    model, or "untrained" or "untrained:<seed>". Without it the weights of demo-nano are those of
    the package; for a released name the folder TESSERA_FAST_WEIGHTS is searched for the official
    file name and <name>.safetensors, then the hub is asked.

    Raises WeightsError for a file that is absent, unsafe, truncated or mismatched, and InputError
    for an unknown model name.
    """
    spec = _named_or_path(model)
    if not isinstance(spec, ModelSpec):
        if weights is not None:
            raise WeightsError(
                f"weights={shown(weights)} goes with a model's name, got model={shown(model)}"
            )
        return _from_file(spec, None)
    if weights is None:
        return _shipped(spec) if spec is DEMO else _find_released(spec)
    text = _text(weights, "weights")
    if text == "untrained" or text.startswith("untrained:"):
        given = _UNTRAINED.fullmatch(text if ":" in text else "untrained:1")
        if given is None:
            raise WeightsError(
                f"weights: expected untrained:<seed>, a number of 0 to {10**18 - 1}, got "
                f"{shown(text)}"
            )
        return untrained_weights(spec, int(given[1]))
    path = local_path(text, "weights")
    if not path.exists() and (near := closest(text, ("untrained",))):
        raise WeightsError(
            f"weights: expected the path of a checkpoint, or untrained[:<seed>], got "
            f"{shown(text)}, where nothing is.{near}"
        )
    return _from_file(path, spec)


def spec_of(model: str | os.PathLike[str]) -> ModelSpec:
    """The spec of a named model or of a checkpoint, whose values are not read.

    Raises as :func:`load_weights` does.
    """
    found = _named_or_path(model)
    return found if isinstance(found, ModelSpec) else match(checkpoint.read(found))[0]


def _named_or_path(model: str | os.PathLike[str]) -> ModelSpec | Path:
    """The spec of a model's name, or the path of what may be a checkpoint."""
    name = _text(model, "model")
    if name in NAMED:
        return NAMED[name]
    path = local_path(name, "model")
    if path.suffix not in (".pt", ".pth", ".safetensors") and not path.exists():
        raise unknown_model(name)
    return path


def _text(value: object, what: str) -> str:
    """A name or path as text."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise InputError(f"{what}: expected a name or a path, got {shown(value)}")
    return text


def unknown_model(name: str) -> InputError:
    """The error for what is neither a model's name nor a checkpoint."""
    return InputError(
        f"model: expected one of {', '.join(NAMED)}, or the path of a .pt or .safetensors file, "
        f"got {shown(name)}.{closest(name, NAMED)}"
    )


def untrained_weights(spec: ModelSpec, seed: int = 1) -> Weights:
    """Seeded random parameters of any spec; ``tensors`` are drawn on every access."""
    tensors = untrained(spec, seed)
    return Weights(spec, tensors, tensors.sha256, f"untrained:{seed}")


def save_safetensors(
    path: str | os.PathLike[str],
    weights: Weights,
    overwrite: bool = False,
    *,
    dtype: str = "float32",
    name: str | None = None,
) -> None:
    """Write safetensors with the spec inside, so that the file needs no other word.

    ``dtype`` "bfloat16" rounds the values to nearest even and halves the file. ``name`` is what
    the model is called from then on, default as before. The file appears whole or not at all;
    StoreError if it exists and ``overwrite`` is False, or cannot be written; InputError for an
    unknown dtype, and for a name that another model has.
    """
    spec = weights.spec if name is None else replace(weights.spec, name=name)
    if spec != NAMED.get(spec.name, spec):
        raise InputError(f"name: expected a name that no other model has, got {shown(name)}")
    source = weights.source.partition(" in ")[0] if not weights.trained else weights.source
    if not source.startswith(("hub:", "package:", "untrained:")):
        source = Path(source).name  # a user's folders do not belong in a file that may be shared
    metadata = {
        SPEC_KEY: json.dumps(spec.to_json()),
        _SOURCE_KEY: source,
        f"{_SOURCE_KEY}_sha256": weights.sha256,
    }
    shapes = spec.parameter_shapes()
    destination = local_path(path, "path")
    checkpoint.write_safetensors(destination, weights.tensors, shapes, metadata, overwrite, dtype)


@checks_keywords()
def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    model: str | None = None,
    overwrite: bool = False,
    *,
    dtype: str = "float32",
    name: str | None = None,
) -> None:
    """Checkpoint (or a model's name) to safetensors; ``model`` is the name that it must match.

    Raises as :func:`load_weights` and :func:`save_safetensors` do.
    """
    loaded = load_weights(source) if model is None else load_weights(model, source)
    save_safetensors(destination, loaded, overwrite, dtype=dtype, name=name)


def _shipped(spec: ModelSpec) -> Weights:
    path = Path(__file__).with_name(f"{spec.name}.safetensors")
    return _from_file(path, spec, source=f"package:{path.name}")


def _find_released(spec: ModelSpec) -> Weights:
    official = hub.RELEASES[spec.name].file
    folder = env.weights_dir()
    if folder is not None:
        folder = local_path(folder, "TESSERA_FAST_WEIGHTS")
        if not folder.is_dir():
            raise WeightsError(f"TESSERA_FAST_WEIGHTS: {folder} is not a folder")
        for file in (official, f"{spec.name}.safetensors"):
            if (folder / file).is_file():
                return _from_file(folder / file, spec, pinned=file == official)
    path, sha256 = hub.fetch(spec.name)
    return _from_file(path, spec, sha256=sha256, source=hub.source(spec.name, path))


def _from_file(
    path: Path,
    expected: ModelSpec | None,
    *,
    pinned: bool = False,
    sha256: str | None = None,
    source: str | None = None,
) -> Weights:
    """Read and check one file; ``pinned``: its bytes must be those that were released.

    ``sha256``: the digest of the file, where it was verified already.
    """
    sha256 = sha256 or checkpoint.digest(path)
    if pinned and expected is not None:
        hub.verify(expected.name, path, sha256)
    file = checkpoint.read(path)
    spec, stored = match(file, expected)
    stored = {name: stored[name] for name in spec.parameter_shapes()}
    tensors = _values(path, stored)
    origin = file.metadata.get(_SOURCE_KEY, "")
    if origin.startswith("untrained"):
        if not _UNTRAINED.fullmatch(origin):
            raise WeightsError(
                f"{path}: {_SOURCE_KEY}: expected untrained:<seed>, got {shown(origin)}"
            )
        source = f"{origin} in {path}"
    return Weights(spec, tensors, sha256, source or str(path))


def _values(path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    """The parameters of a file; what lies in one place is read once."""
    for name, tensor in stored.items():
        try:
            tensor.check()
        except ValueError as error:
            raise WeightsError(f"{path}: {name}: {error}") from error
    shared = checkpoint.share(stored)
    if shared is not None:
        raise WeightsError(f"{path}: {shared}: its values are partly those of another parameter")
    arrays: dict[checkpoint.Layout, np.ndarray] = {}
    for name, tensor in stored.items():
        if tensor.layout not in arrays:
            arrays[tensor.layout] = _finite(path, name, tensor.read())
    return {name: arrays[tensor.layout] for name, tensor in stored.items()}


def _finite(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        bad = np.flatnonzero(~np.isfinite(flat[start : start + _BLOCK]))
        if bad.size:
            index = start + int(bad[0])
            raise WeightsError(
                f"{path}: {name}: expected finite float32 values, got {flat[index]} at "
                f"{tuple(int(i) for i in np.unravel_index(index, array.shape))}"
            )
    return array
