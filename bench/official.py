"""The official code as a contender: builds its models from our tensors out of a given checkout.

A checkout of ucam-eo/tessera is read, never changed or copied; it needs torch.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tessera_fast.spec import ModelSpec
from tessera_fast.weights import Weights

V1_1 = Path("tessera_infer_QAT", "src")


def _module(folder: Path, stem: str) -> ModuleType:
    """Import ``folder/stem.py`` under a name of its own, with ``folder`` on the path."""
    path = folder / f"{stem}.py"
    if not path.exists():
        raise SystemExit(f"--official: expected a checkout of ucam-eo/tessera, {path} is missing")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    spec.loader.exec_module(module)
    return module


def build(checkout: Path, weights: Weights) -> Any:
    """The official torch module with our weights, in evaluation."""
    import torch

    spec = weights.spec
    if spec.sampling == "v1.1":
        infer = _module(checkout / V1_1, "infer_v1_1")
        model = infer.build_v1_1_inference_model(_v1_1_config(spec), torch.device("cpu"))
    elif spec.sampling == "v2":
        sizes = {
            "repr_dim": spec.out_dim,
            "latent_dim": spec.d_model // 4,
            "num_layers": spec.num_layers,
            "nhead": spec.num_heads,
            "dim_feedforward": spec.ff_dim,
        }
        models = _module(checkout / _v2_folder(spec), "model")
        if spec.pre_norm:
            model = models.TesseraTeacher2B(**sizes)
        else:
            model = models.PixelStudent(**sizes, enable_qk_norm=spec.qk_norm)
    else:
        raise SystemExit(
            f"{spec.name}: the official code draws dates unseeded, nothing can be compared"
        )
    names = spec.parameter_shapes()
    state = {name: torch.from_numpy(np.array(weights.tensors[name])) for name in names}
    model.load_state_dict(state)
    return model.eval()


def _v2_folder(spec: ModelSpec) -> Path:
    return Path("tessera_infer_v2", "teacher" if spec.pre_norm else "student")


def _v1_1_config(spec: ModelSpec) -> dict[str, Any]:
    config = {
        "latent_dim": spec.d_model // 4,
        "representation_dim": spec.out_dim,
        "fusion_method": "concat",
        "data_source": spec.name.removeprefix("v1.1-"),
        "num_obs_checkpoints": list(range(8, 257, 8)),
    }
    for stream in ("s2", "s1"):
        config |= {f"{stream}_num_heads": spec.num_heads, f"{stream}_num_layers": spec.num_layers}
        config[f"{stream}_dim_feedforward"] = spec.ff_dim
    return config


def load(checkout: Path, weights: Weights, tile: Path, batch: int) -> Callable[[], np.ndarray]:
    """A function that embeds ``tile`` (a folder) with the official code on the CPU: (H, W, E)."""
    spec, model = weights.spec, build(checkout, weights)
    if spec.sampling == "v2":
        return _v2(_module(checkout / _v2_folder(spec), "infer"), model, tile, batch)
    return _v1_1(_module(checkout / V1_1, "infer_v1_1"), spec, model, tile, batch)


def _v2(infer: ModuleType, model: Any, tile: Path, batch: int) -> Callable[[], np.ndarray]:
    import torch

    def read(name: str) -> np.ndarray | None:
        path = tile / f"{name}.npy"
        return np.load(path) if path.exists() else None

    def run() -> np.ndarray:
        bands = read("bands")
        assert bands is not None
        sar = {
            f"s1_{short}_{what}": read(f"sar_{long}ending{suffix}")
            for short, long in (("asc", "asc"), ("desc", "desc"))
            for what, suffix in (("bands", ""), ("doys", "_doy"))
        }
        out: np.ndarray = infer.encode_tile(
            model,
            bands.astype(np.float32),
            read("doys"),
            s2_masks=read("masks"),
            **sar,
            batch_pixels=batch,
            device=torch.device("cpu"),
        )
        return out

    return run


def _v1_1(
    infer: ModuleType, spec: ModelSpec, model: Any, tile: Path, batch: int
) -> Callable[[], np.ndarray]:
    import torch
    from torch.utils.data import DataLoader

    config = _v1_1_config(spec)

    def run() -> np.ndarray:
        data = infer.SingleTileInferenceDatasetV1_1(tile_path=str(tile), config=config)
        sampler = infer.BucketBatchSampler(data, batch_size=batch)
        out = np.zeros((data.H, data.W, spec.saved_dim), np.float32)
        with torch.no_grad():
            for part in DataLoader(data, batch_sampler=sampler, collate_fn=infer._collate):
                values = model(part["s2"], part["s1"])[:, : spec.saved_dim]
                out[part["i"].numpy(), part["j"].numpy()] = values.numpy()
        return out

    return run
