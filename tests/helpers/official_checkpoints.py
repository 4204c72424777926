"""Checkpoint files in the layouts that the official trainers write, from seeded parameters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera_fast.spec import ModelSpec, variant
from tessera_fast.weights.untrained import untrained

MINI = {
    "v2": variant(
        "v2-nano",
        name="v2-custom",
        d_model=48,
        num_layers=2,
        ff_dim=40,
        out_dim=24,
        saved_dim=24,
        matryoshka=(8, 24),
    ),
    "v2-qk": variant(
        "v2-nano", name="v2-custom", d_model=48, num_layers=3, ff_dim=80, qk_norm=True
    ),
    "v2-teacher": variant(
        "v2-teacher",
        name="v2-teacher-custom",
        d_model=96,
        num_layers=2,
        ff_dim=200,
        out_dim=64,
        saved_dim=64,
    ),
    "v1.1": variant(
        "v1.1-aws", name="v1.1-aws-custom", d_model=64, ff_dim=96, out_dim=16, saved_dim=16
    ),
    "v1.0-qat": variant(
        "v1.0-qat",
        name="v1.0-qat-custom",
        d_model=32,
        num_layers=2,
        ff_dim=24,
        out_dim=8,
        saved_dim=8,
    ),
    "v1.0": variant(
        "v1.0", name="v1.0-custom", d_model=32, num_layers=3, ff_dim=24, out_dim=8, saved_dim=8
    ),
}


def arrays(spec: ModelSpec, seed: int = 3) -> dict[str, np.ndarray]:
    return dict(untrained(spec, seed))


def payload(spec: ModelSpec, tensors: dict[str, Any]) -> dict[str, Any]:
    """What torch.save gets: the outer keys of the family, and what else such a file carries."""
    torch = pytest.importorskip("torch")
    state = {
        name: torch.from_numpy(t) if isinstance(t, np.ndarray) else t for name, t in tensors.items()
    }
    sizes = {
        "repr_dim": spec.out_dim,
        "latent_dim": spec.d_model // 4,
        "num_layers": spec.num_layers,
        "nhead": spec.num_heads,
        "dim_feedforward": spec.ff_dim,
    }
    if spec.fusion_layers:
        return {"encoder_state_dict": state, "arch": {**sizes, "final_layernorm": True}}
    if spec.sampling == "v2":
        args = {
            **sizes,
            "max_seq_len": 256,
            "enable_qk_norm": spec.qk_norm,
            "matryoshka_dims": ",".join(map(str, spec.matryoshka)),
        }
        return {"model": state, "args": args}
    wrapped = {f"_orig_mod.{name}": t for name, t in state.items()}
    wrapped["_orig_mod.projector.net.0.weight"] = torch.ones(3, 2)
    wrapped["_orig_mod.projector.net.1.num_batches_tracked"] = torch.tensor(7)
    optimizer = {"state": {0: {"step": 4, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    outer = {"epoch": 3, "optimizer_state": [optimizer], "config": {"batch_size": 8}}
    if spec.sampling == "v1.0":
        return {**outer, "model_state_dict": wrapped}
    config = {
        "latent_dim": spec.d_model // 4,
        "representation_dim": spec.out_dim,
        "data_source": spec.name.split("-")[1],
        "s2_num_heads": spec.num_heads,
        "s1_num_heads": spec.num_heads,
        "s2_num_layers": spec.num_layers,
        "s1_num_layers": spec.num_layers,
        "s2_dim_feedforward": spec.ff_dim,
        "s1_dim_feedforward": spec.ff_dim,
        "num_obs_checkpoints": [8, 16],
    }
    return {**outer, "model_state": wrapped, "config": config}


def save(path: Path, content: Any, **options: Any) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(content, path, **options)
    return path


def save_model(path: Path, spec: ModelSpec, tensors: dict[str, Any] | None = None) -> Path:
    """An official-style .pt of a spec; ``tensors`` may be numpy arrays or torch tensors."""
    return save(path, payload(spec, arrays(spec) if tensors is None else tensors))
