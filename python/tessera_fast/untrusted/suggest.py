"""The nearest known name, for messages about a name that does not exist."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from ..errors import InputError, UnknownKeyword
from .readers import shown

_LONGEST = 80  # characters that are compared: the time grows with their square
P = ParamSpec("P")
R = TypeVar("R")


def closest(name: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'x'?`` with the nearest of ``names``, or "" where none is near.

    ``cutoff``: how alike they have to be, 1 for the same.

    Capitals, the dashes of an option, and whether words are joined by - or _, do not count.
    """
    known = {_plain(each): each for each in names}
    found = difflib.get_close_matches(_plain(str(name)[:_LONGEST]), known, 1, cutoff)
    return f" Did you mean {known[found[0]]!r}?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("-")


def one_of(what: str, value: object, names: Iterable[str]) -> None:
    """InputError unless ``value`` is one of ``names``; the message has the nearest."""
    known = list(names)
    if not isinstance(value, str) or value not in known:
        near = closest(value, known)
        message = f"{what}: expected {', '.join(known)}, got {shown(value)}"
        raise InputError(f"{message}.{near}" if near else message)


def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names that arguments of ``function`` can be given by."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds)


def checks_keywords(*also: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a public function: an unknown keyword is named, with the nearest known one.

    ``also``: names that the function takes by ``**``. Raises UnknownKeyword, which is an InputError
    and, as of any other function, a TypeError.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = (*keywords_of(function), *also)
        known = frozenset(names)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in (n for n in kwargs if n not in known):
                near = closest(name, names) or f" It has {', '.join(names)}."
                raise UnknownKeyword(f"{function.__name__} has no keyword {shown(name)}.{near}")
            return function(*args, **kwargs)

        return call

    return decorate
