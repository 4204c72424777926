"""What Jupyter shows: whether this is a notebook, and small tables as HTML."""

import html
import sys
from collections.abc import Iterable, Sequence

SHOWN = 20  # rows of a table; the object itself has all


def in_notebook() -> bool:
    """Whether this process is a kernel of Jupyter, whose output is a page and no terminal."""
    shell = sys.modules.get("IPython")  # whoever runs in it has imported it
    current = shell.get_ipython() if shell is not None else None
    return current is not None and "IPKernelApp" in getattr(current, "config", {})


def table(
    title: str,
    rows: Iterable[Sequence[object]],
    head: Sequence[str] = (),
    below: Iterable[str] = (),
) -> str:
    """A title, a table of at most SHOWN ``rows`` and lines ``below`` it; all text is escaped."""
    every = list(rows)
    lines = list(below)
    if len(every) > SHOWN:
        lines.insert(0, f"and {len(every) - SHOWN:,} more")
    body = [_row("td", row) for row in every[:SHOWN]]
    parts = [f"<strong>{_text(title)}</strong>"]
    if body:
        top = f"<thead>{_row('th', head)}</thead>" if head else ""
        parts.append(f"<table>{top}<tbody>{''.join(body)}</tbody></table>")
    return f"<div>{''.join(parts)}{''.join(f'<div>{_text(line)}</div>' for line in lines)}</div>"


def _row(cell: str, values: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{cell}>{_text(value)}</{cell}>' for value in values)}</tr>"


def _text(value: object) -> str:
    # names of files need not be text, and a page is UTF-8
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode())
