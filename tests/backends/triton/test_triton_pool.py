"""pool, pool_steps and finish (kernels/triton) against float64 and tessera_fast.quantize."""

import numpy as np
import pytest
import torch

import tessera_fast as tf
from oracle import OP_RTOL, POOL_RTOL
from tessera_fast.reference import ops
from triton_cases import DEVICE, UNSCALED, Guarded, Random

from tessera_fast.kernels.triton.elements import ELEMENTS  # isort: skip
from tessera_fast.kernels.triton.pool import pool, pool_steps  # isort: skip
from tessera_fast.kernels.triton.quantize import finish  # isort: skip

LENGTHS = (1, 8, 0, 9, 64, 65, 0, 255)
WIDTHS = (48, 144, 440)


def offsets_of(lengths) -> torch.Tensor:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return torch.from_numpy(offsets).to(torch.int32).to(DEVICE)


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().to(torch.float64)


def assert_within(got: torch.Tensor, expected: torch.Tensor, rtol: float) -> None:
    assert got.isfinite().all()
    worst = ((got - expected).abs().max() / expected.abs().max()).item()
    assert worst <= rtol, f"relative error {worst:.2e} > {rtol:.2e}"


class Pooled:
    def __init__(self, lengths, width: int, element: str) -> None:
        random, self.dtype, self.lengths = Random(width), ELEMENTS[element].storage, lengths
        self.width = width
        self.x = random.normal(sum(lengths), width, dtype=self.dtype)
        self.query = random.normal(width, scale=width**-0.5)
        self.query_bias = random.normal(1)
        self.multiplicity = random.integers(1, 9, sum(lengths), dtype=torch.int16)
        self.constant = random.normal(width)

    def run(self, pixel: int | None = None) -> torch.Tensor:
        mine, lengths = slice(None), self.lengths
        if pixel is not None:
            mine = slice(sum(lengths[:pixel]), sum(lengths[: pixel + 1]))
            lengths = [lengths[pixel]]
        out = Guarded((len(lengths), self.width), self.dtype, pad=self.width)
        pool(
            self.x[mine].clone(),
            self.query,
            self.query_bias,
            offsets_of(lengths),
            self.multiplicity[mine].clone(),
            self.constant,
            out.view,
        )
        return out.values()

    def expected(self) -> torch.Tensor:
        w = {"query.weight": wide(self.query)[None], "query.bias": wide(self.query_bias)}
        rows, first = [], 0
        for n in self.lengths:
            x = wide(self.x)[None, first : first + n]
            bias = wide(self.multiplicity)[None, first : first + n].log()
            rows.append(ops.pool(x, x, w, bias)[0] if n else wide(self.constant))
            first += n
        return torch.stack(rows)


@pytest.mark.parametrize("element", UNSCALED)
@pytest.mark.parametrize("width", WIDTHS)
def test_pool(width, element):
    case = Pooled(LENGTHS, width, element)
    assert_within(case.run(), case.expected(), POOL_RTOL[element])


@pytest.mark.parametrize("width", [640, 4096])
def test_pool_of_wide_models(width):
    case = Pooled((3, 9, 0), width, "fp32")
    assert_within(case.run(), case.expected(), POOL_RTOL["fp32"])


def test_pool_without_multiplicities_counts_every_token_once():
    case = Pooled((3, 40), 64, "fp32")
    case.multiplicity.fill_(1)
    out = Guarded((2, 64), torch.float32)
    pool(
        case.x, case.query, case.query_bias, offsets_of(case.lengths), None, case.constant, out.view
    )
    assert torch.equal(out.values(), case.run())


@pytest.mark.parametrize("element", ["fp32", "fp16"])
def test_a_pixel_alone_pools_as_in_company(element):
    case = Pooled((5, 0, 70, 16, 3), 144, element)
    together = case.run()
    for pixel in range(5):
        assert torch.equal(case.run(pixel)[0], together[pixel])


@pytest.mark.parametrize("element", UNSCALED)
@pytest.mark.parametrize("width", [48, 768])
def test_pool_steps(width, element):
    """Steps name the pixel's own tokens, some twice, some never; a pixel may have no step."""
    random, dtype = Random(width), ELEMENTS[element].storage
    lengths, counts = (3, 0, 1, 70), (8, 0, 8, 100)
    x = random.normal(sum(lengths), width, dtype=dtype)
    steps = [
        random.integers(0, n, s, dtype=torch.int32)
        for n, s in zip(lengths, counts, strict=True)
        if n
    ]
    logits, constant = random.normal(sum(counts), scale=3.0), random.normal(width)
    out = Guarded((4, width), dtype, pad=width)
    pool_steps(
        x, logits, torch.cat(steps), offsets_of(counts), offsets_of(lengths), constant, out.view
    )
    expected = torch.stack([wide(constant)] * 4)
    for pixel, (n, own) in enumerate(zip((0, 2, 3), steps, strict=True)):
        first, start = (0, 3, 4)[pixel], (0, 8, 16)[pixel]
        weights = torch.softmax(wide(logits)[start : start + len(own)], 0)
        expected[n] = weights @ wide(x)[first + own.cpu().to(torch.int64)]
    assert_within(out.values(), expected, POOL_RTOL[element])


def run_finish(y, valid, kept: int, **options) -> torch.Tensor:
    out = Guarded((len(y), kept), torch.float32)
    finish(y, valid, out.view, **options)
    return out.values()


def run_codes(y, valid, kept: int, **options) -> tuple[np.ndarray, np.ndarray]:
    codes = Guarded((len(y), kept), torch.int8)
    scales = Guarded((len(y), 1), torch.float32)
    finish(y, valid, (codes.view, scales.view[:, 0]), **options)
    return codes.values().to(torch.int8).numpy(), scales.values()[:, 0].to(torch.float32).numpy()


@pytest.mark.parametrize(("width", "kept"), [(128, 128), (192, 128), (128, 16), (1024, 1024)])
def test_final_norm_is_over_all_columns(width, kept):
    random = Random(width)
    y = random.normal(21, width, scale=5.0) + 3
    valid = random.integers(0, 4, 21, dtype=torch.uint8)
    got = run_finish(y, valid, kept, final_norm=True)
    expected = ops.layer_norm(wide(y))[:, :kept]
    seen = valid.cpu() != 0
    assert seen.any() and not seen.all()
    assert got[~seen].isnan().all()
    assert_within(got[seen], expected[seen], OP_RTOL)


@pytest.mark.parametrize(("width", "kept"), [(128, 128), (192, 128), (5, 3), (1024, 1024)])
@pytest.mark.parametrize("floors", [(1e-12, 0.0), (0.0, 1e-8)])
@pytest.mark.parametrize("final_norm", [False, True])
def test_codes_are_those_of_quantize_bit_for_bit(width, kept, floors, final_norm):
    random = Random(7)
    y = random.normal(39, width, scale=10.0)
    y[1:4] *= torch.tensor([1e-9, 1e-13, 1e6], device=DEVICE)[:, None]
    y[4] = 0
    y[5, kept - 1] = float("nan")
    steps = torch.arange(width, device=DEVICE) % 255 - 127  # halves of a scale of exactly 1
    y[6] = steps.clamp(-126, 126) + 0.5
    y[6, 0] = 127
    valid = torch.ones(39, dtype=torch.uint8, device=DEVICE)
    valid[8] = 0
    absmax_floor, scale_floor = floors
    values = run_finish(y, valid, kept, final_norm=final_norm).numpy()
    assert np.isnan(values[8]).all()
    expected = tf.quantize(values, absmax_floor=absmax_floor, scale_floor=scale_floor)
    codes, scales = run_codes(
        y, valid, kept, final_norm=final_norm, absmax_floor=absmax_floor, scale_floor=scale_floor
    )
    assert np.array_equal(codes, expected.codes)
    assert np.array_equal(scales.view(np.uint32), expected.scales.view(np.uint32))
    assert np.isinf(scales[[5, 8]]).all() and np.isfinite(scales[[0, 4, 6]]).all()


def test_a_row_alone_finishes_as_in_company():
    y, valid = Random(8).normal(20, 128), torch.ones(20, dtype=torch.uint8, device=DEVICE)
    together = run_finish(y, valid, 128, final_norm=True)
    for row in (0, 7, 19):
        alone = run_finish(y[row : row + 1].clone(), valid[:1], 128, final_norm=True)
        assert torch.equal(alone[0], together[row])
