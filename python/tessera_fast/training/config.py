"""What a run is asked to do: a TOML file, checked whole before anything is read or computed."""

import glob
import json
import math
import os
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..spec import ModelSpec, variant
from ..untrusted.readers import Unreadable, local_path, parse_json, read_toml
from ..untrusted.suggest import closest, one_of
from .views import DATES


@dataclass(frozen=True)
class ModelPart:
    """[model]: a released shape, with other sizes where they are given (0: the shape's own)."""

    base: str = "v2-nano"
    init: str = ""  # a checkpoint of this shape to start from; "": random parameters
    d_model: int = 0
    num_layers: int = 0
    num_heads: int = 0
    ff_dim: int = 0
    out_dim: int = 0

    def spec(self, prefixes: tuple[int, ...] = ()) -> ModelSpec:
        """The shape, as a checkpoint of it would be recognised; InputError if sizes disagree.

        ``prefixes`` are trained to stand alone: a v2 student's checkpoint records them.
        """
        names = ("d_model", "num_layers", "num_heads", "ff_dim", "out_dim")
        sizes: dict[str, Any] = {n: getattr(self, n) for n in names if getattr(self, n)}
        released = variant(self.base)
        if released.matryoshka:
            whole = sizes.get("out_dim", released.out_dim)
            # those that are too wide are refused by name later, with the rest of [objective]
            sizes["matryoshka"] = tuple(sorted({*(n for n in prefixes if 0 < n < whole), whole}))
        if not sizes:
            return released
        out_dim = sizes.get("out_dim", released.out_dim)
        v1_1 = released.sampling == "v1.1"
        return variant(
            self.base,
            **sizes,
            name=f"{self.base}-custom",
            saved_dim=min(128, out_dim) if v1_1 else out_dim,
        )


@dataclass(frozen=True)
class DataPart:
    """[data]: paths or patterns of tiles, relative to the file; what of them is drawn."""

    tiles: tuple[str, ...]  # or URLs
    min_dates: int = 20
    dates: tuple[int, ...] = (40,)  # of each stream in a view; or the least and the most
    period: str = ""  # the next three: as `embed` takes them
    s1_units: str = ""
    s2_offset: str = "removed"
    pool_mib: int = 1024  # raw observations in memory at once

    def tile_options(self) -> dict[str, Any]:
        """The keywords of `open_tile`."""
        number = self.s2_offset.removeprefix("-").isdecimal()
        return {
            "period": self.period or None,
            "s1_units": self.s1_units or None,
            "s2_offset": int(self.s2_offset) if number else self.s2_offset,
        }


@dataclass(frozen=True)
class TwinsPart:
    """[objective] of `train`: Barlow Twins with the mixup term."""

    projector_width: int = 4096
    projector_layers: int = 3
    mixup: bool = True
    prefixes: tuple[int, ...] = ()  # of the embedding, each with a projector; (): the whole alone
    weights: tuple[float, ...] = ()  # of the prefixes; (): equal
    int8: bool = False  # the embedding as int8 would give it back (QAT)


@dataclass(frozen=True)
class DistillPart:
    """[objective] of `distill`: a teacher's embeddings at prefixes."""

    teacher: str  # a released name or a checkpoint
    teacher_weights: str = ""
    prefixes: tuple[int, ...] = (16, 32, 64, 128)
    weights: tuple[float, ...] = ()
    heads: str = "auto"  # "none": the same prefix; "linear": a map to the whole; see `distill`
    int8: bool = False


@dataclass(frozen=True)
class OptimizerPart:
    """[optimizer]: AdamW, linear warm-up, cosine. Rates are for 256 pixels a step and scale."""

    learning_rate: float = 0.002
    weight_factor: float = 0.2
    bias_factor: float = 0.0048  # biases and norms
    weight_decay: float = 1e-6
    warmup: float = 0.1  # share of the steps
    clip: float = 2.0  # largest norm of the gradient


@dataclass(frozen=True)
class RunPart:
    """[run]: where to, how long, on what."""

    out: str
    steps: int
    batch: int = 256  # pixels of a process before the gradients are summed up
    accumulate: int = 1
    seed: int = 0
    precision: str = "fp32"  # or "bf16": mixed, with float32 parameters and losses
    device: str = "auto"
    threads: int = 0  # of torch and the packer; 0: as they choose
    log_every: int = 20
    save_every: int = 200
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    """A checked file."""

    folder: Path  # of the file: what its paths are relative to
    model: ModelPart
    data: DataPart
    objective: TwinsPart | DistillPart
    run: RunPart
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)

    @property
    def out(self) -> Path:
        return self.folder / self.run.out

    def spec(self) -> ModelSpec:
        """The model that is trained; InputError if its sizes disagree."""
        return self.model.spec(self.objective.prefixes)

    def tile_paths(self) -> list[str]:
        """The tiles that the patterns name, each once; InputError for a pattern without any."""
        found: dict[str, None] = {}
        for pattern in self.data.tiles:
            if "://" in pattern:
                found[pattern] = None
                continue
            matches = sorted(glob.glob(os.path.join(glob.escape(str(self.folder)), pattern)))
            if not matches:
                raise InputError(f"[data] tiles: expected tiles at {pattern!r}, found none")
            found |= dict.fromkeys(matches)
        return list(found)

    def located(self, name: str) -> str:
        """A checkpoint's path beside the file, or a name as it is."""
        path = self.folder / name
        return str(path) if path.exists() else name

    def settles(self) -> dict[str, Any]:
        """What the result depends on: a run is resumed with the same."""
        parts = {n: asdict(getattr(self, n)) for n in ("model", "data", "objective", "optimizer")}
        free = ("out", "device", "threads", "log_every", "save_every", "tensorboard")
        run = {k: v for k, v in asdict(self.run).items() if k not in free}
        return parse_json(json.dumps({**parts, "run": run}))


def read_config(path: str | Path, objective: type[TwinsPart] | type[DistillPart]) -> Config:
    """Read and check a file; InputError says which setting is unknown, missing or impossible."""
    path = local_path(path, "config")
    try:
        content = read_toml(path)
    except (OSError, Unreadable) as error:
        raise InputError(f"{path}: expected a TOML file, got {error}") from error
    kinds: dict[str, Any] = {
        "model": ModelPart,
        "data": DataPart,
        "objective": objective,
        "optimizer": OptimizerPart,
        "run": RunPart,
    }
    unknown = [name for name in content if name not in kinds]
    if unknown:
        near = closest(unknown[0], kinds)
        raise InputError(f"{path}: expected tables {', '.join(kinds)}, got {unknown[0]!r}.{near}")
    for name, kind in kinds.items():  # before what is missing, which a wrong name may have been for
        _check_names(f"{path}: [{name}]", kind, content.get(name, {}))
    parts = {n: _part(f"{path}: [{n}]", kind, content.get(n, {})) for n, kind in kinds.items()}
    config = Config(path.resolve().parent, **parts)
    _check(path, config)
    return config


def _check_names(where: str, kind: type[Any], table: Any) -> None:
    """InputError for a table that is none, or has a setting that its dataclass has not."""
    if not isinstance(table, dict):
        raise InputError(f"{where}: expected a table, got {table!r}")
    known = [item.name for item in fields(kind)]
    for name in table:
        if name not in known:
            near = closest(name, known)
            raise InputError(f"{where}: expected one of {', '.join(known)}, got {name!r}.{near}")


def _part(where: str, kind: type[Any], table: dict[str, Any]) -> Any:
    """A table as its dataclass."""
    known = {item.name: item for item in fields(kind)}
    values = {}
    for name, item in known.items():
        if name in table:
            values[name] = _value(f"{where} {name}", item.type, table[name])
        elif item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{where} {name}: it is missing")
    return kind(**values)


def _value(where: str, kind: Any, value: Any) -> Any:
    """``kind`` is one of the annotations above."""
    inner = {tuple[str, ...]: str, tuple[int, ...]: int, tuple[float, ...]: float}.get(kind)
    if inner is not None:
        values = [value] if isinstance(value, (str, int, float)) else value
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: expected a list, got {value!r}")
        return tuple(_value(where, inner, v) for v in values)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, got {value!r}")
    return value


def _check(path: Path, config: Config) -> None:
    spec, run, optimizer, goal = config.spec(), config.run, config.optimizer, config.objective
    least: dict[str, tuple[float, float]] = {
        "[run] steps": (run.steps, 1),
        "[run] accumulate": (run.accumulate, 1),
        "[run] batch": (run.batch, 2),
        "[run] threads": (run.threads, 0),
        "[run] log_every": (run.log_every, 1),
        "[run] save_every": (run.save_every, 1),
        "[data] min_dates": (config.data.min_dates, 1),
        "[data] pool_mib": (config.data.pool_mib, 1),
        "[optimizer] weight_decay": (optimizer.weight_decay, 0),
        "[optimizer] weight_factor": (optimizer.weight_factor, 0),
        "[optimizer] bias_factor": (optimizer.bias_factor, 0),
    }
    for what, names in (("[run] out", [run.out]), ("[data] tiles", config.data.tiles)):
        for name in names:
            local_path(name, f"{path}: {what}")
    if isinstance(goal, TwinsPart):
        least["[objective] projector_width"] = goal.projector_width, 2
        least["[objective] projector_layers"] = goal.projector_layers, 1
    for name, (number, lowest) in least.items():
        if not lowest <= number < math.inf:
            raise InputError(f"{path}: {name}: expected {lowest} or more, got {number}")
    for name in ("learning_rate", "clip"):
        number = getattr(optimizer, name)
        if not 0 < number < math.inf:
            raise InputError(f"{path}: [optimizer] {name}: expected more than 0, got {number}")
    if not 0 <= optimizer.warmup < 1:
        raise InputError(f"{path}: [optimizer] warmup: expected 0 to 1, got {optimizer.warmup}")
    one_of(f"{path}: [run] precision", run.precision, ("fp32", "bf16"))
    dates = config.data.dates
    if len(dates) > 2 or not all(0 < n <= DATES for n in dates):
        raise InputError(
            f"{path}: [data] dates: expected a number of 1..{DATES}, or the least and the most, "
            f"got {list(dates)}"
        )
    if not 0 <= run.seed < 2**63:
        raise InputError(f"{path}: [run] seed: expected 0..2^63 - 1, got {run.seed}")
    bad = [k for k in goal.prefixes if not 0 < k <= spec.saved_dim]
    if bad or len(set(goal.prefixes)) < len(goal.prefixes):
        raise InputError(
            f"{path}: [objective] prefixes: expected different numbers of 1..{spec.saved_dim} "
            f"dimensions, got {list(goal.prefixes)}"
        )
    if goal.prefixes and max(goal.prefixes) < spec.saved_dim:
        raise InputError(
            f"{path}: [objective] prefixes: expected the whole, {spec.saved_dim}, among them, got "
            f"{list(goal.prefixes)}: no loss would see the other dimensions"
        )
    if goal.weights and (min(goal.weights) < 0 or not 0 < sum(goal.weights) < math.inf):
        raise InputError(
            f"{path}: [objective] weights: expected numbers of 0 or more, not all 0, got "
            f"{list(goal.weights)}"
        )
    if goal.weights and len(goal.weights) != len(goal.prefixes):
        raise InputError(
            f"{path}: [objective] weights: expected one for each of {len(goal.prefixes)} prefixes, "
            f"got {len(goal.weights)}"
        )
    if isinstance(goal, DistillPart):
        one_of(f"{path}: [objective] heads", goal.heads, ("auto", "none", "linear"))
