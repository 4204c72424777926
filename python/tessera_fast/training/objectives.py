"""What is minimised, as torch modules around a network: views in, a loss and what to watch out.

B pixels, E width of the embedding: of the output, the leading dimensions that are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import losses
from .network import StreamBatch, TrainingNetwork


@dataclass(frozen=True)
class Outcome:
    """Of one batch: the loss to minimise, its named terms, and outputs for RankMe."""

    loss: Tensor
    terms: dict[str, Tensor]  # detached scalars
    watched: dict[str, Tensor]  # detached (B, width)


class Twins(nn.Module):  # type: ignore[misc] # torch is not read by mypy
    """Barlow Twins of two views and, with ``mixup``, the term of their mixture."""

    def __init__(
        self,
        network: TrainingNetwork,
        *,
        width: int,
        layers: int,
        mixup: bool,
        prefixes: Sequence[int],
        weights: Sequence[float],
        int8: bool,
    ) -> None:
        super().__init__()
        self.network, self._mixup, self._int8 = network, mixup, int8
        self._shares = _shares(prefixes, weights)
        self.projectors = nn.ModuleDict({str(k): _projector(k, width, layers) for k in prefixes})

    def forward(
        self, views: Sequence[tuple[StreamBatch, StreamBatch]], order: Tensor, share: Tensor
    ) -> Outcome:
        """``views``: two of (Sentinel-2, Sentinel-1); ``order`` (B,) and ``share`` () mix them."""
        (s2_a, s1_a), (s2_b, s1_b) = views
        s2, s1 = [s2_a, s2_b], [s1_a, s1_b]
        if self._mixup:
            s2.append(s2_a.mixed(s2_b, order, share))
            s1.append(s1_a.mixed(s1_b, order, share))
        e = self.network(StreamBatch.joined(s2), StreamBatch.joined(s1))[
            :, : self.network.spec.saved_dim
        ]
        if self._int8:
            e = losses.fake_int8(e)
        parts = e.split(len(order))
        main = e.new_zeros(())
        mixed = e.new_zeros(())
        for name, projector in self.projectors.items():
            z = [losses.standardized(projector(p[:, : int(name)]).float()) for p in parts]
            with torch.autocast(e.device.type, enabled=False):
                main = main + self._shares[name] * losses.barlow_twins(z[0], z[1])
                if self._mixup:
                    term = losses.mixup(z[0], z[1], z[2], order, share)
                    mixed = mixed + self._shares[name] * term
        terms = {"main": main.detach()} | ({"mixup": mixed.detach()} if self._mixup else {})
        watched = {"z": z[0].detach(), "embedding": parts[0].detach()}
        return Outcome(main + mixed, terms, watched)


class Imitation(nn.Module):  # type: ignore[misc] # torch is not read by mypy
    """Cosine and mean squared error between prefixes of the student and the teacher.

    ``teacher_dim`` None: to the same prefix of the teacher, so that the embeddings can stand for
    one another; else each prefix goes through a linear map to all of the teacher's dimensions.
    """

    def __init__(
        self,
        network: TrainingNetwork,
        *,
        teacher_dim: int | None,
        prefixes: Sequence[int],
        weights: Sequence[float],
        int8: bool,
    ) -> None:
        super().__init__()
        self.network, self._int8 = network, int8
        self._shares = _shares(prefixes, weights)
        heads = {str(k): nn.Linear(k, teacher_dim) for k in prefixes if teacher_dim}
        self.heads = nn.ModuleDict(heads)

    def forward(self, views: Sequence[tuple[StreamBatch, StreamBatch]], teacher: Tensor) -> Outcome:
        """``views``: one of (Sentinel-2, Sentinel-1); ``teacher`` (B, its width)."""
        e = self.network(*views[0])[:, : self.network.spec.saved_dim]
        if self._int8:
            e = losses.fake_int8(e)
        loss = e.new_zeros(())
        terms = {}
        for name, share in self._shares.items():
            k = int(name)
            guess = self.heads[name](e[:, :k]).float() if self.heads else e[:, :k]
            term = losses.imitation(guess, teacher if self.heads else teacher[:, :k])
            terms[f"at_{k}"] = term.detach()
            loss = loss + share * term
        return Outcome(loss, terms, {"embedding": e.detach()})


def _shares(prefixes: Sequence[int], weights: Sequence[float]) -> dict[str, float]:
    weights = weights or [1.0] * len(prefixes)
    return {str(k): w / sum(weights) for k, w in zip(prefixes, weights, strict=True)}


def _projector(width_in: int, width: int, layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(width_in, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        width_in = width
    return nn.Sequential(*parts, nn.Linear(width_in, width, bias=False))
