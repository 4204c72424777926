"""Which tile a worker gets next, and how often one is tried whose workers die.

A worker holds a few tiles, and when it dies each of them may be the cause. From then on each is
tried alone, so that the one which ends its worker is told from those beside it, and only what
happens to a tile that is alone counts as its attempt.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ..runner import Task


@dataclass(eq=False)
class Held:
    """A tile of a worker, or one that waits for a worker."""

    task: Task
    deaths: int = 0  # of workers that had this tile alone
    suspect: bool = False  # a worker died with it, so it is tried alone
    places: set[int] = field(default_factory=set)  # where workers died with it


class Attempts:
    """The tiles that wait. ``retries``: how often a tile is tried again."""

    def __init__(self, tasks: Iterable[Task], retries: int) -> None:
        self._retries = retries
        self._fresh = deque(Held(task) for task in tasks)
        self._suspects: list[Held] = []

    def __bool__(self) -> bool:
        return bool(self._fresh or self._suspects)

    def next_for(self, held: Sequence[Held], place: int, places: Collection[int]) -> Held | None:
        """The next tile for a worker at ``place`` that has ``held``; None: nothing for now.

        A suspect goes to a place where no worker died with it, while ``places``, those with
        workers, have one: the place may be the cause.
        """
        if any(h.suspect for h in held):
            return None
        for suspect in self._suspects:
            if place not in suspect.places or suspect.places.issuperset(places):
                if held:
                    return None  # until the worker has nothing else
                self._suspects.remove(suspect)
                return suspect
        return self._fresh.popleft() if self._fresh else None

    def died_with(self, held: Sequence[Held], place: int) -> Held | None:
        """Put back what a worker that died at ``place`` had; the tile that has failed for good."""
        alone = len(held) == 1
        for h in held:
            h.suspect = True
            h.places.add(place)
            h.deaths += alone
        if alone and held[0].deaths > self._retries:
            return held[0]
        self._suspects[:0] = held
        return None
