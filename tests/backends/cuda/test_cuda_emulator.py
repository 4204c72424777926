"""The emulator that runs CUDA kernels on the CPU: it computes what CUDA defines, and reports or
shows what CUDA leaves undefined."""

from collections.abc import Iterator

import numpy as np
import pytest

from emulated_orders import ORDERS

_cuda_emulated = pytest.importorskip(
    "tessera_fast._cuda_emulated", reason="the emulator is built with TESSERA_TEST_ISAS=ON"
)
emulator = _cuda_emulated.emulator
BLOCKS, THREADS = 3, 128


@pytest.fixture(params=ORDERS, ids=lambda order: f"{order[0]}{order[1] or ''}")
def order(request: pytest.FixtureRequest) -> Iterator[str]:
    emulator.set_order(*request.param)
    yield request.param[0]
    emulator.set_order("forward")


def reverse(fault: str, threads: int = THREADS) -> np.ndarray:
    out = np.full((BLOCKS, threads), -7, np.int32)
    emulator.reverse(out.ctypes.data, BLOCKS, threads, fault)
    return out


def expected(threads: int = THREADS) -> np.ndarray:
    return np.broadcast_to(np.arange(threads, dtype=np.int32)[::-1], (BLOCKS, threads))


@pytest.mark.parametrize("threads", (1, 32, 40, 1024))
def test_correct_kernel(order: str, threads: int) -> None:
    assert np.array_equal(reverse("none", threads), expected(threads))


@pytest.mark.parametrize("fault", ("no_barrier", "no_copy_wait", "unwritten", "unwritten_static"))
def test_race_changes_the_result(order: str, fault: str) -> None:
    assert not np.array_equal(reverse(fault), expected())


@pytest.mark.parametrize("fault", ("unwritten", "unwritten_static"))
def test_shared_memory_is_poisoned_between_blocks(fault: str) -> None:
    """0xFF bytes, NaN as a float, also where the block before left its values."""
    assert (reverse(fault)[1:] == -1).all()


@pytest.mark.parametrize(
    ("fault", "message"),
    (
        ("part_barrier", r"64 of 128 threads wait at __syncthreads, 64 have exited"),
        ("overrun", r"wrote 0 bytes after the end of the 512 bytes"),
        ("underrun", r"before shared memory"),
        ("divergent", r"other lanes of the warp are in"),
        ("missing_lane", r"31 of 32 lanes are in __syncwarp"),
        ("foreign_lane", r"outside its mask"),
        (
            "misaligned_copy",
            r"reverse_kernel, block \(0, 0, 0\): thread \d+, cp.async to: expected an address that "
            r"is a multiple of 16, got 0x[0-9a-f]+, byte \d+ of shared memory",
        ),
        ("misaligned_matrix", r"reverse_kernel.* ldmatrix: .*0x[0-9a-f]+8, byte 8 of shared"),
    ),
)
def test_error_is_reported(order: str, fault: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        reverse(fault)
    assert np.array_equal(reverse("none"), expected())  # and the next kernel runs


def test_refusals() -> None:
    with pytest.raises(RuntimeError, match="1025 threads"):
        reverse("none", 1025)
    with pytest.raises(RuntimeError, match="expected forward, reverse or random"):
        emulator.set_order("sideways")


def test_warp_functions(order: str) -> None:
    out = np.full((11, 32), -7, np.int32)
    emulator.warp_functions(out.ctypes.data)
    lane = np.arange(32)
    thirds = sum(1 << i for i in range(0, 32, 3))
    rows = [
        np.full(32, 15),
        np.where(lane < 3, lane, lane - 3),
        np.where(lane > 28, lane, lane + 3),
        lane ^ 9,
        lane ^ 2,
        np.full(32, thirds - (thirds >> 31 << 32)),
        np.zeros(32),
        np.ones(32),
        np.full(32, 31 * 16),
        np.where(lane < 16, 3, 19),
        np.full(32, 7),
    ]
    assert np.array_equal(out, np.array(rows, np.int32))
