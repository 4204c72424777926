"""Stages side by side: order, errors where they belong, and no thread that outlives its block."""

import os
import signal
import threading
import time

import pytest

from tessera_fast.pipeline.stages import Ahead, Behind, Clock


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def heed_interrupts():
    """Also in a suite that was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ahead_makes_one_item_ahead():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    with Ahead(items(), Clock(), "wait") as ahead:
        for i in ahead:
            deadline = time.monotonic() + 10
            while len(made) < min(i + 2, 5) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert made == list(range(min(i + 2, 5)))
    assert i == 4


def test_ahead_raises_where_the_item_would_have_been():
    def items():
        yield 1
        yield 2
        raise ValueError("third")

    with Ahead(items(), Clock(), "wait") as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        for _ in range(2):
            with pytest.raises(ValueError, match="third"):
                next(ahead)


@pytest.mark.parametrize("taken", [0, 1])
def test_leaving_ahead_closes_its_iterator(taken):
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(threading.current_thread())

    with pytest.raises(RuntimeError, match="enough"), Ahead(items(), Clock(), "wait") as ahead:
        time.sleep(0.02)
        for _ in range(taken):
            next(ahead)
        raise RuntimeError("enough")
    assert len(closed) == 1 and closed[0] is not threading.main_thread()


def test_an_iterator_that_cannot_be_closed_ends_too():
    def items():
        try:
            yield 0
        finally:
            raise ValueError("in closing")

    with Ahead(items(), Clock(), "wait") as ahead:
        assert next(ahead) == 0
        time.sleep(0.02)


def test_behind_calls_in_order_and_waits():
    called = []
    clock = Clock()
    with Behind(clock, "wait") as behind:
        for i in range(4):
            behind.give(lambda i=i: (time.sleep(0.01), called.append(i)))
        behind.finish()
        assert called == [0, 1, 2, 3]
    assert clock.seconds["wait"] > 0


@pytest.mark.parametrize("where", ["give", "finish"])
def test_behind_raises_the_first_error_and_calls_no_more(where):
    called = []

    def fail():
        raise ValueError("first")

    with Behind(Clock(), "wait") as behind:
        behind.give(fail)
        with pytest.raises(ValueError, match="first"):
            behind.give(lambda: called.append(1)) if where == "give" else behind.finish()
        with pytest.raises(ValueError, match="first"):
            behind.give(lambda: called.append(2))
    assert not called


def test_leaving_behind_lets_what_runs_end():
    called = []
    with pytest.raises(RuntimeError, match="enough"), Behind(Clock(), "wait") as behind:
        behind.give(lambda: (time.sleep(0.05), called.append(1)))
        time.sleep(0.02)
        raise RuntimeError("enough")
    assert called == [1]


@pytest.mark.parametrize("where", ["next", "give", "finish", "leave ahead", "leave behind"])
def test_an_interrupt_in_a_wait(where, heed_interrupts):
    """It is raised, and only once the thread has let go of what it works on."""
    began, ended = threading.Event(), []

    def work():  # sends it itself: nobody gets out of the block before
        began.set()
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        ended.append(1)

    def items():
        yield 1
        work()
        yield 2

    with pytest.raises(KeyboardInterrupt):
        if where in ("next", "leave ahead"):
            with Ahead(items(), Clock(), "wait") as ahead:
                next(ahead)
                began.wait()
                if where == "next":
                    next(ahead)
        else:
            with Behind(Clock(), "wait") as behind:
                behind.give(work)
                began.wait()
                if where == "give":
                    behind.give(work)
                if where == "finish":
                    behind.finish()
    assert ended == [1]
