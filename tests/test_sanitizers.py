"""The native code under ASan, UBSan and TSan, by sanitizers.py."""

import os

import pytest

import sanitizers

SLOW = pytest.mark.skipif(
    not os.environ.get("TESSERA_FAST_TEST_ALL"),
    reason="two minutes: set TESSERA_FAST_TEST_ALL=1",
)


@pytest.mark.parametrize("name", ["thread", "memory", pytest.param("bindings", marks=SLOW)])
def test_clean(name):
    try:
        assert sanitizers.CHECKS[name]()
    except sanitizers.Absent as reason:
        pytest.skip(str(reason))
