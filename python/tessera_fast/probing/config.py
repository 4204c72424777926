"""A probe as a TOML file: the options of `tessera-fast probe`, paths relative to the file."""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable, InputError
from ..packages import require
from ..suggest import closest
from ..tile.remote import is_url
from ..untrusted import local_path

_PATHS = ("embeddings", "labels", "tiles", "beside", "out")
_OTHERS = (
    "model", "baselines", "task", "head", "split", "block", "per_class", "seeds", "classes",
    "nodata", "name", "extent", "year", "period", "allow_missing_s1", "s1_units",
    "s2_offset", "threads",
)  # fmt: skip


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keywords of `probe`, and ``out``; InputError for an unknown or missing setting."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = require("tomli", "a TOML file", BackendUnavailable, extra="train")
    file = local_path(path, "config")
    try:
        content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file}: expected a TOML file ({error})") from error
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
    text = str(value)
    if not text:
        raise InputError("expected the name of a file or folder, got ''")
    if is_url(text):
        return text
    if text.startswith("@"):  # a list of tiles
        return f"@{folder / Path(text[1:]).expanduser()}"
    return str(folder / Path(text).expanduser())


def _matches(pattern: str) -> list[str]:
    if is_url(pattern) or pattern.startswith("@"):
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise InputError(f"tiles: expected {pattern} to be there, got nothing")
    return found
