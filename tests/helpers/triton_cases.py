"""What the tests of the Triton kernels share: where they run, random tensors, guarded outputs.

On a GPU they run compiled on "cuda". Elsewhere they need TRITON_INTERPRET=1, set before triton is
imported, and run as numpy on CPU tensors.
"""

from collections.abc import Sequence

import pytest
import torch

pytest.importorskip("triton", reason="the GPU kernels need triton")

from mended_interpreter import install
from oracle import STORED_RTOL
from tessera_fast.kernels.triton.device import INTERPRETED
from tessera_fast.kernels.triton.elements import ELEMENTS, LARGEST, Linear, prepare

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no CUDA device, and TRITON_INTERPRET is not set", allow_module_level=True)

if INTERPRETED:
    install()
DEVICE = "cpu" if INTERPRETED else "cuda"
GUARD = 3  # rows before and behind an output


def _multiplies(element: str) -> bool:
    if INTERPRETED:
        return element != "tf32"  # is fp32 there
    return element != "fp8" or torch.cuda.get_device_capability() >= (8, 9)


NAMES = [name for name in ELEMENTS if _multiplies(name)]  # the elements that run here
UNSCALED = [name for name in NAMES if not ELEMENTS[name].scaled]


def stored_rtol(dtype: torch.dtype) -> float:
    """What rounding to ``dtype`` may change of a value."""
    return STORED_RTOL[str(dtype).removeprefix("torch.")]


class Random:
    """Reproducible tensors on DEVICE, drawn in float32 and rounded to ``dtype``."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(
        self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        values = torch.randn(shape, generator=self._generator) * scale
        return values.to(dtype).to(DEVICE)

    def integers(
        self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64
    ) -> torch.Tensor:
        """``low`` .. ``high`` - 1."""
        values = torch.randint(low, high, shape, generator=self._generator)
        return values.to(dtype).to(DEVICE)


class Guarded:
    """An output [M, N] of row stride >= N whose surroundings must stay as they are."""

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, *, pad: int = 0, fill: float | None = None
    ) -> None:
        """``pad``: unowned columns behind every row. ``fill``: NaN, or 77 of integers."""
        rows, columns = shape
        if fill is None:
            fill = float("nan") if dtype.is_floating_point else 77
        self._buffer = torch.full((rows + 2 * GUARD, columns + pad), fill, dtype=dtype).to(DEVICE)
        self.view = self._buffer[GUARD : GUARD + rows, :columns]
        self._before = self._buffer.clone()

    def values(self) -> torch.Tensor:
        """The output in float64 on the CPU, after a look at what surrounds it."""
        after, before = self._buffer.cpu().clone(), self._before.cpu().clone()
        rows, columns = self.view.shape
        for buffer in (after, before):
            buffer[GUARD : GUARD + rows, :columns] = 0
        untouched = torch.equal(after.view(torch.uint8), before.view(torch.uint8))
        assert untouched, "written outside the output"
        return self.view.cpu().to(torch.float64)


def strided(x: torch.Tensor, extra: int) -> torch.Tensor:
    """``x`` as a view whose rows lie ``extra`` NaN elements further apart than they are long."""
    buffer = x.new_full((x.shape[0], x.shape[1] + extra), float("nan"))
    buffer[:, : x.shape[1]] = x
    return buffer[:, : x.shape[1]]


def weight(w: Linear) -> torch.Tensor:
    """The matrix that a Linear stands for, float64 on the CPU."""
    matrix = w.weight.cpu().to(torch.float32).to(torch.float64)
    return matrix if w.scale is None else matrix * w.scale.cpu().to(torch.float64)[:, None]


def wide(x: torch.Tensor | None) -> torch.Tensor | float:
    """float64 on the CPU; nothing is 0."""
    return 0.0 if x is None else x.cpu().to(torch.float64)


def operand(x: torch.Tensor, element: str) -> torch.Tensor:
    """Rows as a product of the element reads them, codes times scale, float64 on the CPU."""
    kind = ELEMENTS[element]
    x = x.cpu().to(torch.float32)
    if not kind.scaled:
        return x.to(kind.storage).to(torch.float64)
    top = LARGEST[kind.operand]
    largest = x.abs().amax(1, keepdim=True).clamp_min(1e-30)
    # not top / largest, which torch computes as top * (1 / largest)
    codes = x * (torch.full_like(largest, top) / largest)
    codes = torch.round(codes) if kind.operand == torch.int8 else codes.to(kind.operand)
    return codes.to(torch.float64) * (largest.to(torch.float64) / top)


def prepared(random: Random, n: int, k: int, element: str) -> Linear:
    """A random Linear [n, k] with bias, prepared on the CPU."""
    made = prepare(random.normal(n, k, scale=k**-0.5).cpu(), random.normal(n).cpu(), element)
    return Linear(*(t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in made))


def assert_stored(
    got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, inner: torch.Tensor | float
) -> None:
    """One rounding to ``dtype``, and ``inner``: what the steps before it may be off."""
    assert torch.isfinite(got).all()
    error = (got - expected).abs() - stored_rtol(dtype) * expected.abs() - inner
    assert error.max() <= 0, f"beyond the tolerance by {float(error.max()):.2e}"
