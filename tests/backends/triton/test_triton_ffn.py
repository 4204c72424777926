"""The Triton kernels ffn and embed against float64."""

import numpy as np
import pytest
import torch

from oracle import CODE_STEP, EMBED_ROUNDINGS, HIDDEN_ROUNDINGS, OP_RTOL, TF32_RTOL
from tessera_fast.kernels.triton.device import capability
from tessera_fast.kernels.triton.elements import ELEMENTS
from tessera_fast.kernels.triton.embed import embed
from tessera_fast.kernels.triton.ffn import config, ffn, fits
from triton_cases import (
    DEVICE,
    NAMES,
    UNSCALED,
    Guarded,
    Random,
    assert_stored,
    operand,
    prepared,
    stored_rtol,
    strided,
    weight,
    wide,
)


class Block:
    """A feed-forward block and what it should give."""

    def __init__(self, element: str, m: int, d: int, f: int) -> None:
        random = Random(m * d + f)
        kind = ELEMENTS[element]
        self.x = random.normal(m, d, dtype=kind.storage)
        self.w1, self.w2 = prepared(random, f, d, element), prepared(random, d, f, element)
        self.gamma, self.beta = random.normal(d), random.normal(d)
        hidden = (operand(self.x, element) @ weight(self.w1).T + wide(self.w1.bias)).relu()
        chunks = hidden.split(config(d, element, capability(self.x.device)).hidden, dim=1)
        h = torch.cat([operand(chunk, element) for chunk in chunks], 1)
        y = h @ weight(self.w2).T + wide(self.w2.bias) + wide(self.x)
        std = (y.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        z = (y - y.mean(1, keepdim=True)) / std
        self.expected = z * wide(self.gamma) + wide(self.beta)
        # float32 sums; a few hidden values, whose float32 sum lies next to a tie, rounded the other
        # way; on a GPU the roundings of tf32
        w2 = weight(self.w2).abs()
        terms = (h @ w2.T + wide(self.x).abs() + 1).amax(1, keepdim=True)
        one = h.amax(1, keepdim=True) * w2.max()
        inexact = 2 * TF32_RTOL if element == "tf32" and DEVICE == "cuda" else 0.0
        rounding = CODE_STEP.get(element, 2 * stored_rtol(kind.storage))
        off = (OP_RTOL + inexact) * terms + HIDDEN_ROUNDINGS * rounding * one
        self.inner = off / std * wide(self.gamma).abs() + 4 * OP_RTOL * z.abs()


@pytest.mark.parametrize("element", NAMES)
@pytest.mark.parametrize(
    "m, d, f", [(7, 12, 40), (1, 48, 96), (129, 96, 130), (130, 144, 384), (33, 440, 100)]
)
def test_ffn(element: str, m: int, d: int, f: int) -> None:
    block = Block(element, m, d, f)
    storage = ELEMENTS[element].storage
    out = Guarded((m, d), storage, pad=3)
    ffn(strided(block.x, 8), block.w1, block.w2, out.view, block.gamma, block.beta)
    assert_stored(out.values(), block.expected, storage, block.inner)


@pytest.mark.parametrize("element", NAMES)
def test_ffn_over_its_own_input(element: str) -> None:
    block = Block(element, 70, 64, 128)
    storage = ELEMENTS[element].storage
    out = Guarded((70, 64), storage)
    out.view.copy_(block.x)
    ffn(out.view, block.w1, block.w2, out.view, block.gamma, block.beta)
    assert_stored(out.values(), block.expected, storage, block.inner)


@pytest.mark.parametrize("element", NAMES)
def test_bits_of_a_row_do_not_depend_on_the_others(element: str) -> None:
    block = Block(element, 200, 48, 96)
    whole = torch.full((200, 48), torch.nan, device=DEVICE)
    alone = torch.full((1, 48), torch.nan, device=DEVICE)
    ffn(block.x, block.w1, block.w2, whole, block.gamma, block.beta)
    for row in (0, 77, 131, 199):
        ffn(block.x[row : row + 1], block.w1, block.w2, alone, block.gamma, block.beta)
        assert torch.equal(whole[row], alone[0])


def test_which_widths_fit() -> None:
    assert fits(144) and fits(256) and not fits(1024)


BANDS = ("uint16", "int16", "float32")


@pytest.mark.parametrize("element", UNSCALED)
@pytest.mark.parametrize(
    "m, d, c, kind",
    [(7, 12, 2, "int16"), (65, 144, 10, "uint16"), (1, 48, 2, "float32"), (70, 96, 2, "uint16")],
)
def test_embed(element: str, m: int, d: int, c: int, kind: str) -> None:
    _check_embed(element, m, d, c, kind, standardized=False)


@pytest.mark.parametrize("d", [440, 530])
def test_embed_of_wide_rows(d: int) -> None:
    _check_embed("fp16", 33, d, 2, "uint16", standardized=False)


def test_embed_of_standardized_bands() -> None:
    _check_embed("fp32", 33, 64, 10, "float32", standardized=True)


def _check_embed(element: str, m: int, d: int, c: int, kind: str, standardized: bool) -> None:
    random = Random(d + c)
    storage = ELEMENTS[element].storage
    low, high = (0, 65536) if kind == "uint16" else (-32768, 32768)
    raw = random.normal(m, c) if standardized else random.integers(low, high, m, c)
    if kind == "uint16":
        bits = raw.cpu().numpy().astype(np.uint16).view(np.int16)
        bands = torch.from_numpy(bits).to(DEVICE)
    else:
        bands = raw.to(torch.int16 if kind == "int16" else torch.float32)
    orbit = random.integers(0, 2, m, dtype=torch.uint8)
    doy = random.integers(0, 367, m, dtype=torch.int16)
    mean = random.normal(2, c, scale=100.0) + 3000
    std = random.normal(2, c, scale=100.0).abs() + 1500
    w1, w2 = prepared(random, d, c, "fp32"), prepared(random, d, d, element)
    table = random.normal(367, d)
    out = Guarded((m, d), storage, pad=3)
    embed(
        bands,
        orbit,
        doy,
        mean,
        std,
        w1,
        w2,
        table,
        out.view,
        standardized=standardized,
        unsigned=kind == "uint16",
    )

    row = orbit.long().cpu()
    s = raw.cpu().to(torch.float32)
    if not standardized:
        s = (s - mean.cpu()[row]) / (std.cpu()[row] + 1e-9)
    hidden = (wide(s) @ weight(w1).T + wide(w1.bias)).relu()
    h = operand(hidden, element)
    expected = h @ weight(w2).T + wide(w2.bias) + wide(table)[doy.long().cpu()]
    terms = (h @ weight(w2).abs().T).amax(1, keepdim=True) + 4
    one = h.amax(1, keepdim=True) * weight(w2).abs().max()
    inexact = TF32_RTOL if element == "tf32" and DEVICE == "cuda" else 0.0
    inner = (OP_RTOL + inexact) * terms + EMBED_ROUNDINGS * stored_rtol(storage) * one
    assert_stored(out.values(), expected, storage, inner)
