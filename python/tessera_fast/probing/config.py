"""A probe as a TOML file: the options of `tessera-fast probe`, paths relative to the file."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..tile.remote import is_url
from ..untrusted.readers import Unreadable, local_path, read_toml, shown
from ..untrusted.suggest import closest

_PATHS = ("embeddings", "labels", "tiles", "beside", "out")
_OTHERS = (
    "model",
    "baselines",
    "task",
    "head",
    "split",
    "block",
    "per_class",
    "seeds",
    "classes",
    "nodata",
    "name",
    "extent",
    "year",
    "period",
    "allow_missing_s1",
    "s1_units",
    "s2_offset",
    "threads",
)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keywords of `probe`, and ``out``; InputError for an unknown or missing setting."""
    file = local_path(path, "config")
    try:
        content = read_toml(file)
    except (OSError, Unreadable) as error:
        raise InputError(f"{file}: expected a TOML file, got {error}") from error
    known = (*_PATHS, *_OTHERS)
    for name in content:
        if name not in known:
            near = closest(name, known)
            raise InputError(f"{file}: expected {', '.join(known)}, got {name!r}.{near}")
    if "embeddings" not in content:
        raise InputError(f'{file}: expected embeddings = "...", got none')
    folder = file.resolve().parent
    for name in _PATHS:
        if name in content:
            try:
                content[name] = _placed(folder, content[name])
            except InputError as error:
                raise InputError(f"{file}: {name}: {error}") from None
    if "tiles" in content:
        given = content["tiles"]
        patterns = [given] if isinstance(given, str) else given
        if not isinstance(patterns, list):
            raise InputError(f"{file}: tiles: expected a path or a list, got {shown(given)}")
        content["tiles"] = [t for pattern in patterns for t in _matches(pattern)]
    split = content.get("split")
    if isinstance(split, str) and Path(split).suffix:  # groups, in a file
        content["split"] = _placed(folder, split)
    model = content.get("model")
    if isinstance(model, str) and Path(model).suffix in (".pt", ".pth", ".safetensors"):
        content["model"] = _placed(folder, model)
    return content


def _placed(folder: Path, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _placed(folder, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_placed(folder, v) for v in value]
    if not isinstance(value, str):
        raise InputError(f"config: expected paths as text, got {shown(value)}")
    if is_url(value):
        return value
    if value.startswith("@"):  # a list of tiles
        return f"@{folder / local_path(value[1:])}"
    return str(folder / local_path(value))


def _matches(pattern: str) -> list[str]:
    if is_url(pattern) or pattern.startswith("@"):
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise InputError(f"tiles: expected {pattern} to be there, got nothing")
    return found
