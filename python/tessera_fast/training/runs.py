"""`train` and `distill`: a config to a checkpoint of the official format."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..model.model import Model, load_model
from ..sizes import count
from ..spec import ModelSpec
from ..weights import load_weights
from .config import Config, DistillPart, TwinsPart
from .logbook import Report, Say
from .loop import MODEL, Inputs, Run, ahead, series_of, views_of
from .network import TrainingNetwork
from .objectives import Imitation, Twins
from .processes import Place, joined
from .views import MIX, Batch, Views, random


def train(
    config: Config, *, resume: bool = False, report: Report | None = None, say: Say | None = None
) -> Path:
    """Train a model on views of unlabelled pixels; returns the path of its checkpoint.

    ``report`` gets every row of the log, ``say`` lines on what is done now. Raises InputError for
    tiles or settings that cannot be trained with, StoreError where the output cannot be written or
    a gradient is not finite.
    """
    goal, run = config.objective, config.run
    assert isinstance(goal, TwinsPart)
    with joined(run.device, run.threads) as place:
        network = _network(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            objective = Twins(
                network,
                width=goal.projector_width,
                layers=goal.projector_layers,
                mixup=goal.mixup,
                prefixes=goal.prefixes or (network.spec.saved_dim,),
                weights=goal.weights,
                int8=goal.int8,
            )
        views = views_of(config, network.spec, draws=2)
        state = Run(config, objective, network, place, resume, {"tiles": views.sources})
        _begin(say, place, views, network, state.step)
        numbers = iter(range(state.first, 2**62, place.count))

        def inputs(batch: Batch) -> Inputs:
            rng = random(run.seed, MIX, next(numbers))
            share = torch.tensor(rng.beta(1, 1), dtype=torch.float32, device=place.device)
            order = torch.from_numpy(rng.permutation(run.batch)).to(place.device)
            return [series_of(view, place.device) for view in batch.views], order, share

        batches = views.batches(state.first, place.count)
        state.go(ahead(batches, inputs), 2 * run.batch, report, say)
    return config.out / MODEL


def distill(
    config: Config, *, resume: bool = False, report: Report | None = None, say: Say | None = None
) -> Path:
    """Train a student to give a teacher's embeddings; returns the path of its checkpoint.

    The teacher embeds a pixel with all its dates, as it always does; the student sees a random
    draw of them. Where the teacher's first dimensions stand alone (Matryoshka) and are as many as
    the student's, the student learns the same numbers; else a linear map of every prefix has to
    give all of the teacher's dimensions. ``heads`` of the config decides otherwise. Raises as
    `train` does, and WeightsError for the teacher.
    """
    goal, run = config.objective, config.run
    assert isinstance(goal, DistillPart)
    with joined(run.device, run.threads) as place:
        network = _network(config)
        with load_model(
            config.located(goal.teacher),
            weights=config.located(goal.teacher_weights) if goal.teacher_weights else None,
            device=str(place.device),
            threads=run.threads or None,
        ) as teacher:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(run.seed)
                objective = Imitation(
                    network,
                    teacher_dim=_head_width(goal, network.spec, teacher.spec),
                    prefixes=goal.prefixes,
                    weights=goal.weights,
                    int8=goal.int8,
                )
            views = views_of(config, network.spec, draws=1)
            sources = {"tiles": views.sources, "teacher": {"sha256": teacher.weights.sha256}}
            state = Run(config, objective, network, place, resume, sources)
            _begin(say, place, views, network, state.step)

            def inputs(batch: Batch) -> Inputs:
                embedding = torch.from_numpy(_embedded(teacher, batch)).to(place.device)
                return [series_of(view, place.device) for view in batch.views], embedding

            batches = views.batches(state.first, place.count)
            state.go(ahead(batches, inputs), run.batch, report, say)
    return config.out / MODEL


def _begin(
    say: Say | None, place: Place, views: Views, network: TrainingNetwork, step: int
) -> None:
    """What is about to be done, before the first batch, which may take a while."""
    if say is None or place.rank:
        return
    parameters = sum(p.numel() for p in network.parameters())
    go_on = f"; goes on after step {step}" if step else ""
    say(
        f"{network.spec.name} of {count(parameters)} parameters on {place.device}; "
        f"{views.described()}{go_on}; the first batch is read"
    )


def _network(config: Config) -> TrainingNetwork:
    network = TrainingNetwork(config.spec(), config.run.seed)
    if config.model.init:
        weights = load_weights(config.located(config.model.init))
        alike = replace(weights.spec, name=network.spec.name, matryoshka=network.spec.matryoshka)
        if alike != network.spec:
            raise InputError(
                f"[model] init: expected parameters of {network.spec}, got those of {weights.spec}"
            )
        network.load(weights.tensors)
    return network


def _head_width(goal: DistillPart, student: ModelSpec, teacher: ModelSpec) -> int | None:
    """Width of the heads, None for none."""
    fits = teacher.saved_dim >= max(goal.prefixes)
    if goal.heads == "none" and not fits:
        raise InputError(
            f"[objective] heads: expected linear, as {teacher.name} has {teacher.saved_dim} "
            f"dimensions and the prefixes need {max(goal.prefixes)}"
        )
    alike = fits and bool(teacher.matryoshka) and teacher.saved_dim == student.saved_dim
    if goal.heads == "none" or (goal.heads == "auto" and alike):
        return None
    return teacher.saved_dim


def _embedded(teacher: Model, batch: Batch) -> np.ndarray:
    """The teacher's embeddings of a batch's pixels (B, its width) float32."""
    parts = []
    for part in batch.parts:
        out = np.empty((part.s2_bands.shape[1], teacher.repr_dim), np.float32)
        teacher.encode(part, out)
        parts.append(out)
    return np.concatenate(parts)
