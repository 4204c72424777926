"""Config files of short training runs, and the tiles that they name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tessera_fast.synthetic import synthetic_tile, write_tile

MODEL = {
    "base": "v2-nano",
    "d_model": 16,
    "num_layers": 1,
    "num_heads": 2,
    "ff_dim": 16,
    "out_dim": 32,
}
TWINS = {"projector_width": 24, "projector_layers": 2}
RUN = {"out": "run", "steps": 6, "batch": 12, "log_every": 1, "save_every": 2, "threads": 1}


def two_tiles(folder: Path) -> Path:
    """tile_1 and tile_2 in ``folder``."""
    for seed in (1, 2):
        write_tile(synthetic_tile(6, 8, seed=seed), folder / f"tile_{seed}")
    return folder


def writer(tiles: Path, folder: Path) -> Callable[..., Path]:
    """What writes a config file; its keywords are tables, added to those above."""

    def make(objective: Any = None, name: str = "config.toml", **tables: Any) -> Path:
        content: dict[str, Any] = {
            "model": MODEL,
            "data": {"tiles": [str(tiles / "tile_*")], "min_dates": 5},
            "objective": TWINS if objective is None else objective,
            "optimizer": {"learning_rate": 0.2},
            "run": RUN,
        }
        for table, values in tables.items():
            content[table] = {**content[table], **values}
        lines = []
        for table, values in content.items():
            lines.append(f"[{table}]")
            lines += [f"{key} = {toml(value)}" for key, value in values.items()]
        path = folder / name
        path.write_text("\n".join(lines))
        return path

    return make


def toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
