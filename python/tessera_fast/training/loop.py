"""The loop of both commands: batches in, AdamW, a log, checkpoints that a run goes on from.

Everything random comes from (seed, number of the batch), so a checkpoint holds parameters,
moments and the step, and a resumed run on the same processor has the same weights to the bit.
"""

import contextlib
import itertools
import json
import math
import pickle
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, StoreError
from ..spec import ModelSpec
from ..untrusted.damage import damaged, first_line
from ..untrusted.readers import parse_json, shown, take, take_or_none, take_whole
from . import losses
from .config import Config, OptimizerPart
from .logbook import Logbook, Report, Row, Say, Waiting
from .network import StreamBatch, TrainingNetwork
from .objectives import Outcome
from .official_format import check_shape, save_official, write_whole
from .processes import Place
from .views import Batch, View, Views

MODEL, STATE = "model.pt", "state.pt"
Inputs = tuple[Any, ...]
Feed = Generator[Inputs, None, None]


class Run:
    """One training run of an objective; its results are in ``config.out``.

    ``sources``: tables of what it learns from, which have to be the same where it goes on.
    """

    def __init__(
        self,
        config: Config,
        objective: Any,
        network: TrainingNetwork,
        place: Place,
        resume: bool,
        sources: dict[str, Any],
    ) -> None:
        check_shape(network.spec)
        self._config, self._place, self._network = config, place, network
        self._sources = sources
        self._objective = objective.to(place.device)
        self._optimizer = torch.optim.AdamW(_groups(objective, config.optimizer))
        self.step = 0
        _prepare(config, resume)
        if resume:
            self._load()
        place.wait()  # for the others to have looked, before there is something to see

    @property
    def first(self) -> int:
        """Number of this process's next batch; it takes every ``place.count``-th."""
        return self.step * self._config.run.accumulate * self._place.count + self._place.rank

    def go(
        self, feed: Feed, views_of_batch: int, report: Report | None, say: Say | None = None
    ) -> None:
        """Do the steps that are left. ``feed``: the objective's arguments, batch by batch.

        ``report`` gets the rows of the log, ``say`` a line where there is none for some seconds.
        """
        inputs: Iterator[Inputs] = feed
        run, place = self._config.run, self._place
        shared = place.share(self._objective)
        shared.train()
        leads = place.rank == 0
        book = Logbook(self._config.out, self.step, run.tensorboard) if leads else None
        try:
            if leads and self.step == 0:  # nothing is written of a run without a first batch
                inputs = itertools.chain([next(feed)], feed)
                self._save()
            started, since = time.perf_counter(), self.step
            waiting = Waiting(self.step, run.steps, say if leads else None)
            for step in range(self.step + 1, run.steps + 1):
                rate = schedule(step, run.steps, self._config.optimizer.warmup)
                outcome, norm = self._update(shared, inputs, rate)
                self.step = step
                if leads and (step % run.save_every == 0 or step == run.steps):
                    self._save()
                    if book:
                        book.write()
                if book and (step % run.log_every == 0 or step == run.steps):
                    now = time.perf_counter()
                    views = views_of_batch * run.accumulate * place.count * (step - since)
                    row: Row = {
                        "step": step,
                        "seconds": now - started,
                        "loss": outcome.loss.item(),
                        **_numbers(outcome),
                        "rate": self._optimizer.param_groups[0]["lr"],
                        "gradient": norm,
                        "views_s": views / (now - started),
                    }
                    book.add(row)
                    if report:
                        report(row)
                    started, since = time.perf_counter(), step
                    waiting.row()
                else:
                    waiting.step(step, outcome.loss.item)
        finally:
            feed.close()
            if book:
                book.close()

    def _update(self, shared: Any, inputs: Iterator[Inputs], rate: float) -> tuple[Outcome, float]:
        """One step of the optimiser; the last outcome and the gradient's norm before clipping."""
        run = self._config.run
        pixels = run.batch * run.accumulate * self._place.count
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * pixels / 256 * rate
        self._optimizer.zero_grad(set_to_none=True)
        for part in range(run.accumulate):
            quiet = self._place.count > 1 and part < run.accumulate - 1
            with shared.no_sync() if quiet else contextlib.nullcontext():
                with torch.autocast(
                    self._place.device.type, torch.bfloat16, enabled=run.precision == "bf16"
                ):
                    outcome: Outcome = shared(*next(inputs))
                (outcome.loss / run.accumulate).backward()
        norm = nn.utils.clip_grad_norm_(self._objective.parameters(), self._config.optimizer.clip)
        if not math.isfinite(norm):
            raise StoreError(
                f"step {self.step + 1}: expected finite gradients, got {float(norm)}; nothing was "
                "saved of this step: use a lower learning rate and resume"
            )
        self._optimizer.step()
        return outcome, float(norm)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "objective": self._objective.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "config": json.dumps(self._settles()),
        }
        save_official(self._config.out / MODEL, self._network.spec, self._network.official())
        write_whole(self._config.out / STATE, lambda f: torch.save(state, f))

    def _settles(self) -> dict[str, Any]:
        """What has to be the same where a run goes on."""
        processes = {"torchrun": {"processes": self._place.count}}
        return self._config.settles() | processes | self._sources

    def _load(self) -> None:
        path = self._config.out / STATE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            step = take_whole(state, "step", 0, 2**53)
            was = parse_json(take(state, "config", str))
            tables = {name: take_or_none(was, name, dict) or {} for name in self._settles()}
        except _damage() as error:
            raise self._no_state(path, error) from error
        for table, wanted in self._settles().items():
            for name, value in wanted.items():
                began = tables[table].get(name)
                if began != value:
                    raise InputError(
                        f"{path}: expected [{table}] {name} = {shown(began)} as the run began, got "
                        f"{value!r}; use another folder for another run"
                    )
        try:
            self._objective.load_state_dict(state["objective"])
            self._optimizer.load_state_dict(state["optimizer"])
        except _damage() as error:
            raise self._no_state(path, error) from error
        self.step = step

    def _no_state(self, path: Path, error: BaseException) -> StoreError:
        return StoreError(f"{path}: expected the state of a run, got {first_line(error)}")


def _damage() -> tuple[type[Exception], ...]:
    """What torch raises for a damaged file, and its modules for a state of other tensors."""
    return (*damaged(), pickle.UnpicklingError)


def views_of(config: Config, spec: ModelSpec, draws: int) -> Views:
    """The batches that a config asks for."""
    from ..tile import open_tile

    run, options = config.run, config.data.tile_options()
    tiles = [open_tile(path, **options) for path in config.tile_paths()]
    return Views(
        tiles,
        spec,
        run.batch,
        draws=draws,
        seed=run.seed,
        min_dates=config.data.min_dates,
        dates=config.data.dates,
        pool_bytes=config.data.pool_mib << 20,
        threads=run.threads or None,
    )


def series_of(view: View, device: torch.device) -> tuple[StreamBatch, StreamBatch]:
    """A view as (Sentinel-2, Sentinel-1) tensors on a device."""
    s2, s2_days, s1, s1_days = (
        torch.from_numpy(a).to(device) for a in (view.s2, view.s2_days, view.s1, view.s1_days)
    )
    return StreamBatch(s2, s2_days), StreamBatch(s1, s1_days)


def ahead(batches: Iterator[Batch], make: Callable[[Batch], Inputs]) -> Feed:
    """``make(batch)`` of every batch, the next one in another thread while one is used."""

    def one() -> Inputs:
        return make(next(batches))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(one)
        while True:
            ready = coming.result()
            coming = pool.submit(one)
            yield ready


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate at ``step`` 1..steps: linear up to 1, then half a cosine."""
    rise = max(1, round(warmup * steps))
    if step <= rise:
        return step / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise + 1)))


def _groups(objective: nn.Module, optimizer: OptimizerPart) -> list[dict[str, Any]]:
    """Matrices, and vectors: biases and gains, which are not decayed."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    rate, decay = optimizer.learning_rate, optimizer.weight_decay
    return [
        {"params": matrices, "base": rate * optimizer.weight_factor, "weight_decay": decay},
        {"params": vectors, "base": rate * optimizer.bias_factor, "weight_decay": 0.0},
    ]


def _numbers(outcome: Outcome) -> Row:
    terms = {name: float(value) for name, value in outcome.terms.items()}
    return terms | {f"rankme_{name}": losses.rankme(x) for name, x in outcome.watched.items()}


def _prepare(config: Config, resume: bool) -> None:
    """The output folder: new or empty, or with a run to go on with."""
    there: list[Path] = [config.out / n for n in (STATE, MODEL) if (config.out / n).exists()]
    if resume and config.out / STATE not in there:
        raise InputError(
            f"{config.out / STATE}: expected a run to resume, got none; leave --resume out"
        )
    if not resume and there:
        raise InputError(
            f"{config.out}: expected no run there, got {there[0].name}; pass --resume to go on, "
            "or use another folder"
        )
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{config.out}: cannot be made: {error.strerror or error}") from error
