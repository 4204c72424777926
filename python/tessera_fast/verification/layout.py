"""Lines of a report, fitted to a width: tables in groups of columns, sentences at words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

_INDENT = 4  # columns by which the rest of a sentence is indented


def wrapped(lines: Iterable[str], width: int | None) -> str:
    """One text of ``lines``, none longer than ``width`` unless one word is; None: as they are.

    Words, such as paths, are not divided, so that they can be copied.
    """
    if width is None:
        return "\n".join(lines)
    out = []
    for line in lines:
        if len(line) <= width:
            out.append(line)
            continue
        start = line[: len(line) - len(line.lstrip())]
        out += textwrap.wrap(
            line.lstrip(),
            width,
            initial_indent=start,
            subsequent_indent=start + " " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(out)


def table(rows: Sequence[tuple[str, ...]], width: int | None) -> Iterator[str]:
    """Columns aligned, names to the left, the rest to the right.

    Columns that do not fit ``width`` follow below, with the names again.
    """
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    groups: list[list[int]] = [[]]
    used = 2 + widths[0]
    for k in range(1, len(widths)):
        if width is not None and groups[-1] and used + 2 + widths[k] > width:
            groups.append([])
            used = 2 + widths[0]
        groups[-1].append(k)
        used += 2 + widths[k]
    for group in groups:
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[k].rjust(widths[k]) for k in group)]
            yield ("  " + "  ".join(cells)).rstrip()
