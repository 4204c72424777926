"""Seeded damage to files, and the promise that every reader keeps about it.

A reader may accept damaged bytes or raise a TesseraError. It may not raise anything else, take
more than 5 s of CPU time, or take more than 200 MB beyond the size of what it reads.

    fuzz.run(seed, fuzz.count(300), make_mutant, read)

``make_mutant(rng)`` returns one damaged input from a random.Random, often with `mutate_bytes` or
`mutate_json`; ``read(mutant)`` reads it. The mutant of a number depends on the seed and the number
alone, so `one` repeats a failure. The environment variable TESSERA_FUZZ sets another number of
mutations than a test asks for.
"""

import contextlib
import copy
import json
import os
import random
import resource
import signal
import struct
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tessera_fast.errors import TesseraError

SECONDS = 5.0  # of CPU time, all threads together
MEMORY = 200_000_000  # bytes
_SPARE = 2 << 30  # address space beyond that: stacks and arenas of threads are reserved, not used

M = TypeVar("M")


@dataclass
class Outcome:
    """What a reader made of the mutations."""

    mutations: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # type of the error -> how often
    slowest: float = 0.0  # seconds of CPU time
    largest: int = 0  # bytes above what the process held before
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        refused = ", ".join(f"{name} {n:,}" for name, n in self.refused.most_common())
        return (
            f"{self.mutations:,} mutations: {self.accepted:,} accepted, refused: {refused or 0}; "
            f"slowest {self.slowest:.3f} s, largest {self.largest / 1e6:.1f} MB, "
            f"{len(self.faults)} faults"
        )


def count(default: int) -> int:
    """How many mutations to try: ``default``, or what TESSERA_FUZZ says."""
    return int(os.environ.get("TESSERA_FUZZ") or default)


def run(
    seed: int,
    count: int,
    make_mutant: Callable[[random.Random], M],
    read: Callable[[M], Any],
    *,
    most_faults: int = 5,
) -> Outcome:
    """Read ``count`` mutants; AssertionError shows the first ``most_faults`` broken promises."""
    outcome = Outcome()
    with contextlib.suppress(Exception):  # its faults are found again below
        read(make_mutant(_rng(seed, 0)))  # once unmeasured: libraries are imported now
    for number in range(count):
        one(seed, number, make_mutant, read, outcome)
        if len(outcome.faults) >= most_faults:
            break
    assert not outcome.faults, "\n\n".join([str(outcome), *outcome.faults])
    return outcome


def one(
    seed: int,
    number: int,
    make_mutant: Callable[[random.Random], M],
    read: Callable[[M], Any],
    outcome: Outcome,
) -> None:
    """Read the mutant of this number, and note in ``outcome`` what became of it."""
    mutant = make_mutant(_rng(seed, number))
    outcome.mutations += 1
    fault = ""
    _reset_peak()
    before, started = _memory(), time.process_time()
    try:
        with _bounded():
            read(mutant)
        outcome.accepted += 1
    except TesseraError as error:
        outcome.refused[type(error).__name__] += 1
        try:
            str(error).encode()
        except UnicodeEncodeError:
            fault = f"a message that cannot be printed: {error!a}"
    except (Exception, Overrun) as error:
        outcome.refused[type(error).__name__] += 1
        fault = "".join(traceback.format_exception(error)[-12:])
        del error  # its frames hold what was read
    seconds, size = time.process_time() - started, _peak() - before
    outcome.slowest = max(outcome.slowest, seconds)
    outcome.largest = max(outcome.largest, size)
    if seconds > SECONDS:
        fault += f"took {seconds:.1f} s of CPU time, expected at most {SECONDS:.0f} s"
    if size > MEMORY + (len(mutant) if isinstance(mutant, bytes) else 0):
        fault += f"took {size / 1e6:.0f} MB, expected at most {MEMORY / 1e6:.0f} MB"
    if fault:
        shown = repr(mutant)
        outcome.faults.append(f"mutation {number} of seed {seed}: {shown[:300]}\n{fault}")


def _rng(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed}/{number}")


# ---- limits


class Overrun(BaseException):
    """The reader's time is over."""


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """End what takes twice the time, and refuse address space that nobody may ask for."""

    def over(*_: object) -> None:
        raise Overrun("more CPU time than twice the limit")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # where there is a lower limit already
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY + _SPARE, hard))
    timed = threading.current_thread() is threading.main_thread()
    if timed:
        previous = signal.signal(signal.SIGPROF, over)
        signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    try:
        yield
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _memory() -> int:
    """Bytes that the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """The most bytes that the process held since `_reset_peak`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def _reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


# ---- damage to bytes

_WORDS = {"B": 1, "H": 2, "I": 4, "Q": 8}
_NUMBERS = (
    "0",
    "1",
    "-1",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "9223372036854775808",
    "1e999",
    "-0",
    "18446744073709551616",
    "9" * 30,
    "9" * 5000,
    "NaN",
    "0x7f",
    "1_0",
    "1.5",
)
_PIECES = (
    b"\0",
    b"\n",
    b"'",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"(",
    b")",
    b",",
    b":",
    b"\xff",
    b"\xed\xa0\x80",
    b"../",
    b"/",
    b"\\ud800",
    b"None",
    b"True",
    b"null",
    b"(" * 300,
    b"[" * 3000,
    b"-" * 300,
    b"{1:" * 300,
    b"\0" * 4096,
    b"A" * 5000,
)


def mutate_bytes(rng: random.Random, data: bytes, *, steps: int = 3, head: int = 0) -> bytes:
    """``data`` after one to ``steps`` changes; ``head``: most lie in so many first bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, steps)):
        rng.choice(_CHANGES)(rng, changed, head if head and rng.random() < 0.8 else 0)
    return bytes(changed)


def _at(rng: random.Random, data: bytearray, head: int) -> int:
    return rng.randrange(max(1, min(len(data), head or len(data))))


def _flip(rng: random.Random, data: bytearray, head: int) -> None:
    if data:
        data[_at(rng, data, head)] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, head: int) -> None:
    if data:
        data[_at(rng, data, head)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: random.Random, data: bytearray, head: int) -> None:
    del data[_at(rng, data, head) :]


def _remove(rng: random.Random, data: bytearray, head: int) -> None:
    start = _at(rng, data, head)
    del data[start : start + rng.choice((1, 2, 4, 8, 16, 100))]


def _insert(rng: random.Random, data: bytearray, head: int) -> None:
    start = _at(rng, data, head)
    data[start:start] = rng.choice((*_PIECES, rng.randbytes(rng.randint(1, 16))))


def _splice(rng: random.Random, data: bytearray, head: int) -> None:
    """A piece of the data itself, over or between what is elsewhere."""
    start, target, size = _at(rng, data, head), _at(rng, data, head), rng.randint(1, 64)
    piece = bytes(data[start : start + size])
    data[target : target + rng.choice((0, size))] = piece


def _word(rng: random.Random, data: bytearray, head: int) -> None:
    """A length, offset or count set to an extreme."""
    letter, size = rng.choice(list(_WORDS.items()))
    start, most = _at(rng, data, head), 2 ** (8 * size) - 1
    value = rng.choice((0, 1, len(data), len(data) - 1, most, most >> 1, (most >> 1) + 1, most - 1))
    data[start : start + size] = struct.pack(rng.choice("<>") + letter, value & most)


def _number(rng: random.Random, data: bytearray, head: int) -> None:
    """A number that is written as text set to an extreme."""
    places = [i for i, byte in enumerate(data[: head or 4096]) if 48 <= byte < 58]
    if places:
        first = last = rng.choice(places)
        while first > 0 and 48 <= data[first - 1] < 58:
            first -= 1
        while last < len(data) and 48 <= data[last] < 58:
            last += 1
        data[first:last] = rng.choice(_NUMBERS).encode()


_CHANGES = (_flip, _set, _cut, _remove, _insert, _splice, _word, _word, _number, _number)


# ---- damage to JSON

# What json does not write stands as text until the document is written.
_WRITTEN = {
    '"<deep>"': "[" * 100_000 + "]" * 100_000,
    '"<deep objects>"': '{"a":' * 2000 + "1" + "}" * 2000,
    '"<long>"': "9" * 5000,
    '"<large>"': "1e999",
}
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    255,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**18,
    10**30,
    10**308,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    "<deep>",
    "<deep objects>",
    "<long>",
    "<large>",
    "",
    "0",
    "a",
    "NaN",
    "..",
    "../x",
    "/",
    "/etc/passwd",
    "~nouser",
    "a\0b",
    "\ud800",
    "\udcff",
    "x" * 300,
    "x" * 5000,
    "\u00e9" * 200,
    "\n",
    "2024",
    "<u2",
    "|O",
    "EPSG:32631",
    "EPSG:0",
    [],
    [0],
    [None],
    [1, 2, 3],
    ["a"],
    [[[[]]]],
    [0] * 9,
    [0] * 5000,
    [10**18] * 4,
    {},
    {"a": 1},
    {"": {}},
    {"name": "regular"},
)
_NAMES = ("", "x", "..", "\ud800", "x" * 300)


def mutate_json(rng: random.Random, data: bytes, *, steps: int = 3) -> bytes:
    """A JSON document after changes of its structure and values, rarely of its text."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    document = json.loads(data)
    for _ in range(rng.randint(1, steps)):
        document = _changed(rng, document)
    text = json.dumps(document)
    for placeholder, written in _WRITTEN.items():
        text = text.replace(placeholder, written)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:  # every name twice
        text = f"{text[:-1]}, {text[1:]}"
    return text.encode()


def _changed(rng: random.Random, document: Any) -> Any:
    places = list(_places(document))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(_VALUES))
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.6:
        holder[key] = copy.deepcopy(rng.choice(_VALUES))
    elif kind < 0.75:
        del holder[key]
    elif kind < 0.85 and isinstance(holder, dict):
        holder[rng.choice((*_NAMES, f"{key} "))] = holder.pop(key)
    elif kind < 0.9:
        other, name = rng.choice(places)
        holder[key] = copy.deepcopy(other[name])
    elif kind < 0.95:
        holder[key] = [copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 2, 9)))]
    else:
        holder[key] = {"a": holder[key]}
    return document


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a document as (what holds it, key or index)."""
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys: Any = ()
        if isinstance(holder, dict):
            keys = list(holder)
        elif isinstance(holder, list):
            keys = range(min(len(holder), 20))
        for key in keys:
            yield holder, key
            waiting.append(holder[key])
