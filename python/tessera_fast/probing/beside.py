"""What stands beside the embeddings: other embeddings, and baselines made of the tiles."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import backends
from ..backends.base import RunOptions
from ..errors import InputError
from ..model.model import Model, load_model
from ..spec import NAMED
from ..tile import Tile, expand, open_tile, period_of_year
from ..untrusted.suggest import one_of
from ..weights import load_weights, untrained_weights
from . import raw
from .evaluate import COMMONEST
from .images import Features, Image, open_features

RAW = ("statistics", "months")  # of the observations
BASELINES = ("untrained", *RAW)


@dataclass(frozen=True)
class Asked:
    """What is to stand beside the embeddings; the fields are arguments of `probe`."""

    beside: Mapping[str, Any]
    baselines: Sequence[str]
    tiles: Any
    model: str | os.PathLike[str] | None
    opening: Mapping[str, Any]  # how the tiles are opened: keywords of `open_tile`
    threads: int | None


def all_features(
    ours: Features, title: str, asked: Asked
) -> tuple[dict[str, list[Image]], list[str]]:
    """Images of every kind of features, ours first; and notes of what could not be had."""
    baselines, tiles = asked.baselines, asked.tiles
    for baseline in baselines:
        one_of("baselines", baseline, BASELINES)
    kinds, notes = {title: ours.images}, []
    for name, source in asked.beside.items():
        others = open_features(source).images
        if name in (*kinds, *BASELINES, COMMONEST):
            raise InputError(f"beside: expected names that are not taken, got {name!r}")
        sizes = [[(i.height, i.width) for i in found] for found in (ours.images, others)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"beside {name!r}: expected images of {sizes[0]} pixels, got {sizes[1]}"
            )
        kinds[name] = others
    if tiles is None:
        if baselines:
            notes.append(f"{', '.join(baselines)}: not computed; give the tiles")
        return kinds, notes
    given = [tiles] if isinstance(tiles, str | os.PathLike | Tile | Mapping) else list(tiles)
    sources = [s for t in given for s in (expand(t) if isinstance(t, str | os.PathLike) else [t])]
    opened = [open_tile(s, **asked.opening) for s in sources]
    _check_period(ours, opened)
    of_images = raw.matched(opened, ours.images)
    for name in baselines:
        if name == "untrained":
            if ours.provenance.get("trained") is False:
                notes.append("untrained: these embeddings are")
                continue
            network = _untrained(ours, asked.model, asked.threads)
            if network is None:
                notes.append("untrained: not computed; give the model")
                continue
            with network:
                kinds[name] = [raw.in_memory(raw.embedded(t, network)) for t in of_images]
        else:
            make = raw.statistics if name == "statistics" else raw.months
            kinds[name] = [raw.in_memory(make(t)) for t in of_images]
    return kinds, notes


def _check_period(ours: Features, tiles: Sequence[Tile]) -> None:
    """InputError if the embeddings are of another part of the year than the tiles."""
    recorded = ours.provenance.get("period")
    for tile in tiles:
        own = period_of_year(tile.period)
        if recorded is not None and own != recorded:
            raise InputError(
                f"tile {tile.name}: expected the period of the embeddings, {recorded}, got "
                f"{own or 'a calendar year'}; give that period (--period), or baselines are of "
                "other dates"
            )


def _untrained(
    ours: Features, model: str | os.PathLike[str] | None, threads: int | None
) -> Model | None:
    """The architecture of the embeddings with seeded random weights; None if it is not known."""
    known = model if model is not None else ours.provenance.get("model")
    if known in NAMED:
        return load_model(str(known), weights="untrained", threads=threads)
    if model is None:
        return None
    weights = untrained_weights(load_weights(model).spec)
    plan = RunOptions("auto", None, threads)
    name, encoder = backends.load("auto", weights.spec, weights, plan)
    return Model(weights, name, encoder, plan)
