"""The native code under ASan, UBSan and TSan, by sanitizers.py."""

import os

import pytest

import sanitizers

SLOW = pytest.mark.skipif(
    not os.environ.get("TESSERA_FAST_TEST_ALL"),
    reason="two minutes: set TESSERA_FAST_TEST_ALL=1",
)


@pytest.mark.parametrize(
    "name",
    [
        "thread",
        "memory",
        "kernel-order",
        "kernel-memory",
        pytest.param("bindings", marks=SLOW),
        pytest.param("kernel-tests", marks=SLOW),
    ],
)
def test_clean(name):
    try:
        assert sanitizers.CHECKS[name]()
    except sanitizers.Absent as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(
    ("kind", "fault", "said"),
    [
        ("kernel-order", "no_barrier", "data race"),
        ("kernel-order", "shuffle_only", "data race"),
        ("kernel-order", "early_copy", "data race"),
        ("kernel-memory", "misaligned_vector", "which requires 8 byte alignment"),
        ("kernel-memory", "beyond_array", "out of bounds"),
        ("kernel-memory", "beyond_output", "heap-buffer-overflow"),
        ("kernel-memory", "beyond_shared", "use-after-poison"),
    ],
)
def test_planted_fault_is_reported(kind, fault, said):
    """Each of its kind, in a kernel of tests/cuda_emulator/planted.cc; "none" is clean above."""
    try:
        sanitizers.kernel_program(kind)
    except sanitizers.Absent as reason:
        pytest.skip(str(reason))
    with pytest.raises(sanitizers.Fault, match=said):
        sanitizers.kernels(kind, fault)
