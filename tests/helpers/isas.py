"""The instruction sets of the cpu back end as test parameters: those that run here.

The others are one skip each, in test_cpu_ops.py, and not one a test.
"""

import pytest

from tessera_fast import _cpu

RUNNABLE = [name for name, runs, *_ in _cpu.isas() if runs]
ISAS = [pytest.param(name) for name in RUNNABLE]
BEST = next(name for name, runs, _, automatic in _cpu.isas() if runs and automatic)
every_isa = pytest.mark.parametrize("isa", ISAS)
