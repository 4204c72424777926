"""The recurrent pooling of v1.x (kernels/triton/gru.py) against the reference's float64 GRUs."""

import itertools

import numpy as np
import pytest
import torch

from oracle import GRU_RTOL
from tessera_fast.reference import ops
from triton_cases import DEVICE, UNSCALED, Guarded, Random

from tessera_fast.kernels.triton.elements import ELEMENTS, prepare  # isort: skip
from tessera_fast.kernels.triton.gru import Scratch, gru, scratch_sizes  # isort: skip

KINDS = ("custom_gru", "torch_gru")
TOKENS, STEPS = (3, 5, 0, 1, 9, 2), (7, 5, 0, 4, 9, 3)


def starts(counts) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().to(torch.float64)


class Case:
    """A random cell and sequences; x are the encoder's tokens."""

    def __init__(self, kind: str, width: int, element: str, counts=STEPS) -> None:
        random, self.kind, self.width, self.element = Random(width), kind, width, element
        self.tokens, self.counts = TOKENS, counts
        std = 1.5 / width**0.5

        def weight(rows: int) -> torch.Tensor:
            return prepare(random.normal(rows, width, scale=std), None, element).weight

        self.input, self.recurrent = weight(3 * width), weight(3 * width)
        self.bias = random.normal(3 * width)
        self.recurrent_bias = random.normal(3 * width)  # torch only
        self.query, self.query_bias = random.normal(width, scale=std), random.normal(1)
        self.norm = None
        if kind == "custom_gru":
            self.norm = random.normal(width), random.normal(width)
        self.x = random.normal(sum(self.tokens), width, dtype=ELEMENTS[element].storage)
        self.steps = [
            random.integers(0, max(n, 1), s, dtype=torch.int32)
            for n, s in zip(self.tokens, counts, strict=True)
        ]
        inputs = ops.linear(wide(self.x), wide(self.input), wide(self.bias))
        self.inputs = inputs.to(ELEMENTS[element].storage).to(DEVICE)

    def run(self, pixels=tuple(range(6))) -> list[torch.Tensor]:
        """float64 logits of every pixel named."""
        d, counts = self.width, [self.counts[p] for p in pixels]
        first = starts(self.tokens)
        inputs = torch.cat([self.inputs[first[p] : first[p + 1]] for p in pixels])
        order = np.argsort([-c for c in counts], kind="stable").astype(np.int32)
        active = [sum(c > t for c in counts) for t in range(max(counts))]
        scratch = Scratch(
            **{
                name: torch.full(shape, float("nan"), dtype=dtype, device=DEVICE)
                for name, (shape, dtype) in scratch_sizes(len(counts), d, self.element).items()
            }
        )
        if self.kind == "custom_gru":
            recurrent = [
                prepare(self.recurrent[: 2 * d], None, self.element),
                prepare(self.recurrent[2 * d :], None, self.element),
            ]
        else:
            recurrent = [prepare(self.recurrent, self.recurrent_bias, self.element)]
        logits = Guarded((sum(counts), 1), torch.float32)
        step_offsets = starts(counts)
        token_offsets = starts([self.tokens[p] for p in pixels])
        gru(
            self.kind,
            inputs,
            recurrent,
            self.norm,
            self.query,
            self.query_bias,
            torch.cat([self.steps[p] for p in pixels]),
            torch.tensor(step_offsets, device=DEVICE),
            torch.tensor(token_offsets, device=DEVICE),
            torch.tensor(order, device=DEVICE),
            active,
            scratch,
            logits.view[:, 0],
        )
        values = logits.values()[:, 0]
        return [values[a:b] for a, b in itertools.pairwise(step_offsets)]

    def expected(self) -> list[torch.Tensor]:
        d, first, w = self.width, starts(self.tokens), {}
        if self.kind == "custom_gru":
            for i, gate in enumerate("rzh"):
                rows = slice(i * d, (i + 1) * d)
                w[f"W_i{gate}.weight"] = wide(self.input)[rows]
                w[f"W_h{gate}.weight"] = wide(self.recurrent)[rows]
                w[f"b_{gate}"] = wide(self.bias)[rows]
        else:
            w = {
                "weight_ih_l0": wide(self.input),
                "bias_ih_l0": wide(self.bias),
                "weight_hh_l0": wide(self.recurrent),
                "bias_hh_l0": wide(self.recurrent_bias),
            }
        logits = []
        for p, steps in enumerate(self.steps):
            if len(steps) == 0:
                logits.append(torch.empty(0, dtype=torch.float64))
                continue
            x = wide(self.x)[first[p] + steps.cpu().to(torch.int64)][None]
            states = (ops.custom_gru if self.kind == "custom_gru" else ops.torch_gru)(x, w)
            if self.norm is not None:
                states = ops.layer_norm(states, *map(wide, self.norm))
            logits.append((states @ wide(self.query) + wide(self.query_bias))[0])
        return logits


@pytest.mark.parametrize("element", UNSCALED)
@pytest.mark.parametrize("width", [48, 144])
@pytest.mark.parametrize("kind", KINDS)
def test_gru(kind, width, element):
    case = Case(kind, width, element)
    got, expected = torch.cat(case.run()), torch.cat(case.expected())
    assert got.isfinite().all()
    worst = ((got - expected).abs().max() / expected.abs().max()).item()
    assert worst <= GRU_RTOL[element], f"relative error {worst:.2e} > {GRU_RTOL[element]:.2e}"


@pytest.mark.parametrize("kind", KINDS)
def test_many_steps(kind):
    """Rounding does not build up; 256 steps are the most there are, and slow to interpret."""
    case = Case(kind, 48, "fp32", (8, 256 if DEVICE == "cuda" else 40, 0, 1, 2, 20))
    got, expected = torch.cat(case.run()), torch.cat(case.expected())
    assert ((got - expected).abs().max() / expected.abs().max()).item() <= GRU_RTOL["fp32"]


@pytest.mark.parametrize("element", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_alone_equals_the_same_pixel_in_company(kind, element):
    case = Case(kind, 80, element)
    together = case.run()
    for p in (1, 3):
        assert torch.equal(case.run([p])[0], together[p])
    some = case.run([5, 4, 2])
    assert torch.equal(some[0], together[5]) and torch.equal(some[1], together[4])


@pytest.mark.parametrize("kind", KINDS)
def test_no_pixel_has_a_step(kind):
    case = Case(kind, 48, "fp32", (0,) * 6)
    assert all(len(logits) == 0 for logits in case.run())
