"""Whether two checkpoints hold the same parameters."""

import numpy as np


def same(got, want):
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == np.float32 and got[name].flags.c_contiguous
        assert got[name].flags.aligned
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
