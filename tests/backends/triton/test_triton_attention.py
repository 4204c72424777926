"""attention and attention_block (kernels/triton) against float64, and alone against in company."""

import itertools
import math

import pytest
import torch

from oracle import ATTENTION_RTOL, BLOCK_RTOL, PEAKED
from tessera_fast.reference import ops
from triton_cases import DEVICE, UNSCALED, Guarded, Random

from tessera_fast.kernels.triton.attention import attention  # isort: skip
from tessera_fast.kernels.triton.attention_block import attention_block  # isort: skip
from tessera_fast.kernels.triton.elements import ELEMENTS, prepare  # isort: skip

LENGTHS = (1, 8, 0, 9, 63, 64, 65, 0)
LONG = (128, 129, 255, 256)
# (heads, head width) of the released models, fewer heads where that changes nothing, and odd ones.
HEADS = [(4, 36), (1, 64), (1, 110), (1, 160), (1, 192), (1, 128), (3, 12), (1, 16), (2, 24)]


def offsets_of(lengths) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def multiplicities(random: Random, lengths) -> torch.Tensor:
    return random.integers(1, 9, sum(lengths), dtype=torch.int16)


def attended(qkv: torch.Tensor, lengths, multiplicity, heads: int) -> torch.Tensor:
    """float64 [N, D] of float64 qkv [N, 3D], pixel by pixel."""
    rows, first = [], 0
    for n in lengths:
        q, k, v = (
            ops.split_heads(part[None], heads) for part in qkv[first : first + n].chunk(3, -1)
        )
        bias = multiplicity[first : first + n].to(torch.float64).log()[None]
        rows.append(ops.attention(q, k, v, bias)[0])
        first += n
    return torch.cat(rows)


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().to(torch.float64)


def assert_within(got: torch.Tensor, expected: torch.Tensor, rtol: float) -> None:
    assert got.shape == expected.shape
    assert got.isfinite().all()
    worst = ((got - expected).abs().max() / expected.abs().max()).item()
    assert worst <= rtol, f"relative error {worst:.2e} > {rtol:.2e}"


@pytest.mark.parametrize("element", UNSCALED)
@pytest.mark.parametrize(("heads", "head_width"), HEADS)
def test_attention(heads, head_width, element):
    lengths = LENGTHS
    if element == ("fp32" if head_width == 16 else "fp16"):
        lengths += LONG
    random, dtype = Random(head_width), ELEMENTS[element].storage
    width = heads * head_width
    qkv = random.normal(sum(lengths), 3 * width, dtype=dtype)
    multiplicity = multiplicities(random, lengths)
    out = Guarded((sum(lengths), width), dtype)
    attention(qkv, offsets_of(lengths), multiplicity, out.view, heads, element)
    expected = attended(wide(qkv), lengths, multiplicity.cpu(), heads)
    assert_within(out.values(), expected, ATTENTION_RTOL[element])


@pytest.mark.parametrize("element", ["fp32", "fp16"])
def test_peaked_attention(element):
    """Logits of some hundreds: no overflow, and the weights of far keys vanish."""
    random, dtype = Random(1), ELEMENTS[element].storage
    qkv = random.normal(70, 3 * 32, scale=6.0, dtype=dtype)
    multiplicity = multiplicities(random, [70])
    out = Guarded((70, 32), dtype)
    attention(qkv, offsets_of([70]), multiplicity, out.view, 2, element)
    assert_within(
        out.values(),
        attended(wide(qkv), [70], multiplicity.cpu(), 2),
        PEAKED * ATTENTION_RTOL[element],
    )


def test_multiplicity_is_the_padded_sequence():
    random = Random(2)
    qkv = random.normal(9, 3 * 48)
    multiplicity = multiplicities(random, [9])
    out = Guarded((9, 48), torch.float32)
    attention(qkv, offsets_of([9]), multiplicity, out.view, 4, "fp32")
    padded = wide(qkv).repeat_interleave(multiplicity.cpu().to(torch.int64), 0)
    ones = torch.ones(len(padded))
    first = multiplicity.cpu().to(torch.int64).cumsum(0) - multiplicity.cpu()
    assert_within(
        out.values(), attended(padded, [len(padded)], ones, 4)[first], ATTENTION_RTOL["fp32"]
    )


@pytest.mark.parametrize(("heads", "head_width"), [(4, 16), (1, 1024)])
def test_two_tokens_a_pixel_without_multiplicities(heads, head_width):
    """The fusion layers of the teacher."""
    random, width = Random(3), heads * head_width
    qkv = random.normal(6, 3 * width)
    out = Guarded((6, width), torch.float32)
    attention(qkv, offsets_of([2] * 3), None, out.view, heads, "fp32", longest=2)
    assert_within(
        out.values(), attended(wide(qkv), [2] * 3, torch.ones(6), heads), ATTENTION_RTOL["fp32"]
    )


def test_longest_spares_a_launch_and_no_pixel():
    random = Random(4)
    qkv = random.normal(64 + 3, 3 * 32)
    results = []
    for longest in (64, 256):
        out = Guarded((67, 32), torch.float32)
        attention(qkv, offsets_of([64, 3]), None, out.view, 2, "fp32", longest)
        results.append(out.values())
    assert torch.equal(*results)


def test_no_pixels():
    out = Guarded((0, 32), torch.float32)
    empty = torch.empty(0, 96, device=DEVICE)
    attention(empty, offsets_of([]), None, out.view, 2, "fp32")
    assert out.values().shape == (0, 32)


@pytest.mark.parametrize("element", ["fp32", "fp16"])
def test_a_pixel_alone_equals_the_same_pixel_in_company(element):
    lengths, heads, width = (5, 70, 16, 64, 3), 2, 72
    random, dtype = Random(5), ELEMENTS[element].storage
    qkv = random.normal(sum(lengths), 3 * width, dtype=dtype)
    multiplicity = multiplicities(random, lengths)
    offsets = offsets_of(lengths)
    out = Guarded((sum(lengths), width), dtype)
    attention(qkv, offsets, multiplicity, out.view, heads, element)
    together = out.values()
    for p, n in enumerate(lengths):
        mine = slice(offsets[p], offsets[p + 1])
        alone = Guarded((n, width), dtype)
        attention(
            qkv[mine].clone(),
            offsets_of([n]),
            multiplicity[mine].clone(),
            alone.view,
            heads,
            element,
            longest=n,
        )
        assert torch.equal(alone.values(), together[mine])


class Block:
    """Random parameters and inputs of one attention block."""

    def __init__(self, lengths, heads: int, width: int, element: str) -> None:
        random, self.heads, self.lengths = Random(width), heads, lengths
        self.element, self.dtype = element, ELEMENTS[element].storage
        std = 1 / math.sqrt(width)
        self.wqkv = prepare(
            random.normal(3 * width, width, scale=2 * std), random.normal(3 * width), element
        )
        self.wout = prepare(random.normal(width, width, scale=std), random.normal(width), element)
        self.gamma, self.beta = random.normal(width), random.normal(width)
        self.x = random.normal(sum(lengths), width, dtype=self.dtype)
        self.multiplicity = multiplicities(random, lengths)

    def run(self, pixel: int | None = None) -> torch.Tensor:
        """float64 [N, D] of all pixels, or of one alone."""
        mine, lengths = slice(None), self.lengths
        if pixel is not None:
            mine = slice(sum(lengths[:pixel]), sum(lengths[: pixel + 1]))
            lengths = [lengths[pixel]]
        x = self.x[mine].clone()
        out = Guarded(x.shape, self.dtype)
        attention_block(
            x,
            self.wqkv,
            self.wout,
            self.gamma,
            self.beta,
            offsets_of(lengths),
            self.multiplicity[mine].clone(),
            out.view,
            self.heads,
            max(lengths),
        )
        return out.values()

    def expected(self) -> torch.Tensor:
        x = wide(self.x)
        qkv = ops.linear(x, wide(self.wqkv.weight), wide(self.wqkv.bias))
        o = attended(qkv, self.lengths, self.multiplicity.cpu(), self.heads)
        y = x + ops.linear(o, wide(self.wout.weight), wide(self.wout.bias))
        return ops.layer_norm(y, wide(self.gamma), wide(self.beta))


@pytest.mark.parametrize("element", UNSCALED)
@pytest.mark.parametrize(
    ("heads", "width"), [(4, 144), (4, 256), (4, 48), (4, 64), (4, 96), (2, 200), (1, 24)]
)
def test_attention_block(heads, width, element):
    lengths = (1, 0, 17, 64) if element == "fp32" else (9, 0, 33)
    if element == "fp16" and width != 256:
        lengths += (65,)
    if width == 24:
        lengths += LONG
    block = Block(lengths, heads, width, element)
    assert_within(block.run(), block.expected(), BLOCK_RTOL[element])


@pytest.mark.parametrize("element", ["fp32", "fp16"])
def test_a_pixel_alone_goes_through_the_block_as_in_company(element):
    block = Block((5, 70, 0, 16, 3), 2, 72, element)
    together = block.run()
    first = 0
    for pixel, n in enumerate(block.lengths):
        assert torch.equal(block.run(pixel), together[first : first + n])
        first += n
