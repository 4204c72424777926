"""Which model a checkpoint file holds: from its tensors' names and shapes and its configuration.

The official layouts are those of ucam-eo/tessera at commit ef4f0ac.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, WeightsError
from ..spec import NAMED, RELEASED, ModelSpec
from ..untrusted.readers import Unreadable, named, parse_json, shown
from .checkpoint import Checkpoint, StoredTensor
from .wrappers import unwrapped

SPEC_KEY = "tessera_fast.spec"  # metadata of our own safetensors files: JSON of the ModelSpec
_MAX_SPEC = 64 << 10  # characters; a spec takes 1,000

_PARTS = ("s2_backbone.", "s1_backbone.", "dim_reducer.")
_PROJECTORS = ("projector.", "segmented_matryoshka_projector.")
_V2_KEYS = {
    "repr_dim": "out_dim",
    "latent_dim": "d_model",
    "num_layers": "num_layers",
    "nhead": "num_heads",
    "dim_feedforward": "ff_dim",
}
# By family, the keys of a file's configuration that repeat a field of the spec. v1.0's official
# loaders take their sizes from code, not from the file.
_REPEATED: dict[str, dict[str, str]] = {
    "v2": {**_V2_KEYS, "enable_qk_norm": "qk_norm"},
    "v2-teacher": {**_V2_KEYS, "final_layernorm": "final_norm"},
    "v1.1": {
        "latent_dim": "d_model",
        "representation_dim": "out_dim",
        "s2_num_layers": "num_layers",
        "s1_num_layers": "num_layers",
        "s2_num_heads": "num_heads",
        "s1_num_heads": "num_heads",
        "s2_dim_feedforward": "ff_dim",
        "s1_dim_feedforward": "ff_dim",
    },
    "v1.0-qat": {},
    "v1.0": {},
}


def match(
    file: Checkpoint, expected: ModelSpec | None = None
) -> tuple[ModelSpec, dict[str, StoredTensor]]:
    """The file's spec and the tensors it needs, by official name, every shape as the spec says.

    ``expected``: the released model that the file must hold. WeightsError names the first
    offending tensor in the order of the spec, or the setting that differs.
    """
    try:
        stored = unwrapped(file.tensors)
    except Unreadable as error:
        raise WeightsError(f"{file.path}: {error}") from error
    if expected is not None:
        _check_shapes(file.path, expected, _used(stored, expected.sampling))
    if SPEC_KEY in file.metadata:
        spec = _embedded(file, len(stored))
    else:
        spec = _recognise(file, stored, expected)
    stored = _used(stored, spec.sampling)
    _check_shapes(file.path, spec, stored)
    if expected is not None:
        _check_same(file.path, spec, expected)
    return spec, stored


def _used(stored: Mapping[str, StoredTensor], sampling: str) -> dict[str, StoredTensor]:
    """Without what only training needed: v1.x checkpoints carry it, v2's do not."""
    if sampling == "v1.0":
        return {name: t for name, t in stored.items() if name.startswith(_PARTS)}
    dropped = _PROJECTORS if sampling == "v1.1" else ()
    return {name: t for name, t in stored.items() if not name.startswith(dropped)}


def _check_shapes(path: Path, spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> None:
    shapes = spec.parameter_shapes()
    for name, shape in shapes.items():
        if name not in stored:
            raise WeightsError(f"{path}: {name}: expected {shape} for {spec.name}, it is missing")
        if stored[name].shape != shape:
            raise WeightsError(
                f"{path}: {name}: expected {shape} for {spec.name}, got {stored[name].shape}"
            )
    for name in stored:
        if name not in shapes:
            raise WeightsError(f"{path}: {named(name)}: unexpected, {spec.name} has no such tensor")


def _check_same(path: Path, spec: ModelSpec, expected: ModelSpec) -> None:
    for item in fields(ModelSpec):
        got, want = getattr(spec, item.name), getattr(expected, item.name)
        if got != want:
            raise WeightsError(
                f"{path}: not {expected.name}: expected {item.name} {want!r}, got {got!r}"
            )


def _embedded(file: Checkpoint, num_tensors: int) -> ModelSpec:
    """The spec that our own writer put into a safetensors file."""
    try:
        spec = ModelSpec.from_json(parse_json(file.metadata[SPEC_KEY], _MAX_SPEC))
        if spec.num_layers + spec.fusion_layers > num_tensors:
            raise InputError(f"{spec.num_layers} layers in {num_tensors} tensors")
    except (Unreadable, InputError) as error:
        raise WeightsError(f"{file.path}: {SPEC_KEY} is malformed: {error}") from error
    if spec.name in NAMED:
        _check_same(file.path, spec, NAMED[spec.name])
    return spec


def _recognise(
    file: Checkpoint, stored: Mapping[str, StoredTensor], expected: ModelSpec | None
) -> ModelSpec:
    """The spec that shapes and configuration agree on; the released one where there is one."""
    family = _family(stored)
    if family == "v1.1":
        base = RELEASED[_data_source(file, expected)]
    else:
        base = RELEASED["v2-nano" if family == "v2" else family]
    pattern = re.compile(r"s2_backbone\.transformer_encoder\.(?:layers\.)?\d+\.")
    layers = list(dict.fromkeys(m[0] for m in map(pattern.match, stored) if m))
    if not layers:
        raise WeightsError(
            f"{file.path}: expected tensors s2_backbone.transformer_encoder.*, got "
            f"{', '.join(map(named, list(stored)[:3])) or 'none'}: not a TESSERA checkpoint"
        )
    stated = _stated(file, family)
    d_model = _rows(file.path, stored, "s2_backbone.embedding.0.weight")
    last = "dim_reducer.0.weight" if base.reducer == "linear" else "dim_reducer.4.weight"
    out_dim = _rows(file.path, stored, last)
    qk_norm = any(name.startswith(f"{layers[0]}q_") for name in stored)
    num_heads = stated.get("num_heads", base.num_heads)
    if qk_norm:  # its weight has the width of one head
        num_heads = d_model // max(1, _rows(file.path, stored, f"{layers[0]}q_norm.weight"))
    widths = _matryoshka(file, out_dim) if base.matryoshka else ()
    try:
        spec = replace(
            base,
            name=f"{base.name if family == 'v1.1' else family}-custom",
            d_model=d_model,
            num_layers=len(layers),
            num_heads=num_heads,
            ff_dim=_rows(file.path, stored, f"{layers[0]}linear1.weight"),
            out_dim=out_dim,
            saved_dim=min(128, out_dim) if family == "v1.1" else out_dim,
            qk_norm=qk_norm,
            final_norm=stated.get("final_norm", base.final_norm),
            matryoshka=widths,
        )
    except InputError as error:
        raise WeightsError(f"{file.path}: {error}") from error
    for name, value in stated.items():
        if getattr(spec, name) != value:
            raise WeightsError(
                f"{file.path}: the configuration in the file says {name} {shown(value)}, its "
                f"tensors say {getattr(spec, name)}"
            )
    for released in RELEASED.values():
        if replace(spec, name=released.name) == released:
            return released
    return spec


def _family(names: Mapping[str, Any]) -> str:
    """A key of _REPEATED, from hints that survive a missing tensor."""
    if any(name.startswith("fusion_") for name in names):
        return "v2-teacher"
    if any(name.startswith(_PARTS) and name.endswith("_l0") for name in names):
        return "v1.0"
    if any(name.startswith(_PARTS) and ".gru_cell." in name for name in names):
        mlp = any(name.startswith(("dim_reducer.1.", "dim_reducer.4.")) for name in names)
        return "v1.1" if mlp else "v1.0-qat"
    return "v2"


def _data_source(file: Checkpoint, expected: ModelSpec | None) -> str:
    """v1.1-mpc or v1.1-aws: equal shapes, different statistics, so one of them must be stated."""
    asked = expected.name if expected is not None and expected.sampling == "v1.1" else None
    stated = file.config.get("data_source")
    if stated is None and asked is not None:
        return asked
    name = f"v1.1-{stated}"
    if not isinstance(stated, str) or name not in RELEASED:
        raise WeightsError(
            f"{file.path}: v1.1 weights for Planetary Computer and for AWS data have the same "
            f"shapes, and the file does not say which these are: pass model='v1.1-mpc' or "
            f"'v1.1-aws' and this path as weights="
        )
    if asked not in (None, name):
        raise WeightsError(
            f"{file.path}: expected {asked}, the file's data_source is {shown(stated)}"
        )
    return name


def _stated(file: Checkpoint, family: str) -> dict[str, Any]:
    """Spec fields that the file's configuration repeats."""
    stated: dict[str, Any] = {}
    for key, name in _REPEATED[family].items():
        value = file.config.get(key)
        if value is None:
            continue
        flag = name in ("qk_norm", "final_norm")
        if not isinstance(value, int) or (flag and value not in (0, 1)):
            what = "True or False" if flag else "an integer"
            raise WeightsError(
                f"{file.path}: configuration {key}: expected {what}, got {shown(value)}"
            )
        value = bool(value) if flag else value * (4 if key == "latent_dim" else 1)
        if stated.setdefault(name, value) != value:
            raise WeightsError(
                f"{file.path}: configuration {key}: expected {shown(stated[name])} as for the "
                f"other stream, got {shown(value)}"
            )
    return stated


def _matryoshka(file: Checkpoint, out_dim: int) -> tuple[int, ...]:
    """Prefixes of a v2 student: the comma-separated text it was trained with, else the usual."""
    text = file.config.get("matryoshka_dims")
    if text is None:
        return tuple(n for n in RELEASED["v2-nano"].matryoshka if n <= out_dim)
    parts = text.split(",", 64) if isinstance(text, str) else text
    fits = isinstance(parts, list | tuple) and len(parts) <= 64 and all(map(_is_width, parts))
    widths = tuple(sorted({int(n) for n in parts})) if fits else (0,)
    if widths and not 0 < widths[0] <= widths[-1] <= out_dim:
        raise WeightsError(
            f"{file.path}: configuration matryoshka_dims: expected widths of 1..{out_dim}, "
            f"got {shown(text)}"
        )
    return widths


def _is_width(value: Any) -> bool:
    """A whole number, or its text of at most 9 digits."""
    if isinstance(value, str):
        text = value.strip()
        return text.isascii() and text.isdecimal() and len(text) <= 9
    return type(value) is int


def _rows(path: Path, stored: Mapping[str, StoredTensor], name: str) -> int:
    """First dimension of a tensor that a size is taken from."""
    if name not in stored:
        raise WeightsError(f"{path}: {name}: it is missing")
    if not stored[name].shape:
        raise WeightsError(f"{path}: {name}: expected a vector or a matrix, got a scalar")
    return stored[name].shape[0]
