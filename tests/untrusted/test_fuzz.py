"""Damaged files give an error of the package, quickly and in little memory; see fuzz.py.

Some hundred mutations of each format run with the suite; TESSERA_FUZZ=20000 asks for more.
"""

import json
import random

import numpy as np
import pytest

import fuzz
import fuzz_files
from tessera_fast.errors import InputError


@pytest.mark.filterwarnings("ignore")  # of libraries, about what is damaged
@pytest.mark.parametrize("name", fuzz_files.FORMATS)
def test_damaged_files(name, tmp_path):
    make_mutant, read = fuzz_files.FORMATS[name](tmp_path)
    print(name, fuzz.run(1, fuzz.count(250), make_mutant, read))


# ---- the engine sees what it is there for


def test_a_reader_that_keeps_the_promise_is_counted():
    def read(mutant: bytes) -> None:
        if mutant[:1] != b"a":
            raise InputError("expected a")

    outcome = fuzz.run(1, 200, lambda rng: fuzz.mutate_bytes(rng, b"abc 12"), read)
    assert outcome.mutations == 200
    assert 0 < outcome.accepted < 200
    assert outcome.refused == {"InputError": 200 - outcome.accepted}


def test_another_exception_is_a_fault_that_can_be_repeated():
    def read(mutant: bytes) -> None:
        int(mutant)

    with pytest.raises(AssertionError, match=r"mutation \d+ of seed 2"):
        fuzz.run(2, 200, lambda rng: fuzz.mutate_bytes(rng, b"12"), read)
    first, again = fuzz.Outcome(), fuzz.Outcome()
    for outcome in (first, again):
        for number in range(20):
            fuzz.one(2, number, lambda rng: fuzz.mutate_bytes(rng, b"12"), read, outcome)
    assert first.faults and first.faults == again.faults


def test_time_and_memory_have_limits(monkeypatch):
    def wasteful(mutant: bytes) -> None:
        assert np.ones(250_000_000, np.uint8).any()

    def greedy(mutant: bytes) -> None:
        np.empty(1 << 40, np.uint8)  # only asked for, never touched

    def endless(mutant: bytes) -> None:
        while True:
            pass

    for read, said in ((wasteful, "MB, expected"), (greedy, "MemoryError"), (endless, "Overrun")):
        if read is endless:
            monkeypatch.setattr(fuzz, "SECONDS", 0.2)
        outcome = fuzz.Outcome()
        fuzz.one(3, 0, lambda rng: b"", read, outcome)
        assert any(said in fault for fault in outcome.faults)


def test_json_mutants_differ_and_depend_on_the_seed_alone():
    data = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()
    first, again = (
        [fuzz.mutate_json(random.Random(k), data) for k in range(200)] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 150
