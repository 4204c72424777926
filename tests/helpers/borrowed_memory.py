"""A process that encodes while other threads write its arrays; started by test_borrowed_memory.py.

    python borrowed_memory.py raw|tokens SECONDS THREADS CHECKPOINT

It prints how many calls returned and how many raised InputError.

One writer per array: a whole array at a time, from nothing observed to everything, for which numpy
releases the interpreter's lock. What is returned may be any numbers; memory has to stay whole.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

import tessera_fast as tf
from tessera_fast.packing import Observations, Orbit, pack

Clock = Callable[[], bool]

H, W, DATES = 24, 16, 40


def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def days() -> np.ndarray:
        return np.arange(1, DATES + 1, dtype=np.int32)

    return {
        "s2_bands": rng.integers(1, 9000, (DATES, H, W, 10), dtype=np.uint16),
        "s2_masks": np.zeros((DATES, H, W), np.uint8),
        "s2_doys": days(),
        "s1_asc_bands": np.zeros((DATES, H, W, 2), np.int16),
        "s1_asc_doys": days(),
        "s1_desc_bands": np.zeros((DATES, H, W, 2), np.int16),
        "s1_desc_doys": days(),
    }


def write(array: np.ndarray, values: tuple[int, int], stop: threading.Event) -> None:
    while not stop.is_set():
        for value in values:
            array[...] = value


def as_pixels(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Views (P, T, C) and (P, T) of the same arrays: the arguments of encode_pixels."""
    return {
        name: array if array.ndim == 1 else array.reshape(DATES, H * W, -1).swapaxes(0, 1)
        for name, array in given.items()
    } | {"s2_masks": given["s2_masks"].reshape(DATES, H * W).T}


def encode_raw(model: tf.Model, given: dict[str, np.ndarray], stop: Clock) -> tuple[int, int]:
    """The public calls, while the raw series are written."""
    forms = ((tf.encode_tile, given), (tf.encode_pixels, as_pixels(given)))
    values = {"s2_masks": (0, 1), "s1_asc_bands": (0, 5), "s1_desc_bands": (0, 5)}
    with written(given, values | {"s2_bands": (0, 9000)}):
        return count(stop, [lambda f=f, a=a: f(model, **a) for f, a in forms])


def encode_tokens(model: tf.Model, given: dict[str, np.ndarray], stop: Clock) -> tuple[int, int]:
    """The encoder alone, while what it reads its memory by is written."""
    bands, days = given["s2_bands"], given["s2_doys"]
    ones = Orbit(0, np.ones((DATES, H, W, 2), np.int16), days)
    s2, s1, _ = pack(Observations(bands, None, days, (ones,)), model.spec)
    tokens = {name: getattr(s2, name) for name in ("doy", "orbit", "offsets", "steps")}
    values = {"doy": (1, 65535), "orbit": (0, 255), "offsets": (0, 2**40), "steps": (0, 2**30)}
    good = {name: array.copy() for name, array in tokens.items() if array is not None}
    out = np.empty((H * W, model.repr_dim), np.float32)

    def encode() -> None:
        for name, array in good.items():  # so that the check at the start passes at times
            tokens[name][...] = array
        model.encoder.encode(s2, s1, out)

    with written(tokens, {name: values[name] for name in good}):
        return count(stop, [encode])


def count(stop: Clock, calls: list[Callable[[], object]]) -> tuple[int, int]:
    returned = refused = 0
    while not stop() or not returned + refused:
        for call in calls:
            try:
                call()
                returned += 1
            except tf.InputError:
                refused += 1
    return returned, refused


@contextmanager
def written(arrays: dict[str, np.ndarray], values: dict[str, tuple[int, int]]) -> Iterator[None]:
    stop = threading.Event()
    writers = [
        threading.Thread(target=write, args=(arrays[name], v, stop)) for name, v in values.items()
    ]
    for writer in writers:
        writer.start()
    yield
    stop.set()
    for writer in writers:
        writer.join()


def main(way: str, seconds: float, threads: int, checkpoint: str) -> None:
    given = arrays(np.random.default_rng(0))
    with tf.load_model(checkpoint, threads=threads) as model:
        end = time.monotonic() + seconds
        run = {"raw": encode_raw, "tokens": encode_tokens}[way]
        print(*run(model, given, lambda: time.monotonic() > end))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
