"""What training code puts around a model's parameters: outer keys, and prefixes of their names.

A checkpoint of the official trainers has its parameters under a key, beside its configuration.
Wrappers add to the names: DataParallel, DistributedDataParallel and AveragedModel "module.",
torch.compile "_orig_mod.", FSDP and activation checkpoints their own, Lightning the attribute that
the model has in the module. They nest in any order, so all are taken off wherever they stand. Where
a file may mean one of several models, it is refused.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ..untrusted.readers import Unreadable, named
from .unpickle import Opaque, TensorRecord

# Official keys first, then Lightning, DeepSpeed, and averaged weights beside the trained ones.
_STATES = (
    "model",
    "encoder_state_dict",
    "model_state",
    "model_state_dict",
    "state_dict",
    "module",
    "model_ema",
    "ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "state_dict_ema",
    "ema_model",
    "averaged_model",
    "swa_model",
)
_CONFIGS = ("args", "arch", "config", "hyper_parameters")
_DEPTH = 3  # of keys around a state dict or a configuration

# Parts of a name that a wrapper adds. No parameter of TESSERA has one of them in its name.
_WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
# Attributes that usually hold the one model of a training module.
_HOLDERS = frozenset({"model", "net", "network", "backbone", "encoder"})
_COUNTER = "n_averaged"  # of AveragedModel: not a parameter
_OFFICIAL = re.compile(
    r"(?:s[12]_backbone|dim_reducer|fusion_transformer|fusion_modality_embed)(?:\.|$)"
)
_MAX_NAME = 500  # characters of a parameter's name; official ones take up to 70

T = TypeVar("T")


def state_of(content: Any) -> dict[str, Any]:
    """The state dict in a torch file, itself or under a known key.

    Raises Unreadable where there is none, or more than one.
    """
    if not isinstance(content, dict):
        raise Unreadable(f"expected a dict, got {type(content).__name__}")
    states = _states(content, "", _DEPTH, set())
    if len(states) == 1:
        return next(iter(states.values()))
    if states:
        raise Unreadable(
            f"it holds parameters under {' and '.join(states)}, and these may be different "
            f"models; save the one you mean alone"
        )
    found = ", ".join(repr(named(key)) for key in list(content)[:5] if isinstance(key, str))
    known = ", ".join(_STATES[:6])
    raise Unreadable(f"expected a dict of tensors under one of {known}, got keys {found or None}")


def _states(
    content: dict[Any, Any], place: str, depth: int, seen: set[int]
) -> dict[str, dict[str, Any]]:
    """State dicts below ``content`` by the keys that lead to them; each dict is visited once."""
    seen.add(id(content))
    found: dict[str, dict[str, Any]] = {}
    for key in _STATES if depth else ():
        inner = content.get(key)
        if isinstance(inner, dict) and id(inner) not in seen:
            found |= _states(inner, f"{place}{key}.", depth - 1, seen)
    if not found and any(isinstance(value, TensorRecord) for value in content.values()):
        return {place.rstrip("."): content}
    return found


def config_of(content: Any) -> dict[str, Any]:
    """The configuration beside or around the state dict: of several, the first and outermost."""
    waiting = [(content, 0)]
    while waiting:
        holder, depth = waiting.pop(0)
        for key in _CONFIGS:
            config = holder.get(key)
            if isinstance(config, Opaque):  # argparse.Namespace: its state is its attributes
                config = config.state
            if isinstance(config, dict):
                inner = any(isinstance(config.get(name), dict | Opaque) for name in _CONFIGS)
                if not inner or depth == _DEPTH:
                    return config
                waiting.append((config, depth + 1))
        if depth < _DEPTH:
            inners = (holder.get(key) for key in _STATES)
            waiting += [(inner, depth + 1) for inner in inners if isinstance(inner, dict)]
    return {}


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """``tensors`` by official names.

    Raises Unreadable for two that get one name, for several models, and for a prefix that is not
    known to hold the model that is meant.
    """
    plain: dict[str, tuple[str, T]] = {}
    for original, tensor in tensors.items():
        if len(original) > _MAX_NAME:
            raise Unreadable(f"a parameter with a name of {len(original)} characters")
        name = ".".join(part for part in original.split(".") if part not in _WRAPPERS)
        if name in plain:
            raise Unreadable(
                f"{named(plain[name][0])} and {named(original)} are one parameter, with and "
                f"without a wrapper; save the one that you mean"
            )
        if name != _COUNTER:
            plain[name] = original, tensor
    prefix = _prefix(plain)
    return {
        name.removeprefix(prefix): tensor
        for name, (_, tensor) in plain.items()
        if name.startswith(prefix)
    }


def _prefix(names: Mapping[str, Any]) -> str:
    """What stands before the official names, "" for nothing."""
    prefixes: dict[str, str] = {}  # -> a name that shows it
    for name in names:
        start = 0
        while not (part := _OFFICIAL.match(name, start)) and (dot := name.find(".", start)) >= 0:
            start = dot + 1
        if part:
            prefixes.setdefault(name[:start], name)
    if len(prefixes) > 1:
        shown = " and ".join(named(name) for name in list(prefixes.values())[:3])
        raise Unreadable(
            f"it holds several models, as {shown} show; save the one that you mean alone"
        )
    prefix = next(iter(prefixes), "")
    if not all(part in _HOLDERS for part in prefix.split(".")[:-1]):
        raise Unreadable(
            f"its parameters have the unknown prefix {named(prefix)} as in "
            f"{named(prefixes[prefix])}; if that is the model you mean, save them without it: "
            f"{{k.removeprefix({named(prefix)!r}): v for k, v in state.items()}}"
        )
    return prefix
