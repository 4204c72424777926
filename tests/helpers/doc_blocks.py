"""Blocks of code of a page, in order, and what keeps one from being run."""

import re
from typing import NamedTuple

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """``reason``: why it cannot be run here, from a comment above it; "" if it can."""

    language: str
    text: str
    reason: str
    line: int


def blocks(page: str) -> list[Block]:
    """Of a page's text."""
    return [
        Block(m["language"], m["text"], m["reason"] or "", page[: m.start()].count("\n") + 1)
        for m in _BLOCK.finditer(page)
    ]
