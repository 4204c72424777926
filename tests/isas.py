"""The instruction sets of the cpu back end as test parameters; one that cannot run is a skip."""

from typing import Any

import pytest

from tessera_fast import _cpu


def _param(name: str, runs: bool, needs: str) -> Any:
    reason = f"instruction set {name}: this machine lacks {needs}"
    return pytest.param(name, marks=() if runs else pytest.mark.skip(reason=reason))


ISAS = [_param(name, runs, needs) for name, runs, needs, _ in _cpu.isas()]
RUNNABLE = [name for name, runs, *_ in _cpu.isas() if runs]
BEST = next(name for name, runs, _, automatic in _cpu.isas() if runs and automatic)
every_isa = pytest.mark.parametrize("isa", ISAS)
