"""The bindings of the extension module refuse what they cannot use, and never end the process.

The calls run in processes of their own, which a fault would end: `python test_bindings.py CASE ...`
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from binding_fuzz import EXPECTED, Fuzz
from places import HELPERS
from tessera_fast import _cpu
from tessera_fast.errors import InputError

ops = _cpu.ops
PACKAGE = Path(_cpu.__file__).parents[1]
CASES: dict[str, Callable[[], object]] = {}
FUZZ_SECONDS = 5


def case(function: Callable[[], object]) -> Callable[[], object]:
    CASES[function.__name__.replace("_", " ")] = function
    return function


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def read_only(*shape: int) -> np.ndarray:
    a = ones(*shape)
    a.flags.writeable = False
    return a


def load(model: int = 0, tensors: Any = "as they are", **changes: Any) -> Any:
    """An encoder of the fuzz's model number ``model`` (softmax, custom_gru, torch_gru)."""
    _, (config, positions, right, isa, precision), _ = Fuzz(0, ["portable"]).models[model]
    source = right if isinstance(tensors, str) else tensors
    return _cpu.load_encoder({**config, **changes}, positions, source, isa, precision)


def tokens(**changes: Any) -> SimpleNamespace:
    """Two pixels of two tokens each."""
    right = {
        "bands": np.ones((4, 10), np.uint16),
        "doy": np.ones(4, np.uint16),
        "orbit": np.zeros(4, np.uint8),
        "multiplicity": np.ones(4, np.uint16),
        "offsets": np.int64([0, 2, 4]),
        "steps": np.int32([0, 1, 0, 1]),
        "step_offsets": np.int64([0, 2, 4]),
        "standardized": False,
    }
    return SimpleNamespace(**right | changes)


def encode(model: int = 1, threads: Any = 1, out: Any = None, **changes: Any) -> None:
    sar = tokens(bands=np.ones((4, 2), np.int16))
    target = np.empty((2, 32), np.float32) if out is None else out
    load(model).encode(tokens(**changes), sar, target, threads)


# ---- loading


@case
def no_tensors() -> None:
    load(tensors=None)


@case
def tensors_that_are_no_arrays() -> None:
    load(tensors=dict.fromkeys(Fuzz(0, ["portable"]).models[0][1][2], None))


for _name, _value in (
    ("num_heads", 0),
    ("num_heads", -1),
    ("num_heads", 3),
    ("num_heads", 2**31),
    ("d_model", 0),
    ("d_model", -16),
    ("d_model", 2**30),
    ("num_layers", 0),
    ("num_layers", -1),
    ("ff_dim", 0),
    ("ff_dim", 2**31 - 1),
    ("out_dim", 0),
    ("out_dim", -(2**31)),
    ("empty_steps", 0),
    ("empty_steps", -1),
    ("empty_steps", 2**31 - 1),
    ("fusion_layers", -1),
    ("num_heads", None),
    ("s2_mean", None),
    ("s2_mean", np.zeros((2, 0), np.float32)),
    ("pooling", "mean"),
    ("layer_prefix", 3),
):
    CASES[f"config {_name} {str(_value)[:12]}"] = lambda n=_name, v=_value: load(**{n: v})


@case
def an_encoder_that_was_not_loaded() -> None:
    try:
        made = _cpu.Encoder.__new__(_cpu.Encoder)
    except TypeError as error:
        raise InputError(str(error)) from None
    print(made.isa)


@case
def an_encoder_that_is_copied() -> None:
    try:
        copy.copy(load())
    except TypeError as error:
        raise InputError(str(error)) from None


# ---- tokens

for _name, _value in (
    ("step_offsets", np.int64([0, 2**40, 4])),
    ("step_offsets", np.int64([0, -(2**40), 4])),
    ("step_offsets", np.int64([2**40, 2**40, 4])),
    ("step_offsets", np.int64([0, 2, -1])),
    ("step_offsets", np.int64([0, 2, 2**40])),
    ("step_offsets", np.int64([-4, 0, 4])),
    ("offsets", np.int64([0, 2**40, 4])),
    ("offsets", np.int64([0, -(2**40), 4])),
    ("steps", None),
    ("steps", np.int32([0, 1, 0, 2])),
    ("steps", np.int32([0, -1, 0, 1])),
    ("doy", np.uint16([1, 1, 1, 367])),
    ("orbit", np.uint8([0, 0, 0, 2])),
    ("doy", None),
    ("multiplicity", np.uint16([1, 1, 0, 1])),
    ("bands", None),
    ("standardized", "x"),
    ("standardized", True),
    ("bands", np.ones((4, 20), np.uint16)[:, ::2]),
):
    _key = f"tokens {_name} {' '.join(str(_value).split())[:40]}"
    CASES[_key] = lambda n=_name, v=_value: encode(**{n: v})
for _threads in (0, -1, 4097, 2**40):
    CASES[f"encode with {_threads} threads"] = lambda n=_threads: encode(threads=n)


@case
def encode_into_a_read_only_array() -> None:
    encode(out=read_only(2, 32))


@case
def encode_without_columns() -> None:
    encode(out=ones(2, 0))


# ---- ops

PORTABLE = "portable"
for _name, _call in {
    "layer norm, read-only": lambda y: ops.layer_norm(
        PORTABLE, ones(2, 4), ones(4), ones(4), 1e-5, False, y
    ),
    "linear, read-only": lambda y: ops.linear(
        PORTABLE, ones(2, 4), ones(4, 4), None, None, False, y
    ),
    "rms norm, read-only": lambda y: ops.rms_norm(PORTABLE, y, 2, ones(2), 1e-5),
    "attention, read-only": lambda y: ops.attention(PORTABLE, ones(2, 12), 2, ones(2), y),
    "pool, read-only": lambda y: ops.pool(PORTABLE, ones(2, 4), ones(4), 0.0, ones(2), y[0]),
    "gru, read-only": lambda y: ops.gru_step(
        PORTABLE, "torch_state", ones(2, 12), ones(2, 12), y, ones(2, 4), ones(2, 4)
    ),
}.items():

    def _unchanged(call: Callable[[Any], object] = _call) -> None:
        y = read_only(2, 4)
        try:
            call(y)
        finally:
            assert (y == 1).all()

    CASES[_name] = _unchanged

for _heads in (0, -1, 3, 2**31, 2**40):
    CASES[f"rms norm of {_heads} heads"] = lambda h=_heads: ops.rms_norm(
        PORTABLE, ones(2, 4), h, ones(2), 1e-5
    )
    CASES[f"attention of {_heads} heads"] = lambda h=_heads: ops.attention(
        PORTABLE, ones(2, 12), h, ones(2), ones(2, 4)
    )


@case
def layer_norm_with_a_weight_alone() -> None:
    ops.layer_norm(PORTABLE, ones(2, 4), ones(4), None, 1e-5, False, ones(2, 4))


@case
def recurrent_products_that_are_too_narrow() -> None:
    ops.gru_step(PORTABLE, "torch_state", ones(900, 12), ones(900, 1), *(ones(900, 4),) * 3)


@case
def gates_of_two_distances() -> None:
    far = ones(9, 4000)[:, :4]
    ops.gru_step(PORTABLE, "custom_gates", ones(9, 12), ones(9, 12), ones(9, 4), far, ones(9, 4))


@case
def whole_words_beyond_the_last_row() -> None:
    y = np.zeros((3, 2), np.uint16)[:, 1:]
    ops.linear(PORTABLE, ones(3, 4), ones(1, 4), None, None, False, y, "bf16")


@case
def a_misaligned_array() -> None:
    x = np.frombuffer(bytearray(33), np.float32, 8, 1).reshape(2, 4)
    ops.layer_norm(PORTABLE, x, None, None, 1e-5, False, ones(2, 4))


@case
def spins_without_end() -> None:
    ops.spin(PORTABLE, "fp32", 2**62)


# ---- packing


def packed(threads: Any = 1, row0: int = 0, orbits: Any = (), dates: int = 2, **s2: Any) -> object:
    bands = np.ones((dates, 2, 2, 10), np.uint16)
    days = np.ones((dates, 2, 2), np.int32)
    right = (s2.get("bands", bands), s2.get("mask"), s2.get("days", days))
    return _cpu.pack(right[: s2.get("cut")], list(orbits), "v2", True, False, row0, 0, threads)


_SAR = (np.ones((2, 2, 2, 2), np.int16), np.ones((2, 2, 2), np.int32))
for _key, _changes in {
    "0 threads": {"threads": 0},
    "4097 threads": {"threads": 4097},
    "row -1": {"row0": -1},
    "the last row": {"row0": 2**63 - 1},
    "two of a tuple": {"cut": 2},
    "an orbit of two": {"orbits": [_SAR]},
    "orbit 2": {"orbits": [(*_SAR, 2)]},
    "orbit None": {"orbits": [(*_SAR, None)]},
    "three orbits": {"orbits": [(*_SAR, 0)] * 3},
    "no orbit": {"orbits": [None]},
    "no bands": {"bands": None},
    "no days": {"days": None},
    "a mask of text": {"mask": "x"},
    "65,536 dates": {"dates": 65_536},
    "2^40 dates": {"bands": np.broadcast_to(np.ones((1, 2, 2, 10), np.uint16), (2**40, 2, 2, 10))},
    "misaligned bands": {
        "bands": np.frombuffer(bytearray(161), np.uint16, 80, 1).reshape(2, 2, 2, 10)
    },
}.items():
    CASES[f"pack {_key}"] = lambda c=_changes: packed(**c)


# ---- the tests


def child(*arguments: object) -> str:
    path = os.pathsep.join([str(PACKAGE), str(HELPERS)])
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, (
        f"exit {done.returncode}: {done.stdout[-200:]}{done.stderr[-2000:]}"
    )
    return done.stdout


def test_every_case_is_refused():
    """One process for all: its last line of output is the case before the one that ended it."""
    answers = dict(line.rsplit(": ", 1) for line in child(__file__, *CASES).splitlines())
    assert answers == dict.fromkeys(CASES, "refused")


def test_tokens_that_are_made_on_access():
    """Arrays that nobody else holds: they must live as long as the call reads them."""

    class Fresh(SimpleNamespace):
        def __getattribute__(self, name: str) -> Any:
            return copy.deepcopy(super().__getattribute__(name))

    results = []
    for kind in (SimpleNamespace, Fresh):
        out = np.empty((2, 32), np.float32)
        s2, s1 = tokens(), tokens(bands=np.ones((4, 2), np.int16))
        load(1).encode(kind(**vars(s2)), kind(**vars(s1)), out, 1)
        results.append(out)
    assert np.isfinite(results[0]).all()
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_arguments(seed):
    returned, raised = map(int, child(HELPERS / "binding_fuzz.py", seed, FUZZ_SECONDS).split())
    assert returned > 0 and raised > 0


if __name__ == "__main__":
    for chosen in sys.argv[1:]:
        try:
            CASES[chosen]()
            print(f"{chosen}: taken", flush=True)
        except InputError:
            print(f"{chosen}: refused", flush=True)
        except EXPECTED as raised:
            print(f"{chosen}: {type(raised).__name__}", flush=True)
