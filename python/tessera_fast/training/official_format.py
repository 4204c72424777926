"""Checkpoints as the official trainers write them: the official code reads them, and so do we."""

import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import InputError, StoreError
from ..spec import ModelSpec
from ..weights.checkpoint import Checkpoint, StoredTensor
from ..weights.recognise import match
from ..weights.unpickle import Storage, TensorRecord
from ..weights.wrappers import config_of, state_of


def official(spec: ModelSpec, state: dict[str, Any]) -> dict[str, Any]:
    """The outer keys and the configuration of the family; ``state`` by official names."""
    sizes = {
        "repr_dim": spec.out_dim,
        "latent_dim": spec.d_model // 4,
        "num_layers": spec.num_layers,
        "nhead": spec.num_heads,
        "dim_feedforward": spec.ff_dim,
    }
    if spec.fusion_layers:
        return {
            "encoder_state_dict": state,
            "arch": {**sizes, "final_layernorm": spec.final_norm},
        }
    if spec.sampling == "v2":
        args = {
            **sizes,
            "max_seq_len": 256,
            "matryoshka_dims": ",".join(map(str, spec.matryoshka)),
            "enable_qk_norm": spec.qk_norm,
        }
        return {"model": state, "args": args}
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    config: dict[str, Any] = {
        "latent_dim": spec.d_model // 4,
        "representation_dim": spec.out_dim,
        "fusion_method": "concat",
    }
    for stream in ("s2", "s1"):
        config |= {f"{stream}_num_heads": spec.num_heads, f"{stream}_num_layers": spec.num_layers}
        config[f"{stream}_dim_feedforward"] = spec.ff_dim
    if spec.sampling == "v1.1":
        config["data_source"] = "aws" if spec.name.startswith("v1.1-aws") else "mpc"
        config["num_obs_checkpoints"] = list(range(8, 257, 8))
        return {"model_state": wrapped, "config": config}
    return {"model_state_dict": wrapped, "config": config}


def save_official(path: Path, spec: ModelSpec, state: dict[str, Tensor]) -> None:
    """Write a checkpoint, whole or not at all, over one that is there."""
    copy = {name: tensor.detach().cpu().float().clone() for name, tensor in state.items()}
    write_whole(path, lambda f: torch.save(official(spec, copy), f))


def check_shape(spec: ModelSpec) -> None:
    """InputError unless a checkpoint of ``spec`` is recognised as that: formats hold few sizes."""
    storage = Storage("torch.FloatStorage", "0")
    shapes = spec.parameter_shapes().items()
    records = {name: TensorRecord(storage, 0, shape, (1,) * len(shape)) for name, shape in shapes}
    content = official(spec, records)
    state, config = state_of(content), config_of(content)
    stored = {n: StoredTensor("<f4", t.shape, t.strides, 0, None) for n, t in state.items()}
    found = match(Checkpoint(Path("model.pt"), stored, config))[0]
    if replace(found, name=spec.name) != spec:
        raise InputError(
            f"[model]: a checkpoint of the official format cannot hold these sizes of "
            f"{spec.name}: it would be read as {found}"
        )


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file that appears whole or not at all; StoreError if it cannot be written."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            with partial.open("xb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        # torch's zip writer raises a RuntimeError of its own in place of the file's OSError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise StoreError(f"{path}: cannot be written: {cause.strerror or cause}") from error
